package state_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"reflect"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// at is a key of a table.
type at struct {
	table uint16
	key   string
}

// model is what a store must hold.
type model struct {
	entries map[at]transform.Entry
	again   map[at]bool
	meta    map[string]string
}

func newModel() model {
	return model{map[at]transform.Entry{}, map[at]bool{}, map[string]string{}}
}

func (m model) clone() model {
	return model{maps.Clone(m.entries), maps.Clone(m.again), maps.Clone(m.meta)}
}

func kindOf(e transform.Entry) state.Which {
	switch {
	case e.Exists():
		return state.Existing
	case e.Version > 0:
		return state.Deleted
	}
	return state.Notes
}

func (m model) keys(table uint16, which state.Which) []string {
	var keys []string
	for k, e := range m.entries {
		if k.table == table && which&kindOf(e) != 0 {
			keys = append(keys, k.key)
		}
	}
	slices.Sort(keys)
	return keys
}

// The tests use few keys, so that they meet again, in two tables.
var (
	tables = []uint16{1, 7}
	names  = []string{"lsn", "mark/0", "cursor"}
)

const keyCount = 24

func keyOf(i int) string {
	if i == 0 {
		return "" // an empty key is a key
	}
	return fmt.Sprintf("key-%02d", i)
}

// fewHashes makes every key collide with some other.
func fewHashes(table uint16, key []byte) uint64 { return spread(table, key) % 5 }

// spread keeps the keys of the tests apart.
func spread(table uint16, key []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(append(key[:len(key):len(key)], byte(table)))
	return h.Sum64()
}

// flight is a batch under way and what it does to a model.
type flight struct {
	batch  *state.Batch
	writes []func(model)
}

// point is a committed batch: the number of its group and all that was then.
type point struct {
	seq  uint64
	data model
}

// world is a store on a bad disk, and what it must hold.
type world struct {
	t       tester
	disk    *faultDisk
	s       *state.Store
	options state.Options
	history []point // the last one at or below Synced, and all after it
	flights []*flight
	current *flight // the one that may be written to
	power   bool    // a process that dies takes the machine with it
	crashes int
}

// tester is a *testing.T or a *rapid.T.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
	Fatal(args ...any)
}

func newWorld(t tester, seed uint64, segmentBytes int64) *world {
	d := newFaultDisk(seed)
	w := &world{
		t: t, disk: d, history: []point{{0, newModel()}},
		options: state.Options{Disk: d, SegmentBytes: segmentBytes, Hash: fewHashes, Still: true},
	}
	s, err := state.OpenWith(ctx, w.options)
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	return w
}

func (w *world) committed() model { return w.history[len(w.history)-1].data }

// view is what the newest batch sees.
func (w *world) view() model {
	m := w.committed().clone()
	for _, f := range w.flights {
		for _, write := range f.writes {
			write(m)
		}
	}
	return m
}

func (w *world) begin() {
	w.current = &flight{batch: w.s.Begin()}
	w.flights = append(w.flights, w.current)
}

// open returns the batch that may be written to.
func (w *world) open() *flight {
	if w.current == nil {
		w.begin()
	}
	return w.current
}

// survived reports whether the process is still there; if not, the next one is
// started. It fails the test on an error that no fault explains.
func (w *world) survived(step string, err error) bool {
	w.t.Helper()
	if w.disk.dead() {
		w.crashes++
		w.recover(w.power)
		return false
	}
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		w.t.Fatalf("%s: %v", step, err)
	}
	return err == nil
}

func (w *world) put(k at, e transform.Entry) {
	f := w.open()
	err := f.batch.Put(k.table, []byte(k.key), e)
	if w.survived("put", err) {
		f.writes = append(f.writes, func(m model) { m.entries[k] = e })
	}
}

func (w *world) get(k at) {
	f := w.open()
	want, known := w.view().entries[k]
	got, ok, err := f.batch.Get(k.table, []byte(k.key))
	if w.survived("get", err) && (ok != known || !sameEntry(got, want)) {
		w.t.Fatalf("get %v: got %+v %v, want %+v %v", k, got, ok, want, known)
	}
}

