package capture_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"backstory/capture"
	"backstory/internal/testenv"
)

// patience bounds every wait of these tests.
const patience = time.Minute

// shop is a database with a slot on public.products.
type shop struct {
	*testenv.PG
	dsn  string
	slot string
}

// newShop makes the table, a second published one (public.other), which is not
// mapped, the publication and the slot.
func newShop(t *testing.T, pg *testenv.PG) *shop {
	t.Helper()
	s := &shop{PG: pg, dsn: pg.Database(t)}
	s.slot = s.dsn[strings.LastIndex(s.dsn, "/")+1:]
	if i := strings.IndexByte(s.slot, '?'); i >= 0 {
		s.slot = s.slot[:i]
	}
	s.exec(t, `CREATE TABLE products (id int PRIMARY KEY, name text, price numeric(10,2), image text);
		CREATE TABLE other (id int PRIMARY KEY);
		CREATE PUBLICATION "my ""pub'" FOR TABLE products, other`,
		fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", s.slot))
	return s
}

func (s *shop) exec(t *testing.T, sql ...string) {
	t.Helper()
	s.Exec(t, s.dsn, sql...)
}

// database is the capture side of the shop. settings are of the connection.
func (s *shop) database(t *testing.T, log *slog.Logger, settings ...string) *capture.Database {
	t.Helper()
	cfg := capture.DefaultConfig()
	cfg.DSN, cfg.Slot, cfg.Publication = s.dsn, s.slot, `my "pub'`
	for _, setting := range settings {
		sep := "?"
		if strings.Contains(cfg.DSN, "?") {
			sep = "&"
		}
		cfg.DSN += sep + setting
	}
	tables := []capture.TableRef{{Schema: "public", Name: "products"}}
	db, err := capture.NewDatabase(cfg, tables, log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// bounded is the test's context with a bound on every wait.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

var quiet = slog.New(slog.DiscardHandler)

func openStream(t *testing.T, db *capture.Database, start capture.LSN) *capture.Stream {
	t.Helper()
	stream, err := db.Open(bounded(t), start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
	})
	return stream
}

// collect describes the next n changes and those that come with them, and
// returns the last batch, whose changes are no longer valid.
func collect(t *testing.T, stream *capture.Stream, n int) (changes []string, last capture.Batch) {
	t.Helper()
	ctx := bounded(t)
	for len(changes) < n {
		batch, err := stream.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of %d changes: %v", len(changes), n, err)
		}
		for i := range batch.Changes {
			changes = append(changes, describe(&batch.Changes[i]))
		}
		if batch.Reached < last.Reached || batch.End < last.End || batch.Reached < batch.End {
			t.Fatalf("positions went back: got %s and %s after %s and %s", batch.Reached, batch.End, last.Reached, last.End)
		}
		last = *batch
	}
	return changes, last
}

// describe writes a change on one line, with all that redelivery must repeat.
func describe(c *capture.Change) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s xid=%d time=%d %s.%s", c.Pos, c.Op, c.XID, c.Time, c.Relation.Schema, c.Relation.Name)
	values := func(title string, values []capture.Value) {
		if len(values) == 0 {
			return
		}
		fmt.Fprintf(&b, " %s", title)
		for i, v := range values {
			text := []string{capture.Absent: "absent", capture.Null: "null", capture.Unchanged: "unchanged", capture.Text: fmt.Sprintf("%.40q", v.Data)}
			fmt.Fprintf(&b, " %s=%s", c.Relation.Columns[i].Name, text[v.Kind])
		}
	}
	values("new", c.New)
	if c.OldFull {
		values("old row", c.Old)
	} else {
		values("old key", c.Old)
	}
	if c.Context != nil {
		fmt.Fprintf(&b, " context %s %q %q %q", c.Context.Reason, c.Context.Actor, c.Context.CorrelationID, c.Context.CausationID)
	}
	return b.String()
}

