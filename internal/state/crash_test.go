package state_test

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"backstory/internal/state"
	"backstory/transform"
)

// workload is a fixed course of the store's life: several batches under way,
// small and large ones, lists, rolls, compaction, hints, syncs and a reopening.
// Each step is done whole or dies.
func workload(seed uint64) []func(w *world) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	key := func() at { return at{tables[rnd.IntN(2)], keyOf(rnd.IntN(keyCount))} }
	var steps []func(w *world)
	for i := range 40 {
		for range 1 + rnd.IntN(8) {
			k, e := key(), entryOf(rnd)
			steps = append(steps, func(w *world) { w.put(k, e) })
		}
		k, again := key(), rnd.IntN(2) == 0
		value := bytes.Repeat([]byte{byte(i)}, rnd.IntN(20))
		steps = append(steps,
			func(w *world) { w.list(k, again) },
			func(w *world) { w.forget(k) },
			func(w *world) { w.setMeta(i, names[i%len(names)], value) },
		)
		if i%3 != 0 {
			steps = append(steps, (*world).begin)
		}
		if i%3 != 1 {
			steps = append(steps, (*world).commit, (*world).commit)
		}
		for range rnd.IntN(4) {
			steps = append(steps, (*world).step)
		}
		switch i % 16 {
		case 7:
			steps = append(steps, (*world).sync)
		case 11:
			steps = append(steps, (*world).dropAll)
		case 15:
			steps = append(steps, (*world).reopen)
		}
	}
	return append(steps, (*world).reopen)
}

func entryOf(rnd *rand.Rand) transform.Entry {
	e := transform.Entry{
		Version: uint64(rnd.IntN(3)), XID: rnd.Uint32(),
		Place: transform.Place{Index: uint16(rnd.IntN(3))},
	}
	if rnd.IntN(3) > 0 {
		e.Image = bytes.Repeat([]byte{byte(rnd.IntN(256))}, 1+rnd.IntN(400))
	}
	if e.Exists() {
		e.Version++
	}
	return e
}

// TestCrashEverywhere lets the process die at its first change of the disk, at its
// second, and so on until the workload runs through: by a kill and by a loss of
// power, each followed by a death in the recovery at some other change.
func TestCrashEverywhere(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		power  bool
		rounds uint64
	}{{"kill", false, 1}, {"loss of power", true, 4}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { // no wait for a keeper that stands still
				for seed := range tt.rounds {
					crashAtAll(t, seed, tt.power)
				}
			})
		})
	}
}

func crashAtAll(t *testing.T, seed uint64, power bool) {
	t.Helper()
	n := 1
	for crashAt(t, seed, n, power) {
		n++
	}
	if n < 100 {
		t.Fatalf("seed %d: the workload makes only %d changes", seed, n)
	}
	t.Logf("seed %d: died at each of %d changes", seed, n-1)
}

// crashAt runs the workload up to the n-th change of the disk, recovers and goes
// on for a bit. It reports false if the workload ran through.
func crashAt(t *testing.T, seed uint64, n int, power bool) bool {
	t.Helper()
	w := newWorld(&located{t, seed, n}, seed*1000+uint64(n), 1500)
	w.power = power
	w.disk.arm(n)
	w.disk.armNext(1 + n%9)
	steps := workload(seed)
	for i, step := range steps {
		if step(w); w.crashes == 0 {
			continue
		}
		for _, step := range steps[i+1 : min(i+30, len(steps))] {
			step(w)
		}
		w.reopen()
		return true
	}
	return false
}

// located says where a failure was.
type located struct {
	*testing.T
	seed uint64
	n    int
}

func (l *located) Fatalf(format string, args ...any) {
	l.Helper()
	l.T.Fatalf("seed %d, change %d: "+format, append([]any{l.seed, l.n}, args...)...)
}

func (l *located) Fatal(args ...any) {
	l.Helper()
	l.T.Fatal(append([]any{"seed", l.seed, "change", l.n}, args...)...)
}

// TestCutInterrupted loses the content of a file in the middle of the log, of which
// nothing was synced, and then the power at each change of the recovery, twice.
func TestCutInterrupted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(12) {
			for n := 1; cutAt(t, seed, n); n++ {
				continue
			}
		}
	})
}

// cutAt reports false if the recovery makes fewer than n changes.
func cutAt(t *testing.T, seed uint64, n int) bool {
	t.Helper()
	w := newWorld(&located{t, seed, n}, seed*100+uint64(n), 500)
	rnd := rand.New(rand.NewPCG(seed, 3))
	for len(w.disk.names) < 8 {
		w.put(at{1, keyOf(rnd.IntN(keyCount))}, entryOf(rnd))
		w.commit()
	}
	f := w.disk.names[[]string{"0000000002.log", "0000000004.log"}[seed%2]]
	f.now = append([]byte{}, f.durable...)
	if seed%3 > 0 { // its size is there, its bytes are not
		f.now = make([]byte, 100)
	}
	for _, f := range w.disk.names { // the rest happens to be on the disk
		f.durable, f.pending = append([]byte{}, f.now...), nil
	}
	least := w.s.Synced()
	w.s.Abandon()
	w.disk.restart()
	w.disk.arm(n)
	s, err := state.OpenWith(ctx, w.options)
	if err == nil {
		s.Abandon()
		return false
	}
	if !w.disk.dead() {
		t.Fatalf("seed %d, change %d: open: %v", seed, n, err)
	}
	w.disk.armNext(n)
	w.disk.losePower()
	w.start(least, w.s.Committed())
	w.reopen()
	return true
}
