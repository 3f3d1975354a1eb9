package transform_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"backstory/capture"
	"backstory/transform"

	"github.com/google/go-cmp/cmp"
)

// The changes of one batch that give keys away and take them. All updates leave
// the large column out, so that it must come from the image of the old key.
var moves = []struct {
	name    string
	changes []*capture.Change
}{
	{"one key", []*capture.Change{moving(1, "1", "5")}},
	{"the new key lived before, in the same batch", []*capture.Change{
		insertion(products(), at(0x20, 1), "5", "Desk", "1.00", "1", "a desk"),
		deletion(products(), at(0x20, 2), "5"),
		moving(3, "1", "5"),
	}},
	{"the new key lived before, in the state", []*capture.Change{
		deletion(products(), at(0x20, 1), "2"),
		moving(2, "1", "2"),
	}},
	{"the old key is taken anew", []*capture.Change{
		moving(1, "1", "5"),
		insertion(products(), at(0x20, 2), "1", "Desk", "1.00", "1", "a desk"),
	}},
	{"a chain", []*capture.Change{moving(1, "1", "5"), moving(2, "5", "6"), moving(3, "6", "7")}},
	{"a ring", []*capture.Change{moving(1, "1", "5"), moving(2, "5", "6"), moving(3, "6", "1")}},
	{"two keys swapped", []*capture.Change{moving(1, "1", "9"), moving(2, "2", "1"), moving(3, "9", "2")}},
	{"two keys swapped, and back", []*capture.Change{
		moving(1, "1", "9"), moving(2, "2", "1"), moving(3, "9", "2"),
		moving(4, "1", "9"), moving(5, "2", "1"), moving(6, "9", "2"),
	}},
	{"the successor changes and goes", []*capture.Change{
		moving(1, "1", "5"),
		updating(products(), at(0x20, 2), "5", "Lamp", "3.00", "7", unchanged),
		deletion(products(), at(0x20, 3), "5"),
	}},
}

// moving is an update of the key and the price.
func moving(index uint32, from, to string) *capture.Change {
	c := updating(products(), at(0x20, index), to, "Lamp", fmt.Sprint(index), "5", unchanged)
	c.Old = keyTuple(c.Relation, from)
	return c
}

// Whatever events of a batch a crash lets through in each partition, and in
// whatever order they are folded, the redelivered batch yields exactly the rest.
func TestMovedHalfway(t *testing.T) {
	t.Parallel()
	for _, tt := range moves {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			before := newMemory()
			deliver(t, before,
				insertion(products(), at(0x10, 1), "1", "Lamp", "19.90", "5", "a large lamp"),
				insertion(products(), at(0x10, 2), "2", "Chair", "49.00", "2", "a large chair"))
			whole := deliver(t, before.clone(), tt.changes...)
			keys := slices.Sorted(maps.Keys(whole))
			landed := make([]int, len(keys)) // how many events of each key
			for {
				for _, order := range [][]string{keys, reversed(keys)} {
					st := before.clone()
					for _, key := range order {
						land(t, st, whole[key][:landed[slices.Index(keys, key)]])
					}
					got := deliver(t, st, tt.changes...)
					for i, key := range keys {
						got[key] = append(slices.Clone(whole[key][:landed[i]]), got[key]...)
					}
					if diff := cmp.Diff(whole, got); diff != "" {
						t.Fatalf("keys %q, landed %v, folded in the order %q (-whole +got):\n%s", keys, landed, order, diff)
					}
					if len(st.old) > 0 {
						t.Errorf("keys %q, landed %v: old images are left: %q", keys, landed, st.old)
					}
				}
				if !advance(landed, keys, whole) {
					return
				}
			}
		})
	}
}

// deliver applies changes and returns the events by key.
func deliver(t *testing.T, st *memory, changes ...*capture.Change) map[string][]transform.Event {
	t.Helper()
	var out transform.Output
	tr := transform.New(mustMapping(t, productsMapping), identity)
	for _, c := range changes {
		if err := tr.Apply(&out, c, st); err != nil {
			t.Fatal(err)
		}
	}
	if len(st.again) > 0 {
		t.Errorf("to be read again: %v", st.again)
	}
	events := make(map[string][]transform.Event)
	for _, e := range out.Events {
		e.Table = nil
		events[string(e.Key)] = append(events[string(e.Key)], e)
	}
	return events
}

// land folds events that stand in the topic into the state.
func land(t *testing.T, st *memory, events []transform.Event) {
	t.Helper()
	m := mustMapping(t, productsMapping)
	for _, e := range events {
		e.Table = m.Tables[0]
		record := transform.Stored{Event: e, Topic: transform.Events}
		entry := st.entries[string(e.Key)]
		if applied, _, err := transform.Fold(&entry, &record, nil); err != nil || !applied {
			t.Fatalf("fold of %s: got %v, %v", e.ID, applied, err)
		}
		st.entries[string(e.Key)] = entry
		if err := transform.New(m, identity).Moved(&record, st); err != nil {
			t.Fatal(err)
		}
	}
}

func reversed(keys []string) []string {
	r := slices.Clone(keys)
	slices.Reverse(r)
	return r
}

// advance counts landed on to the next combination and reports whether there is
// one.
func advance(landed []int, keys []string, whole map[string][]transform.Event) bool {
	for i, key := range keys {
		if landed[i]++; landed[i] <= len(whole[key]) {
			return true
		}
		landed[i] = 0
	}
	return false
}
