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
	"github.com/jackc/pgx/v5"

	"backstory/capture"
	"backstory/internal/testenv"
)

// Regressions for what others have lost at this end; internal/e2e/DESIGN.md has
// the list of traps and of the tests that cover them.

// session is a connection of the legacy application; the test's end closes it.
func (s *shop) session(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // the test is over
	return conn
}

func say(t *testing.T, conn *pgx.Conn, sql ...string) {
	t.Helper()
	for _, text := range sql {
		if _, err := conn.Exec(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
}

// A savepoint that is rolled back in a transaction so large that the server spills
// it: none of its rows is seen, and all others are.
func TestTrapSavepointOfALargeTransaction(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	major := serverMajor(t, s)
	var settings []string
	if major >= 13 {
		settings = append(settings, "logical_decoding_work_mem=64")
	}
	stream := openStream(t, s.database(t, quiet, settings...), 0)
	s.exec(t, `BEGIN; INSERT INTO products SELECT i, repeat('x', 200) FROM generate_series(1, 5000) i;
		SAVEPOINT a; INSERT INTO products SELECT i, repeat('y', 200) FROM generate_series(5001, 10000) i; DELETE FROM products WHERE id < 100;
		SAVEPOINT b; UPDATE products SET name = 'z' WHERE id < 200; RELEASE b; ROLLBACK TO a;
		SAVEPOINT c; INSERT INTO products VALUES (20000); RELEASE c; COMMIT`)
	changes, _ := collect(t, stream, 5001)
	for i, c := range brief(changes) {
		id := i + 1
		if i == 5000 {
			id = 20000
		}
		if want := fmt.Sprintf(`%d insert public.products new id="%d"`, i+1, id); !strings.HasPrefix(c, want) {
			t.Fatalf("got %s, want %s", c, want)
		}
	}
	if len(changes) != 5001 {
		t.Errorf("got %d changes, want 5001", len(changes))
	}
	if major >= 14 {
		testenv.Eventually(t, patience, func() error { // the server reports when it has decoded
			var spilled int64
			err := s.session(t).QueryRow(t.Context(), `SELECT spill_bytes FROM pg_stat_replication_slots WHERE slot_name = $1`, s.slot).Scan(&spilled)
			if err == nil && spilled == 0 {
				err = errors.New("the server has spilled nothing: the test proves nothing")
			}
			return err
		})
	}
}

// A transaction whose rows stand in WAL before another's commit, and whose commit
// record begins where that one's ends: after a confirmation of the first to commit
// the whole second one comes. An LSN of a row as filter, and <= in place of <,
// would lose it.
func TestTrapCommitAtThePredecessorsEnd(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t, testenv.Fresh()))
	db := s.database(t, quiet)
	early, late := s.session(t), s.session(t)
	equal := false
	var start capture.LSN
	for try := 1; try <= 20 && !equal; try++ {
		stream := openStream(t, db, start)
		say(t, late, "BEGIN", fmt.Sprintf("INSERT INTO products VALUES (%d)", 2*try))
		say(t, early, fmt.Sprintf("INSERT INTO products VALUES (%d)", 2*try+1))
		say(t, late, "COMMIT")
		ctx := bounded(t)
		var end, next capture.LSN // of the first to commit; commit of the second
		for next == 0 {
			batch, err := stream.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			first := false
			for _, c := range batch.Changes {
				switch string(c.New[0].Data) {
				case fmt.Sprint(2*try + 1):
					first = true
				case fmt.Sprint(2 * try):
					next = c.Pos.LSN
				}
			}
			switch {
			case next == 0:
				end = batch.End
			case first: // both came in one batch: the end is where the second begins
				end = next
			}
		}
		equal = end == next
		stream.Confirm(end)
		if err := stream.Close(); err != nil {
			t.Fatal(err)
		}
		again := openStream(t, db, end)
		changes, last := collect(t, again, 1)
		if want := fmt.Sprintf(`1 insert public.products new id="%d"`, 2*try); !strings.HasPrefix(brief(changes)[0], want) {
			t.Fatalf("after the confirmation of %s: got %s, want %s", end, brief(changes)[0], want)
		}
		start = last.End
		again.Confirm(start)
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !equal {
		t.Error("no commit LSN was its predecessor's end: the test proves little")
	}
}

// What was confirmed last is forgotten when the server is killed, unless it had
// another reason to save the slot. A session that starts at the position of the own
// state does not get it again, and one that starts where the slot is gets the same
// bytes.
func TestTrapConfirmationForgottenInACrash(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t, testenv.Fresh()))
	db := s.database(t, quiet)
	var first []string
	var last capture.Batch
	forgotten := false
	for try := 1; try <= 10 && !forgotten; try++ {
		stream := openStream(t, db, last.End)
		var rounds [2][]string
		for round := range rounds { // the first confirmation may be saved, because it lets go of WAL too
			s.exec(t, fmt.Sprintf("INSERT INTO products VALUES (%d), (%d)", 4*try+2*round, 4*try+2*round+1))
			rounds[round], last = collect(t, stream, 2)
			stream.Confirm(last.End)
			s.confirmed(t, db, last.End)
		}
		first = rounds[1]
		s.Kill9(t)
		s.Restart(t)
		if err := stream.Close(); err != nil {
			t.Fatal(err)
		}
		forgotten = s.status(t, db).Confirmed < last.End
	}
	if !forgotten {
		t.Fatal("the server has forgotten nothing: the test proves nothing")
	}
	again := openStream(t, db, 0)
	var changes []string
	for len(changes) == 0 || changes[len(changes)-1] < first[1] { // positions sort as text; the first round may come too
		more, _ := collect(t, again, 1)
		changes = append(changes, more...)
	}
	if diff := cmp.Diff(first, changes[len(changes)-2:]); diff != "" {
		t.Errorf("from where the slot is (-first +again):\n%s", diff)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	s.exec(t, "DELETE FROM products WHERE id = 4")
	changes, _ = collect(t, openStream(t, db, last.End), 1)
	if got := brief(changes); len(got) != 1 || !strings.HasPrefix(got[0], "1 delete") {
		t.Errorf("from the state's position: got %q, want the delete alone", got)
	}
}

