package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"

	"backstory/internal/state"
	"backstory/transform"
)

// TestFullDiskEverywhere lets the disk be full at the first write of a workload, at
// its second, and so on: of a batch, a new file, compaction, a hint, the mark. The
// store is as before, and the same call succeeds when there is room; or the batch
// is dropped, and others follow.
func TestFullDiskEverywhere(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{true, false} {
		t.Run(fmt.Sprint("again ", again), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := 1
				for fullAt(t, n, again) {
					n++
				}
				if n < 60 {
					t.Fatalf("the workload makes only %d writes", n)
				}
			})
		})
	}
}

// fullAt reports false if the workload makes fewer than n writes.
func fullAt(t *testing.T, n int, again bool) bool {
	t.Helper()
	w := newWorld(&located{t, 0, n}, uint64(n), 1500)
	w.disk.fullAt = w.disk.writes + n
	for _, step := range workload(0) {
		before := w.disk.writes
		step(w)
		if before < w.disk.fullAt && w.disk.writes >= w.disk.fullAt {
			if w.verify(); !again {
				w.dropAll()
			}
			step(w)
		}
	}
	return w.disk.writes >= w.disk.fullAt
}

// TestSyncFails sees that a store whose files could not be synced takes no more
// writes, and that the next process has what was committed.
func TestSyncFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 2000)
	w.put(at{1, "a"}, transform.Entry{Version: 1})
	w.commit()
	w.disk.failOn = func(op, name string) error {
		if op == "sync" && strings.HasSuffix(name, ".log") {
			return io.ErrUnexpectedEOF
		}
		return nil
	}
	if err := w.s.Sync(ctx); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("sync: got %v", err)
	}
	w.disk.failOn = nil
	b := w.s.Begin()
	b.SetMeta("lsn", []byte("1"))
	if err := w.s.Commit(b); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("commit after a failed sync: got %v", err)
	}
	if err := w.s.Sync(ctx); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("sync after a failed sync: got %v", err)
	}
	w.recover(false)
}

// TestCompactionBounds overwrites keys at random, among them those of one large
// batch, and counts bytes: no group that compaction writes while commits wait is
// larger than a step, and the files stay at about twice what is live.
func TestCompactionBounds(t *testing.T) {
	t.Parallel()
	const (
		segment = 4 << 20
		keys    = 20_000
		slack   = 64 << 10
	)
	d := newFaultDisk(1)
	s, err := state.OpenWith(ctx, state.Options{Disk: d, SegmentBytes: segment, Still: true})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	versions := make([]uint64, keys)
	write := func(n int, next func(i int) int) {
		b := s.Begin()
		for i := range n {
			k := next(i)
			versions[k]++
			e := transform.Entry{Version: versions[k], Place: transform.Place{Index: 1}, Image: bytes.Repeat([]byte{1}, 450)}
			if err := b.Put(1, fmt.Append(nil, k), e); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Commit(b); err != nil {
			t.Fatal(err)
		}
	}
	largest, moved := 0, 0
	compact := func() {
		d.written = func(name string, n int) {
			if strings.HasSuffix(name, ".log") {
				largest, moved = max(largest, n), moved+n
			}
		}
		for more := true; more; {
			if more, err = s.Step(ctx); err != nil {
				t.Fatal(err)
			}
		}
		d.written = nil
	}
	write(keys, func(i int) int { return i }) // one group of 10 MB
	for range 150 {
		write(1000, func(int) int { return rnd.IntN(keys) })
		compact()
		if all, live := s.DiskBytes(); all > 2*live+2*segment {
			t.Fatalf("%d bytes on disk for %d live ones", all, live)
		}
	}
	if moved == 0 || largest > state.MoveStep+slack {
		t.Fatalf("compaction wrote %d bytes, at most %d at once, want at most %d", moved, largest, state.MoveStep+slack)
	}
	b := s.Begin()
	for k, v := range versions {
		if e, _, err := b.Get(1, fmt.Append(nil, k)); err != nil || e.Version != v {
			t.Fatalf("get %d: got version %d %v, want %d", k, e.Version, err, v)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLargeImages has images at and beyond the size that the index can tell, which
// are read, overwritten, moved and loaded like others.
func TestLargeImages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3<<20)
		const longest = 1<<20 - 8
		for round := range 6 {
			for i, size := range []int{longest - 60, longest - 52, longest - 44, longest, 2 << 20, 5 << 20, 10} {
				e := transform.Entry{Version: uint64(round) + 1, Place: transform.Place{Index: 1}}
				e.Image = bytes.Repeat([]byte{byte(round)}, size-round)
				if i != round { // one stays as it was
					w.put(at{1, keyOf(i + 1)}, e)
				}
				w.commit()
				w.step()
			}
		}
		w.verify()
		for range 30 {
			w.step()
		}
		w.reopen()
		w.recover(false)
	})
}
