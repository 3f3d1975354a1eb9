package state_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"backstory/internal/state"
	"backstory/transform"
)

// Of colliding keys, deleted ones, notes and other tables, those that exist and
// were not seen are met, also if they were moved or written in between.
func TestEachUnseen(t *testing.T) {
	t.Parallel()
	s, err := state.OpenWith(t.Context(), state.Options{Disk: newFaultDisk(1), SegmentBytes: 1 << 20,
		Hash: func(_ uint16, key []byte) uint64 { return uint64(key[len(key)-1]) << 56 }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put := func(table uint16, key string, e transform.Entry) {
		t.Helper()
		b := s.Begin()
		if err := b.Put(table, []byte(key), e); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(b); err != nil {
			t.Fatal(err)
		}
	}
	exists := transform.Entry{Version: 1, Place: transform.Place{Index: 1}, Image: []byte("{}")}
	var seen state.Seen
	var want []string
	for i := range 40 {
		key := fmt.Sprintf("key %d", i)
		put(1, key, exists)
		put(2, key, exists)
		if i%3 == 0 {
			want = append(want, key)
			continue
		}
		b := s.Begin()
		if err := b.See(&seen, 1, []byte(key)); err != nil {
			t.Fatal(err)
		}
		if err := b.See(&seen, 1, []byte("unknown "+key)); err != nil {
			t.Fatal(err)
		}
		s.Drop(b)
		put(1, key, exists)
	}
	put(1, "key 0", transform.Entry{Version: 2})
	put(1, "a note", transform.Entry{XID: 7})
	want = want[1:]
	var got []string
	if err := s.EachUnseen(t.Context(), 1, &seen, func(key []byte) error { got = append(got, string(key)); return nil }); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