func sameEntry(a, b transform.Entry) bool {
	return a.Version == b.Version && a.Place == b.Place && a.XID == b.XID &&
		bytes.Equal(a.Image, b.Image) && (a.Image == nil) == (b.Image == nil)
}

func (w *world) forget(k at) {
	f := w.open()
	e, known := w.view().entries[k]
	err := f.batch.Forget(k.table, []byte(k.key))
	if known && e.Version > 0 {
		if err == nil {
			w.t.Fatalf("forget %v: an aggregate was forgotten", k)
		}
		return
	}
	if w.survived("forget", err) {
		f.writes = append(f.writes, func(m model) { delete(m.entries, k) })
	}
}

func (w *world) list(k at, again bool) {
	f := w.open()
	call := f.batch.Done
	if again {
		call = f.batch.Again
	}
	if !w.survived("list", call(k.table, []byte(k.key))) {
		return
	}
	f.writes = append(f.writes, func(m model) {
		if delete(m.again, k); again {
			m.again[k] = true
		}
	})
}

// setMeta writes to any batch that is under way.
func (w *world) setMeta(flight int, name string, value []byte) {
	w.open()
	f := w.flights[flight%len(w.flights)]
	f.batch.SetMeta(name, value)
	f.writes = append(f.writes, func(m model) {
		if delete(m.meta, name); value != nil {
			m.meta[name] = string(value)
		}
	})
}

func (w *world) commit() {
	if len(w.flights) == 0 {
		return
	}
	f := w.flights[0]
	before, writes := w.s.Committed(), f.batch.Len()
	if !w.survived("commit", w.s.Commit(f.batch)) {
		return // nothing of it is there; it may be committed again
	}
	if writes > 0 && w.s.Committed() == before {
		w.t.Fatalf("commit: no group was written")
	}
	m := w.committed().clone()
	for _, write := range f.writes {
		write(m)
	}
	w.history = append(w.history, point{w.s.Committed(), m})
	w.flights = w.flights[1:]
	if w.current == f {
		w.current = nil
	}
}

// drop drops a batch and those after it.
func (w *world) drop(flight int) {
	if len(w.flights) == 0 {
		return
	}
	i := flight % len(w.flights)
	w.s.Drop(w.flights[i].batch)
	w.flights, w.current = w.flights[:i], nil
}

func (w *world) dropAll() {
	w.s.DropAll()
	w.flights, w.current = nil, nil
}

func (w *world) sync() {
	upTo := w.s.Committed()
	if !w.survived("sync", w.s.Sync(ctx)) {
		return
	}
	if got := w.s.Synced(); got != upTo {
		w.t.Fatalf("sync: group %d is durable, want %d", got, upTo)
	}
	w.history = w.history[len(w.history)-1:]
}

// step lets compaction and hints go on.
func (w *world) step() {
	_, err := w.s.Step(ctx)
	w.survived("step", err)
}

func (w *world) reopen() {
	seq := w.s.Committed()
	err := w.s.Close()
	if w.disk.dead() {
		w.crashes++
		w.recover(w.power)
		return
	}
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		w.t.Fatalf("close: %v", err)
	}
	if w.disk.opens != 0 {
		w.t.Fatalf("close: %d files are still open", w.disk.opens)
	}
	w.start(seq, seq)
}

// recover starts the next process after a kill or a loss of power.
func (w *world) recover(power bool) {
	w.t.Helper()
	least, most := w.s.Committed(), w.s.Committed()
	if power {
		least = w.s.Synced()
	}
	w.s.Abandon()
	if power {
		w.disk.losePower()
	} else {
		w.disk.restart()
	}
	w.disk.limit(-1)
	w.start(least, most)
}

