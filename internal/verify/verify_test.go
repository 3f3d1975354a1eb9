package verify_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"backstory/capture"
	"backstory/internal/verify"
	"backstory/sink"
	"backstory/transform"
)

func (w *world) verify() *verify.Result {
	w.tb.Helper()
	cfg := verify.Config{ChunkRows: 7, StateParts: 2, Patience: 10 * time.Second, Limit: 100, ScratchDir: w.tb.TempDir()}
	v := verify.New(cfg, w.mapping, w.mapped, capture.TableInfo{}, w.id, w, w, w)
	result, err := v.Run(w.tb.Context())
	if err != nil {
		w.tb.Fatal(err)
	}
	return result
}

func told(r *verify.Result) string {
	lines := []string{r.String()}
	for i := range r.Differences {
		lines = append(lines, r.Differences[i].String())
	}
	return strings.Join(append(lines, r.Unsettled...), "\n")
}

// Random writers, a bridge that lags and transactions that become visible late
// never make a difference.
func TestNothingDiffersInAMovingWorld(t *testing.T) {
	t.Parallel()
	again := int64(0)
	for seed := range uint64(100) {
		w := newWorld(t, seed, 20)
		r := w.verify()
		if !r.Equal {
			t.Fatalf("seed %d:\n%s", seed, told(r))
		}
		if r.Compared.Events != int64(w.read[transform.Events]) || r.Compared.Keys < r.Compared.Rows || r.Compared.Keys < 20 {
			t.Fatalf("seed %d: not everything was compared: %+v", seed, r.Compared)
		}
		again += r.Compared.LookedAgain
	}
	if again == 0 {
		t.Error("no key was looked at again: the window between commit and visibility was never met")
	}
}

// A key whose newest change is never visible is decided all the same, at the second
// look.
func TestHotKeyIsCompared(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		w := newWorld(t, seed, 20)
		hot := key(0)
		w.freeze(hot)
		w.heat(hot)
		w.steps()
		if r := w.verify(); !r.Equal || r.Compared.LookedAgain == 0 {
			t.Fatalf("seed %d: %d looks repeated\n%s", seed, r.Compared.LookedAgain, told(r))
		}
	}
}

// corruption changes one thing about a key that no writer touches any more, and
// reports false where the key is in no state to be corrupted in that way.
type corruption struct {
	name  string
	plant func(w *world, k string) bool
	sides [2]verify.Side
}

const absent = "zzz" // a key that nobody writes

func corruptions() []corruption {
	state := [2]verify.Side{verify.State, verify.Events}
	table := [2]verify.Side{verify.Table, verify.Events}
	latest := [2]verify.Side{verify.Latest, verify.Events}
	events := [2]verify.Side{verify.Events, verify.Events}
	return []corruption{
		{"row changed", func(w *world, k string) bool {
			_, ok := w.rows[k]
			if ok {
				w.rows[k] += 1000
			}
			return ok
		}, table},
		{"row removed", func(w *world, k string) bool {
			_, ok := w.rows[k]
			delete(w.rows, k)
			return ok
		}, table},
		{"row made", func(w *world, _ string) bool { w.rows[absent] = 1; return true }, table},
		{"image in the state", entry(func(e *transform.Entry) { e.Image = []byte(strings.Replace(string(e.Image), "name of", "nick of", 1)) }), state},
		{"version in the state", entry(func(e *transform.Entry) { e.Version++ }), state},
		{"older version in the state", entry(func(e *transform.Entry) { e.Version-- }), state},
		{"xid in the state", entry(func(e *transform.Entry) { e.XID += 7 }), state},
		{"position in the state", entry(func(e *transform.Entry) { e.Place.Pos.Index += 7 }), state},
		{"deleted in the state", entry(func(e *transform.Entry) { e.Image = nil }), state},
		{"missing in the state", func(w *world, k string) bool {
			_, ok := w.state[k]
			delete(w.state, k)
			return ok
		}, state},
		{"extra in the state", func(w *world, _ string) bool {
			w.state[absent] = transform.Entry{Version: 1, Place: transform.Place{Index: 1}, Image: []byte(`{"id":"zzz"}`)}
			return true
		}, state},
		{"image in latest", record(transform.Latest, func(s *sink.Scanned) bool {
			s.State = []byte(strings.Replace(string(s.State), "name of", "nick of", 1))
			return len(s.State) > 0
		}), latest},
		{"tombstone in latest", record(transform.Latest, func(s *sink.Scanned) bool {
			had := s.State != nil
			s.State = nil
			return had
		}), latest},
		{"xid in latest", record(transform.Latest, func(s *sink.Scanned) bool { s.XID += 7; return true }), latest},
		{"offset in latest", record(transform.Latest, func(s *sink.Scanned) bool { s.EventsOffset = 1 << 40; return true }),
			[2]verify.Side{verify.Latest}},
		{"missing in latest", func(w *world, k string) bool { return w.removed(transform.Latest, k, true) }, latest},
		{"extra in latest", func(w *world, k string) bool { return w.renamed(transform.Latest, k) }, latest},
		{"new value of an event", record(transform.Events, func(s *sink.Scanned) bool {
			old := string(s.Data)
			s.Data = []byte(strings.Replace(old, `"new":{"stock":`, `"new":{"stock":7`, 1))
			return string(s.Data) != old
		}), table},
		{"old value of an event", record(transform.Events, func(s *sink.Scanned) bool {
			old := string(s.Data)
			s.Data = []byte(strings.Replace(old, `"old":{"stock":`, `"old":{"stock":7`, 1))
			return string(s.Data) != old
		}), events},
		{"id of an event", record(transform.Events, func(s *sink.Scanned) bool { s.ID[3]++; return true }), [2]verify.Side{verify.Events}},
		{"events of a key are gone", func(w *world, k string) bool { return w.removed(transform.Events, k, true) }, [2]verify.Side{verify.State, verify.Events}},
		{"newest event is gone", func(w *world, k string) bool { return w.removed(transform.Events, k, false) }, [2]verify.Side{verify.State, verify.Events}},
		{"extra event", func(w *world, k string) bool { return w.renamed(transform.Events, k) }, [2]verify.Side{verify.Events}},
		{"wrong partition", record(transform.Events, func(s *sink.Scanned) bool { s.Home = 3; return true }), [2]verify.Side{}},
		{"no event at all", record(transform.Events, func(s *sink.Scanned) bool { s.Problem = "header ce_id is missing"; return true }), [2]verify.Side{}},
	}
}

