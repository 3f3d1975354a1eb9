package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"backstory/internal/e2e/audit"
	"backstory/internal/pgserver"
	"backstory/internal/testenv"
)

// options of a run.
type options struct {
	seed   uint64
	faults int
	check  int    // faults between two comparisons
	dir    string // states, configuration, logs
	only   string // names of faults
	log    io.Writer

	writers int
	keys    int64
	rows    int // that stand before the audit
	pause   time.Duration
	// alter changes the table's columns meanwhile. A key that is changed in the lag behind
	// two such changes has a large column that is known of no shape; its row is read
	// again, so that an aggregate with a short life may be told as imported, or not at
	// all. The comparison does not know of that yet and calls it wrong.
	alter bool
}

func defaultOptions() options {
	return options{faults: 500, check: 50, writers: 4, keys: 300, rows: 2000, pause: 20 * time.Millisecond, alter: true}
}

// servers are what the bridge stands between.
type servers struct {
	pg      *pgserver.Server
	kafka   *testenv.Cluster
	brokers int
	links   [2]*testenv.Link // to Postgres, one for each instance
}

// postgresSettings let the server give up a silent walsender, and move its
// checkpoint, within the length of a fault.
var postgresSettings = map[string]string{
	"wal_sender_timeout": "5s", "checkpoint_timeout": "30s", "lc_messages": "C",
}

// migratePause is how long the columns of the table stay as they are.
const migratePause = 4 * time.Second

// world is one run.
type world struct {
	options
	servers
	rng     *rand.Rand
	fleet   [2]*instance
	disk    *disk
	journal io.Writer
	begun   time.Time
	program string

	hold    sync.RWMutex // holds the writers
	changes atomic.Int64
	giants  int

	open     []*openFault
	counts   map[string]int
	breaking atomic.Bool  // servers, links or disk are broken
	trouble  atomic.Int64 // when they were last, Unix nanoseconds
	fails    chan error   // of processes that ended as they must not
	compared int
}

// run breaks things until the faults are spent, and compares.
func run(ctx context.Context, o options, s servers) (err error) {
	w, err := newWorld(ctx, o, s)
	if err != nil {
		return err
	}
	fmt.Fprintf(o.log, "seed %d, %d faults, %s, %d broker(s), logs in %s\n",
		o.seed, o.faults, s.pg.Installation(), s.brokers, o.dir)
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	for _, i := range w.fleet {
		g.Go(func() error { return i.supervise(ctx) }) // ends with ctx, which kills its process
	}
	w.fleet[0].start()
	if err = w.streaming(ctx, w.fleet[0]); err == nil { // from here on nothing may be missing
		w.write(ctx, g)
		g.Go(func() error {
			defer cancel()
			return w.wreak(ctx)
		})
	} else {
		cancel()
	}
	err = errors.Join(err, g.Wait())
	err = errors.Join(err, w.close(err != nil))
	w.summary(err)
	return err
}

// write starts the writers, which end with ctx.
func (w *world) write(ctx context.Context, g *errgroup.Group) {
	for i := range w.writers {
		keys := w.keys
		if i == 0 {
			keys = 5 // hot
		}
		writer := audit.Writer{DSN: w.pg.DSN("postgres"), Seed: w.seed, Serial: i, Keys: keys, Truncate: i == 1,
			Changes: &w.changes, Pause: w.pause, Hold: &w.hold}
		g.Go(func() error { return writer.Run(ctx) })
	}
	if !w.alter {
		return
	}
	migrator := audit.Migrator{Writer: audit.Writer{DSN: w.pg.DSN("postgres"), Seed: w.seed, Keys: w.keys,
		Changes: &w.changes, Pause: migratePause, Hold: &w.hold}}
	g.Go(func() error { return migrator.Run(ctx) })
}

// wreak brings the faults, and compares now and then and at the end.
func (w *world) wreak(ctx context.Context) error {
	kinds, err := w.kinds()
	if err != nil {
		return err
	}
	for n := 1; n <= w.faults; n++ {
		if err := w.next(ctx, n, kinds); err != nil {
			return fmt.Errorf("fault %d: %w", n, err)
		}
		switch {
		case n%w.check == 0 || n == w.faults:
			err = w.checkpoint(ctx)
		case w.rng.IntN(10) == 0:
			err = w.recovered(ctx)
		case w.rng.IntN(40) == 0:
			w.giant(ctx)
		}
		if err != nil {
			return fmt.Errorf("after fault %d: %w", n, err)
		}
	}
	return nil
}

