package bridge_test

import (
	"errors"
	"testing"
	"time"

	"backstory/internal/bridge"
)

// A topic that has become unfit ends the bridge: at the start of a session before
// anybody is fenced, and while it runs. That brokers do not answer ends nothing.
func TestTopicsAreLookedAt(t *testing.T) {
	t.Parallel()
	unfit := &bridge.Refusal{Thing: "topic t", Problem: "it is compacted", Cure: "alter it"}
	set := func(w *world, err error) {
		w.kafka.mu.Lock()
		defer w.kafka.mu.Unlock()
		w.kafka.unfit = err
	}
	t.Run("at the start", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		set(w, unfit)
		if err := w.begin(t, time.Millisecond).ended(t); !errors.Is(err, unfit) || w.kafka.session() != 0 {
			t.Errorf("got %v after %d fences, want the refusal before any", err, w.kafka.session())
		}
	})
	t.Run("while it runs", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		i := w.begin(t, time.Millisecond)
		i.imported(t)
		set(w, unfit)
		if err := i.ended(t); !errors.Is(err, unfit) {
			t.Errorf("got %v, want the refusal", err)
		}
	})
	t.Run("without an answer", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		set(w, errors.New("no broker answers"))
		i := w.begin(t, time.Millisecond)
		i.imported(t)
		i.stop()
		if err := i.ended(t); err != nil {
			t.Errorf("got %v, want an orderly end", err)
		}
	})
}