// start opens the store, whatever comes between, and checks that it holds a
// committed batch within these bounds.
func (w *world) start(least, most uint64) {
	w.t.Helper()
	var err error
	for {
		w.s, err = state.OpenWith(ctx, w.options)
		if errors.Is(err, syscall.ENOSPC) {
			w.disk.limit(-1)
			continue
		}
		if err == nil || !w.disk.dead() {
			break
		}
		if w.disk.rnd.IntN(2) == 0 {
			w.disk.restart()
		} else {
			w.disk.losePower()
			least = min(least, w.syncedPoint())
		}
	}
	if err != nil {
		w.t.Fatalf("open: %v", err)
	}
	w.disk.arm(0)
	seq := w.s.Committed()
	if seq < least || seq > most {
		w.t.Fatalf("open: the log ends with group %d, want one of %d to %d", seq, least, most)
	}
	for len(w.history) > 1 && w.history[len(w.history)-1].seq > seq {
		w.history = w.history[:len(w.history)-1]
	}
	w.history = w.history[len(w.history)-1:] // what was loaded is synced
	w.flights, w.current = nil, nil
	w.verify()
}

// syncedPoint is the oldest committed batch that may still come back.
func (w *world) syncedPoint() uint64 { return w.history[0].seq }

// verify compares everything. It begins and drops a batch.
func (w *world) verify() {
	w.t.Helper()
	w.verifyBatch()
	w.verifyCommitted()
}

func (w *world) verifyBatch() {
	w.t.Helper()
	b := w.s.Begin()
	defer func() { w.s.Drop(b); w.current = nil }()
	want := w.view()
	for _, table := range tables {
		for i := range keyCount {
			k := at{table, keyOf(i)}
			got, ok, err := b.Get(table, []byte(k.key))
			e, known := want.entries[k]
			if err != nil || ok != known || !sameEntry(got, e) {
				w.t.Fatalf("batch: get %v: got %+v %v %v, want %+v %v", k, got, ok, err, e, known)
			}
		}
		for which := range state.All + 1 {
			keys, err := b.Keys(ctx, table, which)
			if got := collectKeys(w.t, keys, err); !slices.Equal(got, want.keys(table, which)) {
				w.t.Fatalf("batch: keys %d of table %d: got %q, want %q", which, table, got, want.keys(table, which))
			}
		}
	}
	for _, name := range names {
		got, ok := b.Meta(name)
		if v, known := want.meta[name]; ok != known || string(got) != v {
			w.t.Fatalf("batch: meta %s: got %q %v, want %q %v", name, got, ok, v, known)
		}
	}
}

func collectKeys(t tester, keys *state.Keys, err error) (all []string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for keys.Next() {
		all = append(all, string(keys.Key()))
	}
	if err := errors.Join(keys.Err(), keys.Close()); err != nil {
		t.Fatal(err)
	}
	return all
}

func (w *world) verifyCommitted() {
	w.t.Helper()
	want := w.committed()
	got := newModel()
	err := w.s.Each(ctx, func(table uint16, key []byte, e transform.Entry) error {
		e.Image = bytes.Clone(e.Image)
		k := at{table, string(key)}
		if _, twice := got.entries[k]; twice {
			return fmt.Errorf("%v twice", k)
		}
		got.entries[k] = e
		return nil
	})
	if err != nil {
		w.t.Fatalf("each: %v", err)
	}
	for _, table := range tables {
		for _, key := range w.s.AgainKeys(table) {
			got.again[at{table, string(key)}] = true
		}
		existing, deleted, notes := w.s.Count(table)
		counts := []int{len(want.keys(table, state.Existing)), len(want.keys(table, state.Deleted)), len(want.keys(table, state.Notes))}
		if !slices.Equal([]int{existing, deleted, notes}, counts) {
			w.t.Fatalf("count of table %d: got %d %d %d, want %v", table, existing, deleted, notes, counts)
		}
	}
	for _, name := range names {
		if v, ok := w.s.Meta(name); ok {
			got.meta[name] = string(v)
		}
	}
	if !reflect.DeepEqual(got, want) {
		w.t.Fatalf("the store is not what was committed (-want +got):\n%s", cmp.Diff(want, got, cmp.AllowUnexported(model{}, at{})))
	}
}

func drawKey(t *rapid.T) at {
	return at{rapid.SampledFrom(tables).Draw(t, "table"), keyOf(rapid.IntRange(0, keyCount-1).Draw(t, "key"))}
}

