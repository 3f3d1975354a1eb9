package bridge_test

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"backstory/capture"
	"backstory/internal/bridge"
)

// remade is what somebody leaves who drops the slot on the new server and makes it
// again: what was committed below is in no stream.
func (db *fakeDB) remade(confirmed capture.LSN) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.confirmed = max(db.confirmed, confirmed)
}

// A slot that was made again after a fail-over, anywhere: it is refused, or the tables
// are compared, but nothing is left out in silence. Where the topics have a later
// change than the state, they need not have all that the slot has passed: another
// partition may lack an earlier one.
func TestFailoverWithAnotherSlot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w, remove := fresh(rt)
		defer remove()
		w.db.busy = true
		w.kafka.faults = rapid.SampledFrom([]float64{0.1, 0.3, 0.5}).Draw(rt, "faults")
		w.oneLife(rt)
		ends := w.db.ends()
		w.db.promote(ends[len(ends)-1], ends[len(ends)-1])
		w.db.remade(ends[max(0, len(ends)-1-rapid.IntRange(0, 9).Draw(rt, "behind the end"))])
		if err := w.settled(rt); err != nil {
			if refusal := new(bridge.Refusal); !errors.As(err, &refusal) {
				rt.Fatalf("got %v, want a refusal", err)
			}
			w.repair = true
			if err := w.settled(rt); err != nil {
				rt.Fatalf("repair: %v", err)
			}
		}
		w.equal(rt)
	})
}