// confirmed waits until the server knows a confirmation.
func (s *shop) confirmed(t *testing.T, db *capture.Database, lsn capture.LSN) {
	t.Helper()
	testenv.Eventually(t, patience, func() error {
		if got := s.status(t, db).Confirmed; got != lsn {
			return fmt.Errorf("confirmed %s, want %s", got, lsn)
		}
		return nil
	})
}

// A status says how far the bridge has confirmed, not how far it has read: a
// status of zero as the flushed position would mean the written one.
func TestTrapStatusConfirmsNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	if serverMajor(t, s) < 12 {
		t.Skip("wal_sender_timeout is a setting of the session from Postgres 12 on")
	}
	db := s.database(t, quiet, "wal_sender_timeout=1000")
	before := s.status(t, db).Confirmed
	stream := openStream(t, db, 0)
	s.exec(t, "INSERT INTO products VALUES (1)")
	_, last := collect(t, stream, 1)
	begun := time.Now()
	testenv.Eventually(t, patience, func() error { // some statuses, each a third of a second after the other
		if rest := 2*time.Second - time.Since(begun); rest > 0 {
			return fmt.Errorf("%s are left", rest)
		}
		return nil
	})
	if got := s.status(t, db); got.Confirmed != before || got.ActivePID == 0 {
		t.Errorf("confirmed %s by session %d, want %s as before: nobody has called Confirm", got.Confirmed, got.ActivePID, before)
	}
	stream.Confirm(last.End)
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
}

