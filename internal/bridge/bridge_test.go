package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"backstory/internal/bridge"
	"backstory/internal/e2e/audit"
	"backstory/internal/state"
	"backstory/transform"
)

// mapping is that of the fake database.
func (db *fakeDB) mapping(tb rapid.TB) *transform.Mapping {
	tb.Helper()
	text := fmt.Sprintf(audit.Mapping, 1)
	if db.two {
		_, table, _ := strings.Cut(text, "tables:\n")
		text += strings.NewReplacer("products", "articles", "Product", "Article", "product", "article").Replace(table)
	}
	m, err := transform.ParseMapping("test.yaml", []byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	for _, t := range m.Tables {
		t.Topics.Partitions = partitions
	}
	return m
}

// world is what outlives the bridge's process.
type world struct {
	db    *fakeDB
	kafka *kafka
	dirs  [2]string // the states of two instances, which take turns
	turn  int
	// repair has the next process mend what does not fit.
	repair bool
	renew  time.Duration // age at which a session is fenced anew; 0: as configured
}

// live runs one process until ctx ends or a fault kills it; it returns the
// error of Run, nil after an orderly stop.
func (w *world) live(ctx context.Context, tb rapid.TB, begun func(*bridge.Bridge)) error {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	store, err := state.Open(context.Background(), state.Config{Dir: w.dirs[w.turn]}, log, prometheus.NewRegistry())
	if err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			tb.Errorf("close the state: %v", err)
		}
	}()
	bc := bridge.DefaultConfig()
	bc.SyncInterval, bc.PieceEvents = 10*time.Millisecond, 4
	if w.renew > 0 {
		bc.RenewInterval = w.renew
	}
	bf := bridge.BackfillConfig{Initial: true, ChunkRows: 3, Parallel: 1}
	b := bridge.New(bc, bf, w.db, &fakeSink{k: w.kafka}, store, w.db.mapping(tb), log, prometheus.NewRegistry())
	if w.repair {
		b.Repair()
	}
	if begun != nil {
		begun(b)
	}
	return b.Run(ctx)
}

// drain is settled where no process may end before that.
func (w *world) drain(tb rapid.TB) {
	if err := w.settled(tb); err != nil {
		tb.Fatalf("the bridge stopped: %v", err)
	}
}

// drained reports whether everything is confirmed, imported and read again.
func (w *world) drained(b *bridge.Bridge) bool {
	s := b.Status()
	if s.Phase != "streaming" {
		return false
	}
	for _, t := range s.Tables {
		over := t.Backfill.Phase == "done" || t.Backfill.Phase == "failed" // only what an operator asks for can fail
		if !over || t.Again > 0 {
			return false
		}
	}
	w.db.mu.Lock()
	defer w.db.mu.Unlock()
	return w.db.confirmed == w.db.tip
}

// check holds the topics against the history.
func (w *world) check(tb rapid.TB) {
	tb.Helper()
	r := audit.CompareUnplaced(w.db.history, w.kafka.records(transform.Events), w.kafka.records(transform.Latest))
	if r.Wrong > 0 {
		tb.Fatalf("%s", r)
	}
}

// Any history of writers of one table or two, whatever dies and however often, ends
// in topics that tell of each committed row version exactly once. It has what the
// model of the protocol leaves out: TRUNCATE, several tables whose keys are the same
// and whose changes share transactions, pieces that overlap, keepalives beyond the
// last commit, commits at the LSN of a keepalive or a watermark, sessions renewed.
func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		w := &world{db: newFakeDB(seed), kafka: newKafka(seed)}
		for i := range w.dirs {
			var err error
			if w.dirs[i], err = os.MkdirTemp("", "bridge"); err != nil {
				rt.Fatal(err)
			}
			defer os.RemoveAll(w.dirs[i])
		}
		w.db.two = rapid.Bool().Draw(rt, "two tables")
		for i := range rapid.IntRange(0, 12).Draw(rt, "standing rows") {
			row := newRow(fmt.Sprint(i+1), w.db.description(), "1.00", "0")
			w.db.standing(row)
			if w.db.two {
				w.db.stand(prefixes[1]+*row[colID], row)
			}
		}
		w.db.busy = true
		w.db.faults = rapid.SampledFrom([]float64{0, 0.2}).Draw(rt, "faults of the database")
		w.kafka.faults = rapid.SampledFrom([]float64{0, 0.02, 0.1}).Draw(rt, "faults")
		w.renew = rapid.SampledFrom([]time.Duration{0, 3 * time.Millisecond}).Draw(rt, "renewal")
		lives := rapid.IntRange(1, 6).Draw(rt, "lives")
		for range lives {
			w.oneLife(rt)
		}
		w.drain(rt)
		w.check(rt)
	})
}

