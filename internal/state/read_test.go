package state_test

import (
	"fmt"
	"log/slog"
	"testing"

	"backstory/internal/state"
	"backstory/transform"
)

// Lookup and EachOf show what is committed, and nothing of a batch that is not.
func TestReadCommitted(t *testing.T) {
	t.Parallel()
	s, err := state.Open(t.Context(), state.Config{Dir: t.TempDir()}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put := func(b *state.Batch, key string, e transform.Entry) {
		if err := b.Put(1, []byte(key), e); err != nil {
			t.Fatal(err)
		}
	}
	live := transform.Entry{Version: 2, XID: 9, Place: transform.Place{Index: 1}, Image: []byte(`{"n":1}`)}
	b := s.Begin()
	for i := range 1000 {
		put(b, fmt.Sprint("key", i), live)
	}
	put(b, "gone", transform.Entry{Version: 3, Place: transform.Place{Index: 1}})
	put(b, "noted", transform.Entry{XID: 5})
	put(b, "forgotten", transform.Entry{XID: 5})
	if err := b.Again(1, []byte("noted")); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(b); err != nil {
		t.Fatal(err)
	}
	b = s.Begin()
	if err := b.Forget(1, []byte("forgotten")); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(b); err != nil {
		t.Fatal(err)
	}
	b = s.Begin()
	put(b, "key1", transform.Entry{Version: 3, Place: transform.Place{Index: 1}, Image: []byte(`{"n":2}`)})
	put(b, "new", live)

	for _, tt := range []struct {
		key          string
		version      uint64
		found, again bool
	}{
		{"key1", 2, true, false}, {"new", 0, false, false}, {"gone", 3, true, false}, {"noted", 0, true, true}, {"forgotten", 0, false, false},
	} {
		e, found, again, err := s.Lookup(1, []byte(tt.key))
		if err != nil || e.Version != tt.version || found != tt.found || again != tt.again {
			t.Errorf("%s: got %+v, %t, %t, %v", tt.key, e, found, again, err)
		}
	}
	if _, found, _, err := s.Lookup(2, []byte("key1")); found || err != nil {
		t.Errorf("a key of another table: %t, %v", found, err)
	}
	seen := map[string]int{}
	for part := range state.Parts {
		if err := s.EachOf(t.Context(), part, func(_ uint16, key []byte, _ transform.Entry) error {
			seen[string(key)]++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 1002 || seen["key7"] != 1 || seen["new"] != 0 || seen["forgotten"] != 0 {
		t.Errorf("%d keys: %d, %d, %d", len(seen), seen["key7"], seen["new"], seen["forgotten"])
	}
	if err := s.EachOf(t.Context(), state.Parts, nil); err == nil {
		t.Error("a part that is not there: no error")
	}
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := s.Lookup(1, []byte("key1")); err == nil {
		t.Error("a closed store: no error")
	}
}
