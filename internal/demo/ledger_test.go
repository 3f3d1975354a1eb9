package demo_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"backstory/internal/demo"
	"backstory/transform"
)

func event(key string, version uint64, kind, data string) *transform.Stored {
	return &transform.Stored{Event: transform.Event{Key: []byte(key), Version: version, Type: kind, Data: []byte(data)}}
}

func state(key, image string) *transform.Stored {
	r := &transform.Stored{Event: transform.Event{Key: []byte(key)}, Topic: transform.Latest}
	if image != "" {
		r.State = []byte(image)
	}
	return r
}

func text(s string) *string { return &s }

// history is a product that was imported and changed, and one that is gone.
func history() []*transform.Stored {
	return []*transform.Stored{
		event("1", 1, "ProductImported.v1", `{"old":{},"new":{"id":1,"price":"19.90","attributes":{"a": 1},"at":"2026-01-01T10:00:00.120000Z","note":null},"reason":null}`),
		event("1", 2, "PriceChanged.v1", `{"old":{"price":"19.90"},"new":{"price":"17.90"},"reason":"sale"}`),
		state("1", `{"id":1,"price":"17.90","attributes":{"a": 1},"at":"2026-01-01T10:00:00.120000Z","note":null}`),
		event("2", 1, "ProductCreated.v1", `{"old":{},"new":{"id":2},"reason":null}`),
		event("2", 2, "ProductDeleted.v1", `{"old":{"id":2},"new":{},"reason":null}`),
		state("2", ""),
	}
}

func table() map[string]demo.Source {
	return map[string]demo.Source{"1": {
		"id": text("1"), "price": text("17.90"), "attributes": text(`{"a":1}`), "at": text("2026-01-01 10:00:00.12+00"), "note": nil,
	}}
}

func TestLedgerAgrees(t *testing.T) {
	t.Parallel()
	l := demo.NewLedger()
	for _, r := range history() {
		if err := l.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.Compare(table()); len(got) > 0 {
		t.Errorf("got differences %q", got)
	}
	want := map[string]int{"PriceChanged.v1": 1, "ProductCreated.v1": 1, "ProductDeleted.v1": 1, "ProductImported.v1": 1}
	if d := cmp.Diff(want, l.Types()); d != "" {
		t.Error(d)
	}
	if e, s := l.Records(transform.Events), l.Records(transform.Latest); e != 4 || s != 2 {
		t.Errorf("got %d events and %d states, want 4 and 2", e, s)
	}
}

func TestLedgerFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func([]*transform.Stored) []*transform.Stored
		want   []string
	}{
		{"an event is missing", func(h []*transform.Stored) []*transform.Stored { return append(h[:1:1], h[2:]...) },
			[]string{"events, 1: price differs from the table"}},
		{"an event stands twice", func(h []*transform.Stored) []*transform.Stored { return append(h, h[1]) },
			[]string{"1: version 2 follows 2", "1: version 2 says that price was \"19.90\"; it was \"17.90\""}},
		{"no tombstone", func(h []*transform.Stored) []*transform.Stored { h[5] = state("2", `{"id":2}`); return h },
			[]string{"latest, 2: there, but not in the table"}},
		{"latest is behind", func(h []*transform.Stored) []*transform.Stored {
			h[2] = state("1", `{"id":1,"price":"19.90","attributes":{"a":1},"at":"2026-01-01T10:00:00.12Z","note":null}`)
			return h
		}, []string{"latest, 1: price differs from the table"}},
		{"NULL became text", func(h []*transform.Stored) []*transform.Stored {
			h[2] = state("1", `{"id":1,"price":"17.90","attributes":{"a":1},"at":"2026-01-01T10:00:00.12Z","note":""}`)
			return h
		}, []string{"latest, 1: note differs from the table"}},
		{"another field", func(h []*transform.Stored) []*transform.Stored {
			h[2] = state("1", `{"id":1,"price":"17.90","attributes":{"a":1},"at":"2026-01-01T10:00:00.12Z","note":null,"x":1}`)
			return h
		}, []string{"latest, 1: x is no column"}},
		{"nothing came", func([]*transform.Stored) []*transform.Stored { return nil },
			[]string{"events, 1: missing", "latest, 1: missing"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := demo.NewLedger()
			for _, r := range tt.change(history()) {
				if err := l.Add(r); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(tt.want, l.Compare(table())); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestLedgerRefusesWhatIsNoJSON(t *testing.T) {
	t.Parallel()
	if err := demo.NewLedger().Add(event("1", 1, "X", "{")); err == nil {
		t.Error("an event: no error")
	}
	if err := demo.NewLedger().Add(state("1", "{")); err == nil {
		t.Error("a state: no error")
	}
}