// drawEntry makes aggregates that exist or are deleted, and notes.
func drawEntry(t *rapid.T) transform.Entry {
	e := transform.Entry{
		Version: rapid.Uint64Range(0, 3).Draw(t, "version"),
		XID:     rapid.Uint32().Draw(t, "xid"),
		Place: transform.Place{
			Pos: capture.Position{
				LSN:   capture.LSN(rapid.Uint64().Draw(t, "lsn")),
				Kind:  capture.Kind(rapid.IntRange(0, 1).Draw(t, "kind")),
				Index: rapid.Uint32().Draw(t, "ordinal"),
			},
			Index: rapid.Uint16Range(0, 2).Draw(t, "index"),
		},
	}
	if rapid.Bool().Draw(t, "has an image") {
		e.Image = bytes.Repeat([]byte{byte(rapid.IntRange(0, 255).Draw(t, "byte"))},
			rapid.SampledFrom([]int{1, 7, 8, 60, 61, 300, 3000}).Draw(t, "size"))
	}
	if e.Exists() {
		e.Version++
	}
	return e
}

// ctx is that of all calls: none of these tests cancels.
var ctx = context.Background()

// TestModel lets random calls, crashes, losses of power and full disks loose on a
// store of small files whose keys collide.
func TestModel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // no wait for a keeper that stands still
		rapid.Check(struct{ testing.TB }{t}, course) // without Deadline, which a bubble does not have
	})
}

// course is one random life of a store.
func course(t *rapid.T) {
	w := newWorld(t, rapid.Uint64().Draw(t, "seed"), rapid.SampledFrom([]int64{500, 2000, 6000}).Draw(t, "segment"))
	number := rapid.IntRange(0, 99)
	put := func(t *rapid.T) {
		for range rapid.IntRange(1, 6).Draw(t, "puts") {
			w.put(drawKey(t), drawEntry(t))
		}
	}
	commit := func(*rapid.T) { w.commit() }
	step := func(t *rapid.T) {
		for range rapid.IntRange(1, 9).Draw(t, "steps") {
			w.step()
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"put": put, "put more": put, "put still more": put,
		"get":    func(t *rapid.T) { w.get(drawKey(t)) },
		"forget": func(t *rapid.T) { w.forget(drawKey(t)) },
		"again":  func(t *rapid.T) { w.list(drawKey(t), true) },
		"done":   func(t *rapid.T) { w.list(drawKey(t), false) },
		"meta": func(t *rapid.T) {
			value := []byte(rapid.SampledFrom([]string{"", "a", "some value"}).Draw(t, "value"))
			if rapid.Bool().Draw(t, "nil") {
				value = nil
			}
			w.setMeta(number.Draw(t, "flight"), rapid.SampledFrom(names).Draw(t, "name"), value)
		},
		"begin":  func(*rapid.T) { w.begin() },
		"commit": commit, "commit more": commit, "commit still more": commit,
		"drop":     func(t *rapid.T) { w.drop(number.Draw(t, "flight")) },
		"drop all": func(*rapid.T) { w.dropAll() },
		"sync":     func(*rapid.T) { w.sync() },
		"step":     step, "step more": step,
		"verify":     func(*rapid.T) { w.verify() },
		"reopen":     func(*rapid.T) { w.reopen() },
		"kill":       func(*rapid.T) { w.recover(false) },
		"power":      func(*rapid.T) { w.recover(true) },
		"crash soon": func(t *rapid.T) { w.disk.arm(rapid.IntRange(1, 12).Draw(t, "changes")) },
		"crash in recovery": func(t *rapid.T) {
			w.disk.armNext(rapid.IntRange(1, 8).Draw(t, "changes"))
			w.recover(rapid.Bool().Draw(t, "power"))
		},
		"full": func(t *rapid.T) { w.disk.limit(rapid.IntRange(0, 800).Draw(t, "room")) },
		"room": func(*rapid.T) { w.disk.limit(-1) },
	})
	w.disk.arm(0)
	w.disk.limit(-1)
	w.reopen()
}