// brief cuts what differs from run to run: position, xid and time.
func brief(changes []string) []string {
	cut := make([]string, len(changes))
	for i, c := range changes {
		_, rest, _ := strings.Cut(c, " change ")
		ordinal, rest, _ := strings.Cut(rest, " ")
		op, rest, _ := strings.Cut(rest, " ")
		cut[i] = ordinal + " " + op + rest[strings.Index(rest, " public."):]
	}
	return cut
}

// status is what the server says of the slot.
func (s *shop) status(t *testing.T, db *capture.Database) capture.SlotStatus {
	t.Helper()
	status, err := db.SlotStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// serverMajor is the server's major version.
func serverMajor(t *testing.T, s *shop) int {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var major int
	if _, err := fmt.Sscan(strings.FieldsFunc(conn.ParameterStatus("server_version"), func(r rune) bool { return r < '0' || r > '9' })[0], &major); err != nil {
		t.Fatal(err)
	}
	return major
}

func TestStreamRedeliversTheSameBytes(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	s.exec(t, "ALTER TABLE products ALTER image SET STORAGE EXTERNAL",
		"INSERT INTO products SELECT i, 'p' || i, i, repeat(md5(i::text), 100) FROM generate_series(1, 3000) i",
		`BEGIN; INSERT INTO other VALUES (1); UPDATE products SET price = 9 WHERE id <= 3; SAVEPOINT a; DELETE FROM products;
		 ROLLBACK TO a; DELETE FROM other; ALTER TABLE products ADD stock int; UPDATE products SET stock = 7, image = NULL WHERE id = 2;
		 SELECT pg_logical_emit_message(true, 'backstory.context', '{"reason":"sale"}'); COMMIT`,
		"UPDATE products SET id = 5000 WHERE id = 1", "TRUNCATE other, products")
	want := []string{
		`2 update public.products new id="1" name="p1" price="9.00" image=unchanged context "sale" "" "" ""`,
		`3 update public.products new id="2" name="p2" price="9.00" image=unchanged context "sale" "" "" ""`,
		`4 update public.products new id="3" name="p3" price="9.00" image=unchanged context "sale" "" "" ""`,
		`6 update public.products new id="2" name="p2" price="9.00" image=null stock="7" context "sale" "" "" ""`,
		`1 update public.products new id="5000" name="p1" price="9.00" image=unchanged stock=null old key id="1" name=absent price=absent image=absent stock=absent`,
		`2 truncate public.products`,
	}
	n := 3000 + len(want)
	first := openStream(t, s.database(t, quiet), 0)
	changes, _ := collect(t, first, n)
	if diff := cmp.Diff(want, brief(changes[3000:])); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	for i, c := range brief(changes[:3000]) {
		if want := fmt.Sprintf(`%d insert public.products new id="%[1]d"`, i+1); !strings.HasPrefix(c, want) {
			t.Fatalf("got %s, want %s", c, want)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, _ := collect(t, openStream(t, s.database(t, quiet), 0), n)
	if diff := cmp.Diff(changes, again); diff != "" {
		t.Errorf("at redelivery (-first +second):\n%s", diff)
	}
}

func TestStreamConfirms(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	db := s.database(t, quiet)
	stream := openStream(t, db, 0)
	s.exec(t, "INSERT INTO products VALUES (1), (2)", "INSERT INTO products VALUES (3)")
	_, last := collect(t, stream, 3)
	stream.Confirm(last.End + 1<<30) // cut to End
	stream.Confirm(1)                // ignored
	testenv.Eventually(t, time.Minute, func() error {
		if got := s.status(t, db).Confirmed; got != last.End {
			return fmt.Errorf("confirmed: got %s, want %s", got, last.End)
		}
		return nil
	})
	s.exec(t, "INSERT INTO products VALUES (4)")
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	changes, _ := collect(t, openStream(t, db, last.End), 1)
	if want := []string{`1 insert public.products new id="4" name=null price=null image=null`}; !cmp.Equal(want, brief(changes)) {
		t.Errorf("after the confirmed position: got %q, want %q", brief(changes), want)
	}
}

func TestStreamCloseReportsTheLastConfirm(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	db := s.database(t, quiet)
	stream := openStream(t, db, 0)
	s.exec(t, "INSERT INTO products VALUES (1)")
	_, last := collect(t, stream, 1)
	stream.Confirm(last.End)
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.status(t, db); got.Confirmed != last.End || got.ActivePID != 0 {
		t.Errorf("after Close: confirmed %s, want %s; active %d, want 0", got.Confirmed, last.End, got.ActivePID)
	}
	if _, err := stream.Next(t.Context()); err == nil {
		t.Error("Next after Close: got no error")
	}
}

// An idle table in a busy database must not make WAL pile up.
func TestStreamProgressOnAnIdleTable(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	s.exec(t, "CREATE TABLE unpublished (t text)")
	db := s.database(t, quiet)
	stream := openStream(t, db, 0)
	for range 3 {
		s.exec(t, "INSERT INTO unpublished SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
		target := s.status(t, db).Current
		for reached := capture.LSN(0); reached < target; {
			batch, err := stream.Next(bounded(t))
			if err != nil {
				t.Fatal(err)
			}
			if len(batch.Changes) > 0 {
				t.Fatalf("got %d changes, want none", len(batch.Changes))
			}
			reached = batch.Reached
			stream.Confirm(batch.End)
		}
		testenv.Eventually(t, 60*time.Second, func() error {
			if got := s.status(t, db).Confirmed; got < target {
				return fmt.Errorf("confirmed: got %s, want %s or more", got, target)
			}
			return nil
		})
	}
}

// A message marks a place, as the only thing in its transaction (a chunk's
// watermark) or outside of any; it must be reached promptly, although progress
// alone is reported once a second.
func TestStreamReachesWatermarksPromptly(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	stream := openStream(t, s.database(t, quiet), 0)
	if serverMajor(t, s) < 14 {
		t.Skip("messages are delivered from Postgres 14 on")
	}
	begun := time.Now()
	for i := range 60 {
		s.exec(t, fmt.Sprintf("SELECT pg_logical_emit_message(%t, 'backstory.watermark', '')", i%2 == 0))
		target := s.status(t, s.database(t, quiet)).Current
		for reached := capture.LSN(0); reached < target; {
			batch, err := stream.Next(bounded(t))
			if err != nil {
				t.Fatal(err)
			}
			reached = batch.Reached
		}
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("60 watermarks took %s", took)
	}
}

// The slot must be kept while the consumer waits for something else.
func TestStreamKeepsTheSlotWhileNobodyCallsNext(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	if serverMajor(t, s) < 12 {
		t.Skip("wal_sender_timeout is a setting of the session from Postgres 12 on")
	}
	db := s.database(t, quiet, "wal_sender_timeout=1000")
	stream := openStream(t, db, 0)
	s.exec(t, "INSERT INTO products SELECT i, repeat('x', 1000) FROM generate_series(1, 40000) i") // more than the buffers in between hold
	collect(t, stream, 1)
	begun := time.Now()
	testenv.Eventually(t, patience, func() error {
		if status := s.status(t, db); status.ActivePID == 0 {
			t.Fatal("the server ended the session")
		}
		if rest := 4*time.Second - time.Since(begun); rest > 0 {
			return fmt.Errorf("%s are left", rest)
		}
		return nil
	})
	collect(t, stream, 30000)
}

func TestStreamStandsByUntilTheSlotIsFree(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	first := openStream(t, s.database(t, quiet), 0)

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var log strings.Builder
	waiting := s.database(t, slog.New(slog.NewTextHandler(&log, nil)))
	if _, err := waiting.Open(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the slot is taken: got %v, want %v", err, context.DeadlineExceeded)
	}
	if got := strings.Count(log.String(), "standing by"); got != 1 {
		t.Errorf("got %d messages, want 1: %s", got, log.String())
	}

	done := make(chan error, 1)
	go func() {
		stream, err := waiting.Open(bounded(t), 0)
		if err == nil {
			err = stream.Close()
		}
		done <- err
	}()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("once the slot is free: %v", err)
	}
}

func TestStreamEnds(t *testing.T) {
	t.Parallel()
	restart := func(err error) error {
		var lost interface{ Restart() bool }
		if !errors.As(err, &lost) || !lost.Restart() {
			return fmt.Errorf("got %w, want an error that asks for a restart", err)
		}
		return nil
	}
	refused := func(err error) error {
		var refusal *capture.Refusal
		if !errors.As(err, &refusal) {
			return fmt.Errorf("got %w, want a refusal", err)
		}
		return nil
	}
	tests := []struct {
		name string
		do   []string // SLOT stands for the slot
		want func(error) error
	}{
		{"session terminated", []string{"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'SLOT'"}, restart},
		{"publication dropped", []string{`DROP PUBLICATION "my ""pub'"`, "INSERT INTO products VALUES (1)"}, refused},
		{"table renamed", []string{"INSERT INTO products VALUES (1)", "ALTER TABLE products RENAME TO goods", "INSERT INTO goods VALUES (2)"}, refused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t, testenv.Postgres(t))
			stream := openStream(t, s.database(t, quiet), 0)
			for _, sql := range tt.do {
				s.exec(t, strings.ReplaceAll(sql, "SLOT", s.slot))
			}
			var err error
			for err == nil {
				_, err = stream.Next(bounded(t))
			}
			if problem := tt.want(err); problem != nil {
				t.Fatal(problem)
			}
			if _, again := stream.Next(t.Context()); again != err {
				t.Errorf("the following call: got %v, want the same error", again)
			}
		})
	}
}

func TestStreamSurvivesTheEndOfAContext(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	stream := openStream(t, s.database(t, quiet), 0)
	for i := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		for {
			if _, err := stream.Next(ctx); errors.Is(err, context.DeadlineExceeded) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		s.exec(t, fmt.Sprintf("INSERT INTO products VALUES (%d)", i))
		collect(t, stream, 1)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	db := s.database(t, quiet)
	var refusal *capture.Refusal
	_, err := db.Open(bounded(t), s.status(t, db).Current+1<<40)
	if !errors.As(err, &refusal) || !strings.Contains(refusal.Problem, "WAL ends") {
		t.Errorf("a position above the end of WAL: got %v, want a refusal", err)
	}
	s.exec(t, fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", s.slot))
	if _, err := db.Open(bounded(t), 0); !errors.As(err, &refusal) || !strings.Contains(refusal.Problem, "does not exist") {
		t.Errorf("a missing slot: got %v, want a refusal", err)
	}
}

func TestStreamExplainsTypes(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	s.exec(t, `CREATE DOMAIN cents AS int8; CREATE DOMAIN price_tag AS cents; CREATE DOMAIN tags AS text[];
		CREATE TYPE size AS ENUM ('s', 'l'); CREATE DOMAIN shirt AS size;
		DROP TABLE products; CREATE TABLE products (id int PRIMARY KEY, a price_tag, b tags, c size[], d shirt, e int4[], f size, g point);
		ALTER PUBLICATION "my ""pub'" ADD TABLE products`)
	if serverMajor(t, s) >= 11 {
		s.exec(t, "ALTER TABLE products ADD h price_tag[]")
	} else {
		s.exec(t, "ALTER TABLE products ADD h int8[]")
	}
	s.exec(t, "INSERT INTO products VALUES (1)")
	stream := openStream(t, s.database(t, quiet), 0)
	batch, err := stream.Next(bounded(t))
	for err == nil && len(batch.Changes) == 0 {
		batch, err = stream.Next(bounded(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	const int4, int8, text, textArray, int4Array, point = 23, 20, 25, 1009, 1007, 600
	var size uint32
	got := map[string][2]uint32{}
	for _, c := range batch.Changes[0].Relation.Columns {
		got[c.Name] = [2]uint32{c.Base, c.Elem}
		if c.Name == "f" {
			size = c.OID
		}
	}
	want := map[string][2]uint32{
		"id": {int4}, "a": {int8}, "b": {textArray, text}, "d": {size}, "e": {int4Array, int4}, "f": {size}, "g": {point},
		"c": {got["c"][0], size}, "h": {got["h"][0], int8},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("base and element types (-want +got):\n%s", diff)
	}
}
