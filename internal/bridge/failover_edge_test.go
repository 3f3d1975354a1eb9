package bridge_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"backstory/capture"
	"backstory/internal/testenv"
	"backstory/transform"
)

// ahead runs a process that dies with the events of some requests in the topic, and
// the state as it was.
func (w *world) ahead(t *testing.T, lands func(request) bool) {
	t.Helper()
	w.kafka.mu.Lock()
	w.kafka.lands = lands
	w.kafka.mu.Unlock()
	i := w.begin(t, time.Millisecond)
	if dead := new(crash); !errors.As(i.ended(t), &dead) {
		t.Fatal("the process has not died")
	}
	if err := i.store.Close(); err != nil {
		t.Fatal(err)
	}
}

// The process died with events appended and the state not committed, and the fail-over
// loses just that WAL: only the topics tell.
func TestFailoverLosesWhatTheStateNeverHad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.db.standing(newRow("1", "", "1.00", "0"))
	w.confirms(t, "2")
	before := w.db.confirmedAt()
	w.db.insert("3")
	w.ahead(t, func(request) bool { return true })
	w.db.promote(before, before)
	w.refuses(t)
}

// The fail-over loses a change of which the stream has told and that made no event:
// nothing in the topics is of a lost history, so the bridge goes on, and does not wait
// for a transaction that never comes again.
func TestFailoverLosesWhatMadeNoEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.db.standing(newRow("1", "", "1.00", "0"))
	w.confirms(t, "2")
	before := w.db.confirmedAt()
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	same := w.db.commit(func(t *tx) { t.put(capture.OpUpdate, t.db.rows["1"], slices.Clone(t.db.rows["1"])) })
	w.db.appear(true)
	testenv.Eventually(t, time.Minute, func() error {
		if got := w.db.confirmedAt(); got < same.end {
			return fmt.Errorf("confirmed %s, want %s", got, same.end)
		}
		return nil
	})
	i.end(t)
	w.db.promote(before, before)
	for key := range 3 { // until WAL has passed the place of the lost change
		w.confirms(t, fmt.Sprint(10+key))
	}
	w.check(t)
}

// A slot that was made again above what the state has, and below what is published:
// the topics have a later change, and lack one before it, of another partition. The
// tables are compared.
func TestSlotMadeAgainBelowWhatIsPublished(t *testing.T) {
	t.Parallel()
	found := 0
	for seed := range uint64(10) {
		w := &world{db: newFakeDB(seed), kafka: newKafka(seed), dirs: [2]string{t.TempDir(), t.TempDir()}}
		w.db.standing(newRow("1", "as it was once", "1.00", "0"))
		w.confirms(t, "2")
		before := w.db.confirmedAt()
		lost := w.db.commit(func(t *tx) {
			now := slices.Clone(t.db.rows["1"])
			now[colDescription] = text("what the stream has lost")
			t.put(capture.OpUpdate, t.db.rows["1"], now)
		})
		end := w.db.insert("3")
		w.ahead(t, func(r request) bool { return r.partition == partitionOf([]byte("3")) })
		if len(w.kafka.records(transform.Events)) < 3 {
			continue // the two came in batches of their own
		}
		found++
		w.db.promote(end, before)
		w.db.mu.Lock()
		w.db.confirmed = lost.end
		w.db.mu.Unlock()
		i := w.begin(t, time.Millisecond)
		w.tells(t, "1", "the stream has lost")
		w.tells(t, "3", `"id":3,`)
		i.end(t)
	}
	if found == 0 {
		t.Error("both changes were never in one batch: the test proves nothing")
	}
}
