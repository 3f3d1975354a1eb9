package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// oneShard puts all keys into one part of the index, which makes opening fast.
func oneShard(table uint16, key []byte) uint64 { return spread(table, key) >> 8 }

// smallStore makes a store of several files, with gaps that compaction has left,
// hints, aggregates, notes and lists; closed, so that all of it was synced.
func smallStore(t *testing.T) (files map[string][]byte, want model) {
	t.Helper()
	w := newWorld(t, 3, 1200)
	w.options.Hash = oneShard
	w.reopen()
	for i, step := range workload(11) {
		if step(w); i > 60 && len(w.flights) == 0 {
			break
		}
	}
	w.dropAll()
	for more := true; more; {
		var err error
		if more, err = w.s.Step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want = w.committed()
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	return w.disk.copyFiles(), want
}

// examine opens a store of damaged files and looks at everything in it. Damage must
// be found, by a refusal that names a file of the store, or do no harm.
func examine(t *testing.T, files map[string][]byte, want model, what string) (found *state.Refusal) {
	t.Helper()
	d := diskOf(files)
	w := &world{t: t, disk: d, history: []point{{0, want}}}
	s, err := state.OpenWith(ctx, state.Options{Disk: d, SegmentBytes: 1200, Hash: oneShard, Still: true})
	if err != nil {
		if d.opens != 0 {
			t.Fatalf("%s: %d files are still open", what, d.opens)
		}
		return refusal(t, err, what)
	}
	defer s.Abandon()
	b := s.Begin()
	for k, e := range want.entries {
		got, ok, err := b.Get(k.table, []byte(k.key))
		if err != nil {
			return refusal(t, err, what)
		}
		if !ok || !sameEntry(got, e) {
			t.Fatalf("%s: get %v: got %+v %v, want %+v", what, k, got, ok, e)
		}
	}
	w.s, w.t = s, &described{t, what}
	w.verifyCommitted()
	keys, err := s.Keys(ctx, 1, state.All)
	if err != nil {
		return refusal(t, err, what)
	}
	if got := collectKeys(t, keys, nil); !slices.Equal(got, want.keys(1, state.All)) {
		t.Fatalf("%s: keys: got %q", what, got)
	}
	return nil
}

// described says what was damaged.
type described struct {
	*testing.T
	what string
}

func (d *described) Fatalf(format string, args ...any) {
	d.Helper()
	d.T.Fatalf("%s: "+format, append([]any{d.what}, args...)...)
}

func refusal(t *testing.T, err error, what string) *state.Refusal {
	t.Helper()
	var r *state.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("%s: got %v, want a refusal", what, err)
	}
	if !strings.Contains(r.Thing, "state") || r.Problem == "" || !strings.Contains(r.Cure, "state") {
		t.Fatalf("%s: the refusal says too little: %v", what, r)
	}
	return r
}

// TestFlippedBytes flips every byte of every file. What is not found must be in a
// file that holds no data: the mark or a hint.
func TestFlippedBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		files, want := smallStore(t)
		if n := logs(files); n < 3 {
			t.Fatalf("the store has only %d log files", n)
		}
		for name := range files {
			missed := 0
			for i := range files[name] {
				for _, pattern := range []byte{1 << (i % 8), 0xff} {
					damaged := maps.Clone(files)
					damaged[name] = bytes.Clone(files[name])
					damaged[name][i] ^= pattern
					what := fmt.Sprintf("%s, byte %d ^ %#x", name, i, pattern)
					r := examine(t, damaged, want, what)
					switch {
					case r == nil:
						missed++
					case !strings.Contains(r.Thing, name):
						t.Fatalf("%s: the refusal names another file: %v", what, r)
					}
				}
			}
			t.Logf("%s: %d of %d damages did no harm", name, missed, 2*len(files[name]))
			if missed > 0 && strings.HasSuffix(name, ".log") {
				t.Fatalf("%s: %d damages were not found", name, missed)
			}
		}
	})
}

