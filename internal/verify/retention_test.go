package verify_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"backstory/internal/verify"
	"backstory/sink"
	"backstory/transform"
)

// shares of the events that retention has taken when the verification begins.
var shares = map[string]func(w *world) int{
	"none": func(*world) int { return 0 },
	"few":  func(*world) int { return 5 },
	"half": func(w *world) int { return len(w.topics[transform.Events]) / 2 },
	"most": func(w *world) int { return len(w.topics[transform.Events]) - 4 },
	"all":  func(w *world) int { return len(w.topics[transform.Events]) },
}

// What retention has taken is no difference, while writers write; the result says of
// how many aggregates events were missing.
func TestRetentionIsNoDifference(t *testing.T) {
	t.Parallel()
	for name, share := range shares {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cut, gone int64
			for seed := range uint64(25) {
				w := newWorld(t, seed, 20)
				w.retain(share(w))
				r := w.verify()
				if !r.Equal {
					t.Fatalf("seed %d:\n%s", seed, told(r))
				}
				cut, gone = cut+r.Compared.EventsCut, gone+r.Compared.EventsGone
			}
			if want := name != "none"; cut+gone > 0 != want || name == "all" && gone == 0 || name == "half" && cut == 0 {
				t.Errorf("%d aggregates had some events left, %d none", cut, gone)
			}
		})
	}
}

// A hot key of which the first events are gone never rests; it is decided all the same.
func TestHotKeyUnderRetention(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		w := newWorld(t, seed, 20)
		w.retain(shares["half"](w))
		hot := key(0)
		w.freeze(hot)
		w.heat(hot)
		w.steps()
		if r := w.verify(); !r.Equal {
			t.Fatalf("seed %d:\n%s", seed, told(r))
		}
	}
}

// Where the mapping does not ask for retention, events that are gone are missing.
func TestEventsThatNobodyLetGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 20)
	w.retain(shares["half"](w))
	w.mapped.Topics.Retention = 0
	r := w.verify()
	has := func(p verify.Problem) bool {
		return slices.ContainsFunc(r.Differences, func(d verify.Difference) bool { return d.Problem == p })
	}
	if r.Equal || !has(verify.EventsRemoved) || !has(verify.GapInVersions) {
		t.Errorf("events are missing, and nobody asked for that:\n%s", told(r))
	}
}

// A gap behind the first event that is left is none of retention's.
func TestGapUnderRetention(t *testing.T) {
	t.Parallel()
	planted := 0
	for seed := uint64(0); planted < 4 && seed < 60; seed++ {
		w := newWorld(t, seed, 12)
		w.retain(shares["half"](w))
		k := key(2 + w.rng.IntN(10))
		w.freeze(k)
		at := make([]int, 0, 8)
		for i := range w.topics[transform.Events] {
			if string(w.topics[transform.Events][i].Key) == k {
				at = append(at, i)
			}
		}
		if len(at) < 3 {
			continue
		}
		planted++
		w.topics[transform.Events] = slices.Delete(w.topics[transform.Events], at[1], at[1]+1)
		r := w.verify()
		if !slices.ContainsFunc(r.Differences, func(d verify.Difference) bool { return d.Problem == verify.GapInVersions && d.Key == k }) {
			t.Errorf("seed %d, key %s:\n%s", seed, k, told(r))
		}
	}
	if planted < 4 {
		t.Errorf("planted %d times only", planted)
	}
}

// What is wrong with an aggregate is told though its events are gone, all or some.
func TestCorruptionIsFoundUnderRetention(t *testing.T) {
	t.Parallel()
	undecidable := []string{ // what is no more there can't be missed
		"events of a key are gone", "newest event is gone", "new value of an event", "old value of an event", "id of an event",
		"extra event", "wrong partition", "no event at all", "offset in latest",
	}
	for _, name := range []string{"half", "all"} {
		for _, c := range corruptions() {
			if slices.Contains(undecidable, c.name) {
				continue
			}
			t.Run(c.name+", "+name+" gone", func(t *testing.T) {
				t.Parallel()
				planted := 0
				for seed := uint64(0); planted < 4 && seed < 60; seed++ {
					w := newWorld(t, seed, 12)
					k := key(2 + w.rng.IntN(10))
					w.freeze(k)
					w.retain(shares[name](w))
					if !c.plant(w, k) {
						continue
					}
					planted++
					w.wantKeys(fmt.Sprintf("seed %d, key %s", seed, k), k, absent)
				}
				if planted < 4 {
					t.Errorf("planted %d times only", planted)
				}
			})
		}
	}
}

// wantKeys wants differences of these keys, at least of one of them, and of no others.
func (w *world) wantKeys(where string, keys ...string) *verify.Result {
	w.tb.Helper()
	r := w.verify()
	if r.Equal || r.Found == 0 || r.NotCompared > 0 {
		w.tb.Fatalf("%s: want differences of %q:\n%s", where, keys, told(r))
	}
	for i := range r.Differences {
		if !slices.Contains(keys, r.Differences[i].Key) {
			w.tb.Fatalf("%s: nobody planted this: %s", where, &r.Differences[i])
		}
	}
	return r
}

