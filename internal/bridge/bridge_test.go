package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"backstory/internal/bridge"
	"backstory/internal/e2e/audit"
	"backstory/internal/state"
	"backstory/transform"
)

func mapping(tb testing.TB) *transform.Mapping {
	tb.Helper()
	m, err := transform.ParseMapping("test.yaml", fmt.Appendf(nil, audit.Mapping, 1))
	if err != nil {
		tb.Fatal(err)
	}
	m.Tables[0].Topics.Partitions = partitions
	return m
}

// world is what outlives the bridge's process.
type world struct {
	db    *fakeDB
	kafka *kafka
	dir   string
}

// live runs one process until ctx ends or a fault kills it; it returns the
// error of Run, nil after an orderly stop.
func (w *world) live(ctx context.Context, tb testing.TB) error {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg := state.DefaultConfig()
	cfg.Dir = w.dir
	store, err := state.Open(ctx, cfg, log, prometheus.NewRegistry())
	if err != nil {
		tb.Fatalf("open the state: %v", err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			tb.Errorf("close the state: %v", err)
		}
	}()
	bc := bridge.DefaultConfig()
	bc.SyncInterval, bc.PieceEvents = 10*time.Millisecond, 4
	bf := bridge.BackfillConfig{Initial: true, ChunkRows: 3}
	b := bridge.New(bc, bf, w.db, &fakeSink{k: w.kafka}, store, mapping(tb), log, prometheus.NewRegistry())
	return b.Run(ctx)
}

// drain runs processes without faults until everything is confirmed.
func (w *world) drain(tb testing.TB) {
	w.kafka.mu.Lock()
	w.kafka.faults = 0
	w.kafka.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stop, stopped := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.live(stop, tb) }()
	settled := time.Now()
	for {
		w.db.appear(true)
		w.db.mu.Lock()
		if w.db.confirmed < w.db.tip {
			settled = time.Now()
		}
		w.db.mu.Unlock()
		// Rows that ask to be read again are looked up within a second.
		if time.Since(settled) > 1500*time.Millisecond {
			break
		}
		select {
		case err := <-done:
			tb.Fatalf("the bridge stopped: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
		if ctx.Err() != nil {
			tb.Fatal("not drained in time")
		}
	}
	stopped()
	if err := <-done; err != nil {
		tb.Fatalf("orderly stop: %v", err)
	}
}

// check holds the topics against the history.
func (w *world) check(tb testing.TB) {
	tb.Helper()
	r := audit.CompareUnplaced(w.db.history, w.kafka.records(transform.Events), w.kafka.records(transform.Latest))
	if r.Wrong > 0 {
		tb.Fatalf("%s", r)
	}
}

// Any history of writers, whatever dies and however often, ends in topics that
// tell of each committed row version exactly once.
func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		w := &world{db: newFakeDB(seed), kafka: newKafka(seed)}
		var err error
		if w.dir, err = os.MkdirTemp("", "bridge"); err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(w.dir)
		for i := range rapid.IntRange(0, 12).Draw(rt, "standing rows") {
			w.db.standing(newRow(fmt.Sprint(i+1), w.db.description(), "1.00", "0"))
		}
		w.kafka.faults = rapid.SampledFrom([]float64{0, 0.02, 0.1}).Draw(rt, "faults")
		lives := rapid.IntRange(1, 6).Draw(rt, "lives")
		for range lives {
			w.oneLife(rt, t)
		}
		w.drain(t)
		w.check(rt)
	})
}

// oneLife runs a process while transactions commit, until it dies or is stopped.
func (w *world) oneLife(rt *rapid.T, t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.live(ctx, t) }()
	for range rapid.IntRange(0, 25).Draw(rt, "transactions") {
		w.db.random(15)
		w.db.appear(false)
		if rapid.Bool().Draw(rt, "pause") {
			time.Sleep(time.Millisecond)
		}
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
		if err := os.RemoveAll(w.dir); err != nil {
			rt.Fatal(err)
		}
	}
}