// next begins one more fault and ends those that have lasted long enough.
func (w *world) next(ctx context.Context, n int, kinds []kind) error {
	k := w.choose(kinds)
	w.note("fault %d: %s", n, k.name)
	w.counts[k.name]++
	if k.breaks {
		w.troubled()
	}
	end, err := k.begin(ctx, w)
	if err != nil {
		return fmt.Errorf("%s: %w", k.name, err)
	}
	if end != nil {
		w.open = append(w.open, &openFault{kind: k, end: end, left: 1 + w.rng.IntN(3)})
	}
	if k.breaks {
		w.troubled()
	}
	if err := w.rest(ctx, time.Duration(w.rng.ExpFloat64()*float64(700*time.Millisecond))); err != nil {
		return err
	}
	for _, f := range slices.Clone(w.open) {
		if f.left--; f.left <= 0 {
			if err := w.mend(ctx, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// choose takes a kind by weight among those that can be now.
func (w *world) choose(kinds []kind) kind {
	var able []kind
	total := 0
	for _, k := range kinds {
		if w.free(k.uses) && (k.able == nil || k.able(w)) {
			able = append(able, k)
			total += k.weight
		}
	}
	if total == 0 {
		return kind{name: "nothing possible", begin: func(context.Context, *world) (ender, error) { return nil, nil }}
	}
	at := w.rng.IntN(total)
	for _, k := range able {
		if at -= k.weight; at < 0 {
			return k
		}
	}
	panic("weights do not add up")
}

// free reports whether no open fault uses any of the things.
func (w *world) free(things []string) bool {
	for _, f := range w.open {
		for _, t := range f.kind.uses {
			if slices.Contains(things, t) {
				return false
			}
		}
	}
	return true
}

// mend ends a fault.
func (w *world) mend(ctx context.Context, f *openFault) error {
	w.open = slices.DeleteFunc(w.open, func(o *openFault) bool { return o == f })
	w.note("over: %s", f.kind.name)
	err := f.end(ctx)
	if f.kind.breaks {
		w.troubled()
	}
	if err != nil {
		return fmt.Errorf("end of %s: %w", f.kind.name, err)
	}
	return nil
}

func (w *world) mendAll(ctx context.Context) error {
	for len(w.open) > 0 {
		if err := w.mend(ctx, w.open[0]); err != nil {
			return err
		}
	}
	return nil
}

// troubled takes note that servers, links or disk are broken, or were until now.
func (w *world) troubled() {
	broken := slices.ContainsFunc(w.open, func(f *openFault) bool { return f.kind.breaks })
	w.breaking.Store(broken)
	w.trouble.Store(time.Now().UnixNano())
}

// broken reports whether servers, links or disk were broken at any time since t.
func (w *world) broken(t time.Time) bool {
	return w.breaking.Load() || w.trouble.Load() >= t.UnixNano()
}

// rest waits, and reports a process that ended as it must not.
func (w *world) rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case err := <-w.fails:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// giant lets one transaction of thousands of rows commit beside the faults.
func (w *world) giant(ctx context.Context) {
	w.giants++
	writer := audit.Writer{DSN: w.pg.DSN("postgres"), Serial: w.giants, Changes: &w.changes}
	w.note("a transaction of 5000 rows")
	if err := writer.Giant(ctx, 5000); err != nil {
		w.note("it failed: %v", err) // the server is down or going down; the audit knows
	}
}

// note writes to the journal.
func (w *world) note(format string, args ...any) {
	fmt.Fprintf(w.journal, "%s "+format+"\n", append([]any{time.Now().UTC().Format("15:04:05.000")}, args...)...)
}

func (w *world) summary(err error) {
	out := io.MultiWriter(w.log, w.journal)
	total := 0
	for _, name := range slices.Sorted(maps.Keys(w.counts)) {
		fmt.Fprintf(out, "%5d %s\n", w.counts[name], name)
		total += w.counts[name]
	}
	starts := w.fleet[0].runs + w.fleet[1].runs
	fmt.Fprintf(out, "seed %d: %d faults in %s, %d starts of the bridge, %d giant transactions, %d comparisons\n",
		w.seed, total, time.Since(w.begun).Round(time.Second), starts, w.giants, w.compared)
	if err != nil {
		fmt.Fprintf(out, "FAILED, see %s; again with -seed %d -faults %d\n%v\n", w.dir, w.seed, w.faults, err)
	}
}

// close ends everything but the servers. After a failure the servers' logs and
// the topics are kept.
func (w *world) close(failed bool) error {
	var errs []error
	if failed {
		errs = append(errs, w.keep())
	}
	return errors.Join(append(errs, w.disk.close())...)
}

// keep copies the servers' logs beside those of the bridges.
func (w *world) keep() error {
	files := map[string]string{"postgres.log": w.pg.Log()}
	for i := range w.brokers {
		files[fmt.Sprintf("kafka%d.log", i)] = w.kafka.Log(i)
	}
	var errs []error
	for name, from := range files {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(w.dir, name), text, 0o644)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func quoteList(list []string) string { return strings.Join(list, ", ") }
