package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// window holds transactions between their commit record and their visibility: a
// COMMIT that waits for a synchronous standby has written its record, which the
// stream delivers, and snapshots do not see it yet.
type window struct {
	r    *rig
	done []chan error
}

// openWindow makes the commits of the legacy application wait. The bridge's own
// sessions do not.
func (r *rig) openWindow() *window {
	r.tb.Helper()
	r.exec(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	r.exec(`SELECT pg_reload_conf()`)
	testenv.Eventually(r.tb, 10*time.Second, func() error {
		if names := r.setting("synchronous_standby_names"); names != "nobody" {
			return fmt.Errorf("synchronous_standby_names is %q", names)
		}
		return nil
	})
	w := &window{r: r}
	r.tb.Cleanup(w.close)
	return w
}

func (r *rig) setting(name string) (value string) {
	r.tb.Helper()
	if err := r.connect().QueryRow(r.tb.Context(), `SELECT current_setting($1)`, name).Scan(&value); err != nil {
		r.tb.Fatal(err)
	}
	return value
}

// commit begins a commit that will not be visible before the window is closed,
// and returns when its record is in WAL.
func (w *window) commit(sql string) {
	w.r.tb.Helper()
	conn, err := pgx.Connect(w.r.tb.Context(), w.r.dsn)
	if err != nil {
		w.r.tb.Fatal(err)
	}
	done := make(chan error, 1)
	w.done = append(w.done, done)
	go func() { // ends when the window is closed
		_, err := conn.Exec(context.Background(), "SET synchronous_commit = on; "+sql)
		done <- err
		_ = conn.Close(context.Background()) // what counts was reported
	}()
	testenv.Eventually(w.r.tb, 10*time.Second, func() error {
		var waiting int
		err := w.r.connect().QueryRow(w.r.tb.Context(),
			`SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%' || $1`, sql).Scan(&waiting)
		if err == nil && waiting != 1 {
			err = fmt.Errorf("%d commits wait", waiting)
		}
		return err
	})
}

// close lets the commits become visible.
func (w *window) close() {
	if w.done == nil {
		return
	}
	conn, err := pgx.Connect(context.Background(), w.r.dsn)
	if err != nil {
		w.r.tb.Error(err)
		return
	}
	defer conn.Close(context.Background())
	for _, sql := range []string{`ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`} {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			w.r.tb.Error(err)
		}
	}
	for _, done := range w.done {
		if err := <-done; err != nil {
			w.r.tb.Error(err)
		}
	}
	w.done = nil
}

// withoutWaiting makes the bridge's sessions, and the suite's, commit without
// standbys.
func (r *rig) withoutWaiting() {
	r.tb.Helper()
	r.exec(`ALTER SYSTEM SET synchronous_commit = local`)
	r.exec(`SELECT pg_reload_conf()`)
	testenv.Eventually(r.tb, 10*time.Second, func() error {
		if now := r.setting("synchronous_commit"); now != "local" {
			return fmt.Errorf("synchronous_commit is %s", now)
		}
		return nil
	})
}

// A chunk that is read while a commit is in WAL and not yet visible must neither
// put an old row over a newer one nor bring back a deleted one, in a first import
// and in a repair.
func TestWindowBetweenCommitAndVisibility(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t, testenv.Fresh()), testenv.Kafka(t).Brokers(), 2000)
	r.withoutWaiting()
	for i, what := range []string{"first import", "repair"} {
		slow := []string{"--backfill.chunk_rows=50", "--backfill.rows_per_second=400"}
		p := r.start(slow...)
		p.streaming()
		if i > 0 {
			r.succeeds("backfill", "--detach")
		}
		testenv.Eventually(t, 30*time.Second, func() error { // the run has begun: its horizon is below what follows
			if p.imported() == 0 {
				return fmt.Errorf("%s: no row is read", what)
			}
			return nil
		})
		w := r.openWindow()
		at := 1500 + 200*i
		w.commit(fmt.Sprintf(`UPDATE products SET price = 4711.00 WHERE id = %d`, at))
		w.commit(fmt.Sprintf(`DELETE FROM products WHERE id = %d`, at+1))
		w.commit(fmt.Sprintf(`UPDATE products SET id = id + 1000000 WHERE id = %d`, at+2))
		w.commit(fmt.Sprintf(`DELETE FROM products WHERE id = %d; INSERT INTO products (id, name) VALUES (%[1]d, 'reborn')`, at+3))
		w.commit(fmt.Sprintf(`UPDATE products SET stock = 4711 WHERE id = %d`, at+100)) // leaves its large description out
		testenv.Eventually(t, time.Minute, func() error {                               // chunks have passed over the keys
			if rows := p.imported(); rows < int64(at+150) {
				return fmt.Errorf("%s: %d rows are read", what, rows)
			}
			return nil
		})
		w.close()
		p.drained(time.Minute)
		p.stop()
		r.compare()
	}
}

// A table that joins the publication while a transaction is writing to it: what
// that one wrote before is not streamed, and it is not visible to the first
// snapshots. The import waits for it.
func TestTableJoinsWhileATransactionRuns(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t, testenv.Fresh()), testenv.Kafka(t).Brokers(), 100)
	p := r.start()
	p.drained(time.Minute)
	p.stop()
	r.exec(`CREATE TABLE orders (id int PRIMARY KEY, state text)`)
	r.exec(`INSERT INTO orders SELECT g, 'old' FROM generate_series(1, 10) g`)
	late := r.connect()
	for _, sql := range []string{`BEGIN`, `INSERT INTO orders VALUES (11, 'late')`, `UPDATE orders SET state = 'late' WHERE id = 1`} {
		if _, err := late.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	topic := strings.TrimSuffix(r.topics[0], ".events") + ".orders"
	r.add("products.yaml", fmt.Sprintf(`
  - table: orders
    aggregate: Order
    topics: {events: %s.events, latest: %[1]s.latest, partitions: 1, replication: 1}
`, topic))
	p = r.start()
	p.streaming()
	testenv.Eventually(t, 30*time.Second, func() error {
		if !strings.Contains(p.said(), "backfill waits for running transactions") {
			return errors.New("the import does not wait")
		}
		return nil
	})
	if _, err := late.Exec(t.Context(), `UPDATE orders SET state = 'later' WHERE id = 2`); err != nil {
		t.Fatal(err)
	}
	if _, err := late.Exec(t.Context(), `COMMIT`); err != nil {
		t.Fatal(err)
	}
	p.drained(time.Minute)
	p.stop()
	latest, _, err := audit.ReadTopic(t.Context(), r.brokers, topic+".latest")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, l := range latest {
		got[l.Key] = string(l.Value)
	}
	want := map[string]string{"1": `{"id":1,"state":"late"}`, "2": `{"id":2,"state":"later"}`, "11": `{"id":11,"state":"late"}`}
	for i := 3; i <= 10; i++ {
		want[fmt.Sprint(i)] = fmt.Sprintf(`{"id":%d,"state":"old"}`, i)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// add appends to a file of the rig.
func (r *rig) add(name, text string) {
	r.tb.Helper()
	old, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		r.tb.Fatal(err)
	}
	r.write(name, string(old)+text)
}