// The rows of a COPY have one LSN, and a message has that of the row after it: the
// ordinal tells them apart, and messages do not count.
func TestTrapRowsThatShareAnLSN(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	conn := s.session(t)
	say(t, conn, "BEGIN", "SELECT pg_logical_emit_message(true, 'someone', 'x')")
	if _, err := conn.PgConn().CopyFrom(t.Context(), strings.NewReader("1\n2\n3\n"), "COPY products (id) FROM STDIN"); err != nil {
		t.Fatal(err)
	}
	say(t, conn, "SELECT pg_logical_emit_message(true, 'someone', 'x')", "UPDATE products SET name = 'x' WHERE id = 1", "COMMIT")
	changes, _ := collect(t, openStream(t, s.database(t, quiet), 0), 4)
	want := []string{
		`1 insert public.products new id="1" name=null price=null image=null`,
		`2 insert public.products new id="2" name=null price=null image=null`,
		`3 insert public.products new id="3" name=null price=null image=null`,
		`4 update public.products new id="1" name="x" price=null image=null`,
	}
	if diff := cmp.Diff(want, brief(changes)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// A transaction of a replication origin has a message more behind its BEGIN.
func TestTrapOrigin(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	conn := s.session(t)
	say(t, conn, fmt.Sprintf("SELECT pg_replication_origin_create('%s')", s.slot), fmt.Sprintf("SELECT pg_replication_origin_session_setup('%s')", s.slot),
		"INSERT INTO products VALUES (1)", "SELECT pg_replication_origin_session_reset()", fmt.Sprintf("SELECT pg_replication_origin_drop('%s')", s.slot))
	changes, _ := collect(t, openStream(t, s.database(t, quiet), 0), 1)
	if want := []string{`1 insert public.products new id="1" name=null price=null image=null`}; !cmp.Equal(want, brief(changes)) {
		t.Errorf("got %q, want %q", brief(changes), want)
	}
}

// Generated columns are not in WAL: a row has fewer values than the table columns.
func TestTrapGeneratedColumn(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	if serverMajor(t, s) < 12 {
		t.Skip("generated columns are there from Postgres 12 on")
	}
	s.exec(t, `ALTER TABLE products ADD twice int GENERATED ALWAYS AS (id * 2) STORED, ADD stock int`, `INSERT INTO products VALUES (1)`)
	changes, _ := collect(t, openStream(t, s.database(t, quiet), 0), 1)
	if want := []string{`1 insert public.products new id="1" name=null price=null image=null stock=null`}; !cmp.Equal(want, brief(changes)) {
		t.Errorf("got %q, want %q", brief(changes), want)
	}
}

// The creation of the slot waits for transactions that write: it says for which,
// ends with its context, and leaves nothing behind.
func TestTrapSlotWaitsForWriters(t *testing.T) {
	t.Parallel()
	l := newLegacy(t, testenv.Postgres(t, testenv.Fresh()), `CREATE TABLE products (id int PRIMARY KEY)`)
	conn := l.session(t)
	say(t, conn, "BEGIN", "INSERT INTO products VALUES (1)")
	var log strings.Builder
	db, err := capture.NewDatabase(l.config(), []capture.TableRef{table("products")}, slog.New(slog.NewTextHandler(&log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if _, err := db.Prepare(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
	if want := fmt.Sprintf("pid %d", conn.PgConn().PID()); !strings.Contains(log.String(), want) {
		t.Errorf("the log does not name %s:\n%s", want, log.String())
	}
	if left := l.leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	say(t, conn, "COMMIT")
	if p := prepare(t, db); !p.Slot.Created {
		t.Error("once the transaction is over no slot was made")
	}
}

// A slot that the server has given up, because it would have kept too much WAL,
// is refused, by the preflight and by a session that streams from it.
func TestTrapLostSlot(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t, testenv.PGSetting("max_slot_wal_keep_size", "1MB"), testenv.PGSetting("max_wal_size", "48MB"),
		testenv.PGSetting("wal_keep_size", "0"), testenv.PGSetting("min_wal_size", "32MB")))
	if serverMajor(t, s) < 13 {
		t.Skip("max_slot_wal_keep_size is there from Postgres 13 on")
	}
	db := s.database(t, quiet)
	prepare(t, db)
	stream := openStream(t, db, 0)
	for range 6 {
		s.exec(t, "INSERT INTO other SELECT coalesce(max(id), 0) + 1 FROM other", "SELECT pg_switch_wal()", "CHECKPOINT")
	}
	if got := s.status(t, db); !got.Lost() {
		t.Fatalf("the slot is %s: the test proves nothing", got.Status)
	}
	var err error
	for err == nil {
		_, err = stream.Next(bounded(t))
	}
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	var refusal *capture.Refusal
	if _, err := db.Open(bounded(t), 0); !errors.As(err, &refusal) || !strings.Contains(refusal.Cure, "backfill") {
		t.Errorf("Open: got %v, want a refusal that names the repair", err)
	}
	if _, err := db.Prepare(t.Context()); !errors.As(err, &refusal) || !strings.Contains(err.Error(), "backfill") {
		t.Errorf("Prepare: got %v, want a refusal that names the repair", err)
	}
}
