package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// pair is two audited tables in one database: that of the rig, and one of the same
// name in the schema other.
type pair struct {
	*rig
	other *rig
	slots [2]int // of the two tables
}

// pairMapping has the table public.products, then other.products.
const pairMapping = `
tables:
  - table: public.products
    aggregate: Product
    slot: %d
    topics: {events: %s, latest: %s}
    events: &events
      - {type: PriceChanged, when: [price]}
      - {type: StockAdjusted, when: [stock]}
  - table: other.products
    aggregate: Other
    slot: %d
    topics: {events: %s, latest: %s}
    events: *events
`

// newPair makes the two tables, each on a slot of its own.
func newPair(tb testing.TB, rows int) *pair {
	tb.Helper()
	r := newRig(tb, testenv.Postgres(tb), testenv.Kafka(tb).Brokers(), rows)
	o := *r
	o.dsn += "&search_path=other"
	o.topics = [2]string{r.slot() + ".other.events", r.slot() + ".other.latest"}
	p := &pair{rig: r, other: &o}
	r.exec("CREATE SCHEMA other")
	if err := audit.Install(tb.Context(), o.connect(), rows); err != nil {
		tb.Fatal(err)
	}
	// So that a session of either schema may write both tables.
	for _, schema := range []string{"public", "other"} {
		for _, function := range []string{"audit_row", "audit_truncate"} {
			r.exec(fmt.Sprintf("ALTER FUNCTION %s.%s() SET search_path = %[1]s", schema, function))
		}
	}
	p.assign(1, 2)
	return p
}

// assign writes the mapping with the slots of the two tables.
func (p *pair) assign(slot, otherSlot int) {
	p.tb.Helper()
	p.slots = [2]int{slot, otherSlot}
	p.write("products.yaml", fmt.Sprintf(pairMapping, slot, p.topics[0], p.topics[1], otherSlot, p.other.topics[0], p.other.topics[1]))
}

// compareBoth holds both histories against their topics.
func (p *pair) compareBoth() {
	p.tb.Helper()
	p.compareAs("Product", p.slots[0])
	p.other.compareAs("Other", p.slots[1])
}

// writingBoth lets writers write either table, and one both in each transaction.
func (p *pair) writingBoth(keys int64) (stop func()) {
	first := p.writing(2, keys, 5*time.Millisecond, true)
	second := p.other.writing(2, keys, 5*time.Millisecond, true)
	ctx, cancel := context.WithCancel(p.tb.Context())
	done := make(chan error, 1)
	conn := p.connect()
	go func() { done <- writeAcross(ctx, conn, keys) }() // ends with ctx
	p.tb.Cleanup(cancel)
	return func() {
		p.tb.Helper()
		first()
		second()
		cancel()
		if err := <-done; err != nil {
			p.tb.Fatal(err)
		}
	}
}

