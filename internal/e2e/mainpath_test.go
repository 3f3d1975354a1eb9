package e2e_test

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// commit lets n writers commit until budget row changes are done.
func (r *rig) commit(n int, budget int64, keys int64, truncate bool, giant int64) {
	r.tb.Helper()
	var changes atomic.Int64
	g, ctx := errgroup.WithContext(r.tb.Context())
	for i := range n {
		w := audit.Writer{DSN: r.dsn, Seed: 1, Serial: i, Keys: keys, Truncate: truncate, Changes: &changes, Budget: budget}
		g.Go(func() error { return w.Run(ctx) })
	}
	if giant > 0 {
		w := audit.Writer{DSN: r.dsn, Changes: &changes}
		g.Go(func() error { return w.Giant(ctx, giant) })
	}
	if err := g.Wait(); err != nil {
		r.tb.Fatal(err)
	}
}

// 100,000 changes of all kinds, one transaction of 50,000 rows among them, are
// told as the writers committed them.
func TestMainPath(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 5000)
	p := r.start()
	p.streaming() // the slot is there: from here on nothing may be missing
	r.commit(4, 100_000, 2000, true, 50_000)
	p.drained(3 * time.Minute)
	p.stop()
	report := r.compare()
	if report.Events < 100_000 {
		t.Errorf("%d events, want at least 100000", report.Events)
	}
}

// The same on each version of Postgres, with a small load.
func TestPostgresVersions(t *testing.T) {
	for _, version := range []string{"10", "13", "14", "15", "16", "17", "18"} {
		t.Run(version, func(t *testing.T) {
			r := newRig(t, testenv.Postgres(t, testenv.Fresh(), testenv.PGVersion(version)), testenv.Kafka(t).Brokers(), 300)
			p := r.start()
			p.streaming()
			r.commit(2, 3000, 200, version != "10", 0)
			p.drained(time.Minute)
			p.stop()
			r.compare()
		})
	}
}

// A bridge that is killed while writers write goes on where it stopped.
func TestKilledTenTimes(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 2000)
	p := r.start()
	p.streaming()
	written := make(chan struct{})
	go func() { // ends with the writers' budget
		defer close(written)
		r.commit(3, 40_000, 500, true, 0)
	}()
	for i := range 10 {
		select {
		case <-time.After(time.Duration(100+i*150) * time.Millisecond):
		case <-written:
		}
		p.kill()
		p = r.start()
		p.streaming()
	}
	<-written
	p.drained(2 * time.Minute)
	p.stop()
	r.compare()
}