func entry(change func(*transform.Entry)) func(*world, string) bool {
	return func(w *world, k string) bool {
		e, ok := w.state[k]
		if !ok || !e.Exists() || e.Version < 2 {
			return false
		}
		change(&e)
		w.state[k] = e
		return true
	}
}

// record changes the newest record of a key.
func record(topic transform.Topic, change func(*sink.Scanned) bool) func(*world, string) bool {
	return func(w *world, k string) bool {
		for i := range slices.Backward(w.topics[topic]) {
			if s := &w.topics[topic][i]; string(s.Key) == k {
				return change(s)
			}
		}
		return false
	}
}

// removed takes the newest record of a key out of a topic, or all of them.
func (w *world) removed(topic transform.Topic, k string, all bool) bool {
	before := len(w.topics[topic])
	for i := range slices.Backward(w.topics[topic]) {
		if string(w.topics[topic][i].Key) == k && (all || len(w.topics[topic]) == before) {
			w.topics[topic] = slices.Delete(w.topics[topic], i, i+1)
		}
	}
	return len(w.topics[topic]) < before
}

// renamed appends a copy of a key's newest record under a key that is not there.
func (w *world) renamed(topic transform.Topic, k string) bool {
	for i := range slices.Backward(w.topics[topic]) {
		if s := w.topics[topic][i]; string(s.Key) == k {
			s.Key = []byte(absent)
			w.topics[topic] = append(w.topics[topic], s)
			return true
		}
	}
	return false
}

// Each corruption of one key is told, with its sides, and nothing is told of others.
func TestEachCorruptionIsFound(t *testing.T) {
	t.Parallel()
	for _, c := range corruptions() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			planted := 0
			for seed := uint64(0); planted < 4 && seed < 60; seed++ {
				w := newWorld(t, seed, 12)
				k := key(2 + w.rng.IntN(10))
				w.freeze(k)
				if !c.plant(w, k) {
					continue
				}
				planted++
				w.wantOnly(k, c, fmt.Sprintf("seed %d, key %s", seed, k))
			}
			if planted < 4 {
				t.Errorf("planted %d times only", planted)
			}
		})
	}
}

// freeze waits until nobody writes a key and the bridge has all of it.
func (w *world) freeze(k string) {
	w.frozen[k] = true
	for {
		busy := w.locked[k] || w.piece != nil
		for _, t := range w.wal {
			busy = busy || slices.Contains(t.keys, k)
		}
		if !busy {
			return
		}
		w.step()
	}
}

func (w *world) wantOnly(k string, c corruption, where string) {
	w.tb.Helper()
	r := w.verify()
	named := false
	for i := range r.Differences {
		d := &r.Differences[i]
		if d.Key != k && d.Key != absent {
			w.tb.Fatalf("%s: nobody planted this: %s", where, d)
		}
		sides := [2]verify.Side{}
		for i := range min(2, len(d.Values)) {
			sides[i] = d.Values[i].Side
		}
		named = named || sides == c.sides
	}
	if !named || r.Equal || r.NotCompared > 0 {
		w.tb.Fatalf("%s: want a difference of %q:\n%s", where, c.sides, told(r))
	}
}