// writeAcross changes both tables in one transaction, again and again. One that a
// deadlock with another writer ends has not been.
func writeAcross(ctx context.Context, conn *pgx.Conn, keys int64) error {
	for ctx.Err() == nil {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for _, table := range []string{"public.products", "other.products"} {
				if _, err := tx.Exec(ctx, "UPDATE "+table+" SET stock = stock + 1 WHERE id = $1", 1+rand.Int64N(keys)); err != nil {
					return err
				}
			}
			return nil
		})
		var pg *pgconn.PgError
		if err != nil && ctx.Err() == nil && (!errors.As(err, &pg) || pg.Code != "40P01") {
			return fmt.Errorf("write both tables: %w", err)
		}
		select {
		case <-time.After(3 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}

// Two tables on two slots of one process, which is killed while writers write, are
// told as the writers committed them.
func TestTwoSlotsKilled(t *testing.T) {
	t.Parallel()
	p := newPair(t, 1000)
	b := p.start()
	b.streaming()
	stop := p.writingBoth(300)
	for i := range 8 {
		<-time.After(time.Duration(200+i*100) * time.Millisecond) // any moment will do
		b.kill()
		b = p.start()
		b.streaming()
	}
	stop()
	b.drained(2 * time.Minute)
	b.stop()
	p.compareBoth()
	if got, want := p.heldSlots(), p.slot()+", "+p.slot()+"_2"; got != want {
		t.Errorf("the slots are %s, want %s", got, want)
	}
}

// Commands find the bridge that has a table.
func TestTwoSlotsCommands(t *testing.T) {
	t.Parallel()
	p := newPair(t, 2000)
	if code, said := p.doctor(nil); code != 0 || !strings.Contains(said, p.slot()+"_2") {
		t.Fatalf("doctor: exit code %d, want 0\n%s", code, said)
	}
	p.succeeds("backfill", "--once") // both tables, and the end
	b := p.start()
	b.streaming()
	stop := p.writingBoth(2000)
	for _, table := range []string{"public.products", "other.products"} {
		p.succeeds("verify", table, "--patience", "60s")
	}
	p.succeeds("backfill", "other.products", "--where", "id < 100")
	p.succeeds("backfill")
	said := p.succeeds("status")
	for _, want := range []string{p.slot() + " ", p.slot() + "_2 ", "public.products", "other.products"} {
		if !strings.Contains(said, want) {
			t.Errorf("status says nothing of %q:\n%s", want, said)
		}
	}
	stop()
	b.drained(time.Minute)
	p.succeeds("verify")
	b.stop()
	p.compareBoth()
	p.succeeds("backfill", "--once", "other.products", "--json")
	p.succeeds("backfill", "--reconcile", "--dry-run")
	p.compareBoth()
}

// A table that is given to another slot is refused, and told without a gap once
// the state that it leaves is moved away; so is a slot that has no table any more.
func TestTableMovesToAnotherSlot(t *testing.T) {
	t.Parallel()
	p := newPair(t, 500)
	p.writtenOnce()

	p.assign(2, 1)
	p.fails(3, "the state of this slot has table", "and the mapping gives it to slot", "put its slot back")
	if err := os.RemoveAll(filepath.Join(p.dir, "state")); err != nil {
		t.Fatal(err)
	}
	p.writtenOnce()

	p.assign(1, 1)
	p.fails(3, "slot 2: the mapping gives it no table, and its state is in", "pg_drop_replication_slot('"+p.slot()+"_2')")
	p.exec("SELECT pg_drop_replication_slot($1)", p.slot()+"_2")
	if err := os.RemoveAll(filepath.Join(p.dir, "state", "slot_2")); err != nil {
		t.Fatal(err)
	}
	p.writtenOnce() // slot 1 keeps its state, and takes the table of slot 2 over
	p.compareBoth()
}

// writtenOnce runs the bridge while writers write for a while.
func (p *pair) writtenOnce() {
	p.tb.Helper()
	b := p.start()
	b.streaming()
	b.drained(time.Minute) // so that no comparison takes the place of a change
	stop := p.writingBoth(100)
	<-time.After(time.Second)
	stop()
	b.drained(time.Minute)
	b.stop()
}

// The partitions of a table may be tables of their own on several slots: a row that
// changes its partition is a delete and a complete insert, also if its large
// column was not touched.
func TestPartitionsOnTwoSlots(t *testing.T) {
	t.Parallel()
	p := newPair(t, 1)
	p.exec(`CREATE TABLE item (id bigint, large text, n int, PRIMARY KEY (id)) PARTITION BY HASH (id)`)
	for i := range 2 {
		p.exec(fmt.Sprintf(`CREATE TABLE item_%d PARTITION OF item FOR VALUES WITH (MODULUS 2, REMAINDER %[1]d)`, i))
		p.exec(fmt.Sprintf(`ALTER TABLE item_%d ALTER large SET STORAGE EXTERNAL`, i))
	}
	p.write("products.yaml", fmt.Sprintf(`
tables:
  - {table: item_0, aggregate: Item0, topics: {events: %[1]s.0.events, latest: %[1]s.0.latest}}
  - {table: item_1, aggregate: Item1, slot: 2, topics: {events: %[1]s.1.events, latest: %[1]s.1.latest}}
`, p.slot()))
	b := p.start()
	b.streaming()
	const rows = 200
	p.exec(`INSERT INTO item SELECT g, repeat(md5(g::text), 200), 0 FROM generate_series(1, $1::int) g`, rows)
	p.exec(`UPDATE item SET id = id + 1000`)
	p.exec(`UPDATE item SET n = n + 1`)
	b.drained(time.Minute)
	p.succeeds("verify")
	b.stop()
	created := 0
	for i := range 2 {
		events := p.records(fmt.Sprintf("%s.%d.events", p.slot(), i))
		for _, e := range events {
			if strings.HasSuffix(e.Headers["ce_type"], "Created.v1") {
				created++
			}
		}
	}
	if created != 2*rows {
		t.Errorf("%d rows were created, want %d: each once, and once with its new key", created, 2*rows)
	}
}

// A slot that fails ends the process with its error, and the other slot in order.
func TestOneSlotEndsAll(t *testing.T) {
	t.Parallel()
	p := newPair(t, 100)
	b := p.start()
	b.streaming()
	b.drained(time.Minute)
	p.exec("UPDATE public.products SET stock = stock + 1")
	conn, slot := p.connect(), p.slot()+"_2"
	testenv.Eventually(t, time.Minute, func() error {
		_, err := conn.Exec(t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", slot)
		if err == nil {
			_, err = conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", slot)
		}
		return err // it is in use until the walsender has ended
	})
	if code := b.wait(time.Minute); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	if said := b.said(); !strings.Contains(said, "backstory: slot "+slot+": ") || !strings.Contains(said, "msg=stopped slot="+p.slot()+" ") {
		t.Errorf("want the refusal of slot %s and the orderly end of the other in:\n%s", slot, said)
	}
	p.succeeds("backfill", "--reconcile") // the way out
	p.compareBoth()
}

// A start that one slot refuses makes no slot for another, however much sooner
// that one is ready.
func TestRefusedSlotLeavesNone(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 1)
	const crowd = 100 // tables that take the second slot a while to look at
	tables := fmt.Sprintf("tables:\n  - {table: products, aggregate: Product, topics: {events: %s, latest: %s}}\n", r.topics[0], r.topics[1])
	key := " PRIMARY KEY"
	for i := range crowd {
		if i == crowd-1 {
			key = ""
		}
		r.exec(fmt.Sprintf("CREATE TABLE crowd_%d (id int%s)", i, key))
		tables += fmt.Sprintf("  - {table: crowd_%d, aggregate: Crowd%[1]d, slot: 2}\n", i)
	}
	r.write("products.yaml", tables)
	r.fails(3, fmt.Sprintf("crowd_%d", crowd-1))
	if got := r.heldSlots(); got != "" {
		t.Errorf("the slots %s are there after a refused start, want none", got)
	}
}

// heldSlots are the replication slots of the rig's database.
func (r *rig) heldSlots() string {
	r.tb.Helper()
	var names string
	err := r.connect().QueryRow(r.tb.Context(), `
SELECT coalesce(string_agg(slot_name, ', ' ORDER BY slot_name), '') FROM pg_replication_slots WHERE database = current_database()`).Scan(&names)
	if err != nil {
		r.tb.Fatal(err)
	}
	return names
}