func logs(files map[string][]byte) (n int) {
	for name := range files {
		if strings.HasSuffix(name, ".log") {
			n++
		}
	}
	return n
}

func newest(files map[string][]byte) string {
	return slices.MaxFunc(slices.Collect(maps.Keys(files)), func(a, b string) int {
		if !strings.HasSuffix(a, ".log") {
			return -1
		}
		if !strings.HasSuffix(b, ".log") {
			return 1
		}
		return strings.Compare(a, b)
	})
}

// TestShortFiles cuts every file to every length, and takes it away. A log file
// that is not whole must be found; without hints and mark nothing is lost.
func TestShortFiles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		files, want := smallStore(t)
		for name, b := range files {
			for size := range b {
				damaged := maps.Clone(files)
				damaged[name] = b[:size]
				what := fmt.Sprintf("%s of %d bytes cut to %d", name, len(b), size)
				if r := examine(t, damaged, want, what); strings.HasSuffix(name, ".log") != (r != nil) {
					t.Fatalf("%s: got %v", what, r)
				}
			}
			missing := maps.Clone(files)
			delete(missing, name)
			if r := examine(t, missing, want, name+" missing"); strings.HasSuffix(name, ".log") != (r != nil) {
				t.Fatalf("%s missing: got %v", name, r)
			}
		}
	})
}

// TestShortFilesUnhinted is TestShortFiles of log files without their hints: only
// the log itself tells what is missing.
func TestShortFilesUnhinted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		files, want := smallStore(t)
		maps.DeleteFunc(files, func(name string, _ []byte) bool { return strings.HasSuffix(name, ".hint") })
		for name, b := range files {
			if !strings.HasSuffix(name, ".log") {
				continue
			}
			for size := range b {
				damaged := maps.Clone(files)
				damaged[name] = b[:size]
				what := fmt.Sprintf("%s of %d bytes cut to %d", name, len(b), size)
				if examine(t, damaged, want, what) == nil {
					t.Fatalf("%s: not found", what)
				}
			}
		}
	})
}