// operate is what an operator may ask for at any time: whatever it is, it must
// not change what the topics tell. That it is refused is no concern of the test.
func operate(ctx context.Context, b *bridge.Bridge, what int) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Millisecond)
	defer cancel()
	switch what {
	case 1:
		_ = b.Backfill(ctx, bridge.BackfillRequest{})
	case 2:
		_ = b.Backfill(ctx, bridge.BackfillRequest{Tables: []string{"products"}, DryRun: true, ChunkRows: 2})
	case 3:
		_ = b.PauseBackfill(ctx, nil, true)
	case 4:
		_ = b.PauseBackfill(ctx, nil, false)
	}
}

// oneLife runs a process while transactions commit, until it dies or is stopped.
func (w *world) oneLife(rt *rapid.T) {
	if rapid.IntRange(0, 3).Draw(rt, "take-over") == 0 {
		w.turn = 1 - w.turn
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, over := make(chan error, 1), make(chan struct{})
	begun := make(chan *bridge.Bridge, 1)
	go func() { // ends with ctx, or with the process it runs
		defer close(over)
		done <- w.live(ctx, rt, func(b *bridge.Bridge) { begun <- b })
	}()
	b := <-begun
	defer func() { // a draw may panic
		cancel()
		<-over
	}()
	for range rapid.IntRange(0, 25).Draw(rt, "transactions") {
		w.db.random(keys)
		w.db.appear(false)
		if rapid.IntRange(0, 3).Draw(rt, "other tables are written") == 0 {
			w.db.idle()
		}
		if rapid.Bool().Draw(rt, "pause") {
			time.Sleep(time.Millisecond)
		}
		operate(ctx, b, rapid.IntRange(0, 40).Draw(rt, "operator"))
	}
	if rapid.Bool().Draw(rt, "stop") {
		cancel()
	}
	select {
	case err := <-done:
		if dead := new(crash); err != nil && !errors.As(err, &dead) {
			rt.Fatalf("run: %v", err)
		}
	case <-time.After(30 * time.Millisecond):
		cancel()
		if err := <-done; err != nil {
			if dead := new(crash); !errors.As(err, &dead) {
				rt.Fatalf("run: %v", err)
			}
		}
	}
	if rapid.IntRange(0, 9).Draw(rt, "lose the state") == 0 {
		if err := os.RemoveAll(w.dirs[w.turn]); err != nil {
			rt.Fatal(err)
		}
	}
}

// A database that was restored from a backup writes its WAL again at positions
// that the topics have already: a repair brings the topics to what the table is
// now, and later changes are published, also after the state is lost.
func TestRestoredDatabase(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		w := &world{db: newFakeDB(seed), kafka: newKafka(seed), dirs: [2]string{t.TempDir(), t.TempDir()}}
		write := func() {
			for range 30 {
				w.db.random(15)
				w.db.appear(true)
			}
			w.drain(t)
		}
		write()
		w.db.restore(w.db.tip / 2)
		err := w.live(t.Context(), t, nil)
		if refused := new(bridge.Refusal); err == nil || !errors.As(err, &refused) && !strings.Contains(err.Error(), "the slot is gone") {
			t.Fatalf("seed %d: got %v, want a refusal", seed, err)
		}
		w.repair = true
		write()
		w.repair = false
		w.equal(t)
		write()
		w.equal(t)
		if err := os.RemoveAll(w.dirs[0]); err != nil {
			t.Fatal(err)
		}
		write()
		w.equal(t)
	}
}

// equal holds the newest records of both topics against the table.
func (w *world) equal(t rapid.TB) {
	t.Helper()
	versions, images := map[string]int64{}, map[string][]byte{}
	for _, e := range w.kafka.records(transform.Events) {
		if e.Version() != versions[e.Key]+1 {
			t.Fatalf("key %s: version %d after %d", e.Key, e.Version(), versions[e.Key])
		}
		versions[e.Key] = e.Version()
	}
	for _, l := range w.kafka.records(transform.Latest) {
		images[l.Key] = l.Value
		if l.Version() > versions[l.Key] {
			t.Fatalf("key %s: latest has version %d, events %d", l.Key, l.Version(), versions[l.Key])
		}
	}
	for key, image := range images {
		row := w.db.rows[key]
		if (row == nil) != (image == nil) {
			t.Fatalf("key %s: the table has %v, latest %s", key, row, image)
		}
		if row != nil && !strings.Contains(string(image), fmt.Sprintf(`"price":%q`, *row[colPrice])) {
			t.Fatalf("key %s: the table has the price %s, latest %s", key, *row[colPrice], image)
		}
	}
	for key := range w.db.rows {
		if images[key] == nil {
			t.Fatalf("key %s: not in latest", key)
		}
	}
}
