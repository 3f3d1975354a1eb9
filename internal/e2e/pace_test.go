package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// standby is a session that streams WAL as a physical standby does, and says that
// it has replayed it up to where the test wants.
type standby struct {
	r    *rig
	conn *pgconn.PgConn
}

func (r *rig) standby() *standby {
	r.tb.Helper()
	cfg, err := pgconn.ParseConfig(r.dsn)
	if err != nil {
		r.tb.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "true"
	conn, err := pgconn.ConnectConfig(r.tb.Context(), cfg)
	if err != nil {
		r.tb.Fatal(err)
	}
	r.exec(`SELECT pg_create_physical_replication_slot('standby')`)
	s := &standby{r: r, conn: conn}
	err = pglogrepl.StartReplication(r.tb.Context(), conn, "standby", s.end(), pglogrepl.StartReplicationOptions{Mode: pglogrepl.PhysicalReplication})
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() { _ = conn.Close(context.Background()) }) // the test is over
	return s
}

// end is the end of the server's WAL.
func (s *standby) end() pglogrepl.LSN {
	s.r.tb.Helper()
	return s.r.lsn(`SELECT pg_current_wal_flush_lsn()::text`)
}

// replayed reports a position, and takes what the server has sent meanwhile.
func (s *standby) replayed(at pglogrepl.LSN) {
	s.r.tb.Helper()
	err := pglogrepl.SendStandbyStatusUpdate(s.r.tb.Context(), s.conn,
		pglogrepl.StandbyStatusUpdate{WALWritePosition: at, WALFlushPosition: at, WALApplyPosition: at})
	if err != nil {
		s.r.tb.Fatal(err)
	}
	for {
		ctx, cancel := context.WithTimeout(s.r.tb.Context(), 200*time.Millisecond)
		_, err := s.conn.ReceiveMessage(ctx)
		cancel()
		if err != nil {
			return // nothing more at hand
		}
	}
}

// A backfill waits for a standby that lags behind, and goes on when it has caught up.
func TestBackfillWaitsForAStandby(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t, testenv.Fresh()), testenv.Kafka(t).Brokers(), 3000)
	s := r.standby()
	s.replayed(s.end())
	old := s.end()
	r.exec(`CREATE TABLE other AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)`)
	s.replayed(old)
	p := r.start("--backfill.max_standby_lag_bytes=1MiB", "--backfill.chunk_rows=100")
	p.streaming()
	phase := func(want string) error {
		s, err := p.status()
		if err == nil && s.Tables[0].Backfill.Phase != want {
			err = fmt.Errorf("phase %s, want %s", s.Tables[0].Backfill.Phase, want)
		}
		return err
	}
	testenv.Eventually(t, 20*time.Second, func() error { return phase("waiting for a standby") })
	if rows := p.imported(); rows > 0 {
		t.Errorf("%d rows were read while the standby lags", rows)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		s.replayed(s.end())
		return phase("done")
	})
	p.drained(time.Minute)
	p.stop()
	r.compare()
}

// A mapping that changes while the bridge is down: it says what has changed and
// publishes the difference; what would tear a history apart is refused.
func TestChangedMapping(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 300)
	p := r.start()
	p.drained(time.Minute)
	p.stop()
	before := len(r.records(r.topics[0]))
	r.edit("products.yaml", "    events:\n", "    fields: {stock: quantity}\n    omit: [weight]\n    events:\n")
	r.edit("products.yaml", "when: [stock]", "when: [quantity]")
	p = r.start()
	p.drained(time.Minute)
	for _, says := range []string{"field stock is now quantity", "column weight: left out", "events: were PriceChanged (price), StockAdjusted (stock)"} {
		if !strings.Contains(p.said(), says) {
			t.Errorf("the log does not say %q:\n%s", says, p.said())
		}
	}
	r.equal(300)
	p.stop()
	events, latest := r.records(r.topics[0]), r.records(r.topics[1])
	if len(events) < before+300 {
		t.Errorf("%d events, then %d: each row has a new field", before, len(events))
	}
	newest := map[string]audit.Record{}
	for _, l := range latest {
		newest[l.Key] = l
	}
	for key, l := range newest {
		for _, part := range []string{`"stock":null`, `"weight":null`, `"quantity":`} {
			if !strings.Contains(string(l.Value), part) {
				t.Fatalf("latest of key %s: %s, want %s in it", key, l.Value, part)
			}
		}
	}
	r.edit("products.yaml", r.topics[1], r.topics[1]+".other")
	if code, _, errs := r.command("run"); code != 3 || !strings.Contains(errs, "its latest topic was") {
		t.Errorf("another topic: exit code %d, %s; want 3", code, tail(errs, 600))
	}
}

// Two tables are read side by side, a third waits, and each is told on its own.
func TestBackfillOfSeveralTables(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 500)
	for _, name := range []string{"first", "second"} {
		r.exec(fmt.Sprintf(`CREATE TABLE %s (id int PRIMARY KEY, n int)`, name))
		r.exec(fmt.Sprintf(`INSERT INTO %s SELECT g, g FROM generate_series(1, 500) g`, name))
		r.add("products.yaml", fmt.Sprintf(`
  - table: %s
    aggregate: %[1]s
    topics: {events: %[2]s.%[1]s.events, latest: %[2]s.%[1]s.latest, partitions: 2, replication: 1}
`, name, r.slot()))
	}
	p := r.start()
	p.drained(time.Minute)
	r.succeeds("backfill", "--detach", "--parallel", "2", "--rows-per-second", "400", "--chunk-rows", "50")
	testenv.Eventually(t, 20*time.Second, func() error {
		s, err := p.status()
		if err != nil {
			return err
		}
		phases := map[string]int{}
		for _, table := range s.Tables {
			phases[table.Backfill.Phase]++
		}
		if phases["running"] != 2 || phases["waiting"] != 1 {
			return fmt.Errorf("phases %v, want two running and one waiting", phases)
		}
		return nil
	})
	p.drained(time.Minute)
	p.stop()
	r.compare()
}