// TestForeignFiles puts files of another store, and of a later format, in.
func TestForeignFiles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		files, want := smallStore(t)
		others, _ := smallStore(t)
		name := newest(files)

		mixed := maps.Clone(files)
		mixed[name] = others[name]
		if r := examine(t, mixed, want, "file of another store"); r == nil || !strings.Contains(r.Problem, "different stores") {
			t.Fatalf("a file of another store: got %v", r)
		}

		later := maps.Clone(files)
		later[name] = bytes.Clone(files[name])
		state.SetVersion(later[name], 2)
		if r := examine(t, later, want, "later format"); r == nil || !strings.Contains(r.Problem, "version 2") {
			t.Fatalf("a file of a later format: got %v", r)
		}
	})
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	cfg := state.Config{Dir: filepath.Join(t.TempDir(), "state")}
	open := func() (*state.Store, error) { return state.Open(ctx, cfg, slog.New(slog.DiscardHandler), nil) }
	s, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if !s.Empty() {
		t.Error("a new store is not empty")
	}
	id := capture.Identity{System: 7312345678901234567, Timeline: 1, Database: "legacy"}
	for range 2 {
		if was, err := s.Bind(id); err != nil || was != id {
			t.Fatalf("bind: got %v, %v", was, err)
		}
	}
	if !s.Empty() {
		t.Error("a store that has only its identity is not empty")
	}

	_, err = open()
	if r := refusal(t, err, "in use"); !strings.Contains(r.Problem, fmt.Sprint("pid ", os.Getpid())) {
		t.Errorf("in use: got %v", r)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err = open(); err != nil {
		t.Fatal(err)
	}
	for _, other := range []struct {
		what string
		id   capture.Identity
	}{
		{"cluster", capture.Identity{System: 42, Timeline: 1, Database: "legacy"}},
		{"database", capture.Identity{System: id.System, Timeline: 1, Database: "other"}},
	} {
		_, err := s.Bind(other.id)
		r := refusal(t, err, other.what)
		if !strings.Contains(r.Problem, "timeline 1, database legacy") || !strings.Contains(r.Cure, "state.dir") {
			t.Errorf("another %s: got %v", other.what, r)
		}
	}
	promoted := capture.Identity{System: id.System, Timeline: 2, Database: "legacy"}
	if was, err := s.Bind(promoted); err != nil || was != id {
		t.Errorf("a later timeline: got %v, %v; want that of before", was, err)
	}
	b := s.Begin()
	b.Bind(promoted)
	if err := s.Commit(b); err != nil {
		t.Fatal(err)
	}
	if was, err := s.Bind(promoted); err != nil || was != promoted {
		t.Errorf("a timeline that was followed: got %v, %v", was, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAdopt binds a state to the server that its rows were moved to, and notes that its
// positions are of another one, over a restart.
func TestAdopt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *state.Store {
		t.Helper()
		s, err := state.Open(t.Context(), state.Config{Dir: dir}, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	rebound := func(s *state.Store) bool { _, ok := s.Meta(state.MetaRebound); return ok }
	from := capture.Identity{System: 1, Timeline: 1, Database: "legacy"}
	to := capture.Identity{System: 2, Timeline: 1, Database: "moved"}
	s := open()
	if err := s.Adopt(from); err != nil || rebound(s) || s.Elsewhere(from) {
		t.Errorf("a new state: %v, rebound %t", err, rebound(s))
	}
	_, err := s.Bind(to)
	if r := refusal(t, err, "moved"); !strings.Contains(r.Cure, "--adopt-topics") {
		t.Errorf("moved: got %v", r)
	}
	if err := s.Adopt(from); err != nil || rebound(s) {
		t.Errorf("its own server: %v, rebound %t", err, rebound(s))
	}
	if !s.Elsewhere(to) {
		t.Error("the state is not known to be another server's")
	}
	if err := s.Adopt(to); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close()
	if _, err := s.Bind(to); err != nil || !rebound(s) {
		t.Errorf("after a restart: %v, rebound %t", err, rebound(s))
	}
	_, err = s.Bind(from)
	refusal(t, err, "the former server")
}

// TestClosed sees that what must not be used any more says so.
func TestClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 2000)
	entry := transform.Entry{Version: 1, Place: transform.Place{Index: 1}, Image: []byte("{}")}
	first := w.s.Begin()
	second := w.s.Begin()
	if err := first.Put(1, nil, entry); !errors.Is(err, state.ErrBatchClosed) {
		t.Errorf("put into a batch that is followed: got %v", err)
	}
	if err := w.s.Commit(second); err == nil || errors.Is(err, state.ErrBatchClosed) {
		t.Errorf("commit before the batch before: got %v", err)
	}
	if err := errors.Join(w.s.Commit(first), w.s.Commit(second)); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Commit(second); !errors.Is(err, state.ErrBatchClosed) {
		t.Errorf("commit twice: got %v", err)
	}
	third := w.s.Begin()
	if err := third.Put(1, nil, transform.Entry{Version: 1, Place: transform.Place{Index: 1}, Image: []byte{}}); err == nil {
		t.Error("an image of no bytes was taken")
	}
	if err := third.Put(1, nil, transform.Entry{Place: transform.Place{Index: 1}, Image: []byte("{}")}); err == nil {
		t.Error("an aggregate without a version was taken")
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := third.Get(1, nil); !errors.Is(err, state.ErrBatchClosed) {
		t.Errorf("get after the store was closed: got %v", err)
	}
	if err := w.s.Commit(third); !errors.Is(err, state.ErrClosed) {
		t.Errorf("commit after the store was closed: got %v", err)
	}
	if _, err := w.s.Keys(ctx, 1, state.All); !errors.Is(err, state.ErrClosed) {
		t.Errorf("keys after the store was closed: got %v", err)
	}
	if err := w.s.Sync(ctx); !errors.Is(err, state.ErrClosed) {
		t.Errorf("sync after the store was closed: got %v", err)
	}
}