// Times that no record can have are told, each with what it is.
func TestWrongTimes(t *testing.T) {
	t.Parallel()
	zero := func(s *sink.Scanned) bool { s.Time, s.Timestamp = 0, 0; return true }
	future := func(s *sink.Scanned) bool {
		s.Time += 100 * 365 * 86_400 * 1_000_000
		s.Timestamp = s.Time / 1000
		return true
	}
	later := func(s *sink.Scanned) bool {
		s.Time += 1_000_000
		s.Timestamp += 1000
		return true
	}
	for _, tt := range []struct {
		name    string
		topics  []transform.Topic // in which the newest record of the key is changed
		change  func(*sink.Scanned) bool
		problem verify.Problem
		says    string
	}{
		{"event at zero", []transform.Topic{transform.Events}, zero, verify.WrongTime, "never given its time"},
		{"latest at zero", []transform.Topic{transform.Latest}, zero, verify.WrongTime, "never given its time"},
		{"both at zero", []transform.Topic{transform.Events, transform.Latest}, zero, verify.WrongTime, "never given its time"},
		{"a second after 1970", []transform.Topic{transform.Events}, func(s *sink.Scanned) bool { s.Time, s.Timestamp = 1_000_000, 1000; return true },
			verify.WrongTime, "never given its time"},
		{"event in the future", []transform.Topic{transform.Events}, future, verify.WrongTime, "in the future"},
		{"latest in the future", []transform.Topic{transform.Latest}, future, verify.WrongTime, "in the future"},
		{"timestamp of an event", []transform.Topic{transform.Events}, func(s *sink.Scanned) bool { s.Timestamp++; return true },
			verify.WrongTime, "the record's timestamp"},
		{"timestamp of a latest record", []transform.Topic{transform.Latest}, func(s *sink.Scanned) bool { s.Timestamp = 0; return true },
			verify.WrongTime, "the record's timestamp"},
		{"latest later than its event", []transform.Topic{transform.Latest}, later, verify.HeadersDiffer, `time: headers differ: latest has`},
		{"event later than latest", []transform.Topic{transform.Events}, later, verify.HeadersDiffer, `time: headers differ: latest has`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(6) {
				w := newWorld(t, seed, 12)
				k := key(2 + w.rng.IntN(10))
				w.freeze(k)
				there := true
				for _, topic := range tt.topics {
					there = record(topic, tt.change)(w, k) && there
				}
				if !there {
					continue
				}
				r := w.wantKeys(fmt.Sprintf("seed %d", seed), append(w.sharing(k), k)...)
				if !slices.ContainsFunc(r.Differences, func(d verify.Difference) bool {
					return d.Problem == tt.problem && d.Field == "time" && strings.Contains(d.String(), tt.says)
				}) {
					t.Errorf("seed %d, key %s:\n%s", seed, k, told(r))
				}
			}
		})
	}
}

// sharing are the keys that have an event of the same commit as one of a key.
func (w *world) sharing(k string) []string {
	var keys []string
	for i := range w.topics[transform.Events] {
		for j := range w.topics[transform.Events] {
			a, b := &w.topics[transform.Events][i], &w.topics[transform.Events][j]
			if string(a.Key) == k && a.Place.Pos.LSN == b.Place.Pos.LSN {
				keys = append(keys, string(b.Key))
			}
		}
	}
	return keys
}

// All events of one commit have one time: one of another is told, whichever of them
// it is, and names the one that it was compared with.
func TestTimesOfOneCommit(t *testing.T) {
	t.Parallel()
	planted := 0
	for seed := uint64(0); planted < 8 && seed < 60; seed++ {
		w := newWorld(t, seed, 12)
		k := key(2 + w.rng.IntN(10))
		w.freeze(k)
		others := w.sharing(k)
		var at *sink.Scanned
		for i := range w.topics[transform.Events] {
			if s := &w.topics[transform.Events][i]; string(s.Key) == k && w.shared(s) {
				at = s // one that is not its key's newest, mostly: latest has nothing to say of it
			}
		}
		if at == nil {
			continue
		}
		planted++
		at.Time += 5_000_000
		at.Timestamp += 5000
		r := w.wantKeys(fmt.Sprintf("seed %d", seed), append(others, k)...)
		if !slices.ContainsFunc(r.Differences, func(d verify.Difference) bool {
			return d.Problem == verify.WrongTime && strings.Contains(d.Detail, "of the same commit or chunk")
		}) {
			t.Errorf("seed %d, key %s:\n%s", seed, k, told(r))
		}
	}
	if planted < 8 {
		t.Errorf("planted %d times only", planted)
	}
}

// shared reports whether another key has an event of the same commit.
func (w *world) shared(s *sink.Scanned) bool {
	return slices.ContainsFunc(w.topics[transform.Events], func(o sink.Scanned) bool {
		return o.Place.Pos.LSN == s.Place.Pos.LSN && string(o.Key) != string(s.Key)
	})
}

// A time that all records of a commit agree on is told where the server knows better.
func TestTimeOfAnotherCommit(t *testing.T) {
	t.Parallel()
	found := 0
	for seed := range uint64(20) {
		w := newWorld(t, seed, 12)
		w.freeze(key(5))
		events := w.topics[transform.Events]
		lsn := events[len(events)/2].Place.Pos.LSN
		var keys []string
		for topic := range w.topics {
			for i := range w.topics[topic] {
				if s := &w.topics[topic][i]; s.Place.Pos.LSN == lsn {
					s.Time -= 3_600_000_000
					s.Timestamp -= 3_600_000
					keys = append(keys, string(s.Key))
				}
			}
		}
		r := w.verify()
		for i := range r.Differences {
			if d := &r.Differences[i]; !slices.Contains(keys, d.Key) || d.Problem != verify.WrongTime || !strings.Contains(d.Detail, "was committed") {
				t.Fatalf("seed %d: nobody planted this: %s", seed, d)
			}
		}
		if r.Compared.CommitTimes == 0 {
			t.Errorf("seed %d: the server was not asked", seed)
		}
		found += r.Found
	}
	if found < 5 { // the world's server knows half of the transactions
		t.Errorf("found %d of 20", found)
	}
}
