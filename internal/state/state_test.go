package state_test

import (
	"fmt"
	"log/slog"
	"testing"

	"backstory/internal/state"
	"backstory/transform"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		s, err := state.Open(t.Context(), state.Config{Dir: dir, SegmentBytes: 1 << 20}, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 && !s.Empty() {
			t.Fatal("not empty")
		}
		for v := range 200 {
			b := s.Begin()
			for i := range 100 {
				key := fmt.Appendf(nil, "key-%d", (i*7+v*13)%1000)
				e, _, err := b.Get(1, key)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Put(1, key, transform.Entry{Version: e.Version + 1, Place: transform.Place{Index: 1}, Image: fmt.Appendf(nil, "image %d %0500d", e.Version+1, i)}); err != nil {
					t.Fatal(err)
				}
			}
			b.SetMeta("lsn", fmt.Appendf(nil, "%d-%d", round, v))
			if err := s.Commit(b); err != nil {
				t.Fatal(err)
			}
		}
		all, live := s.DiskBytes()
		n, _, _ := s.Count(1)
		t.Log(round, n, all, live, s.Committed())
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
