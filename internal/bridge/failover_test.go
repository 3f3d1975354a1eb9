package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/state"
	"backstory/transform"
)

// settled runs processes without faults until everything is confirmed, and returns why
// a process ended before that.
func (w *world) settled(tb rapid.TB) error {
	w.kafka.mu.Lock()
	w.kafka.faults = 0
	w.kafka.mu.Unlock()
	w.db.mu.Lock()
	w.db.faults, w.db.busy = 0, false
	w.db.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stop, stopped := context.WithCancel(ctx)
	defer stopped()
	done, begun := make(chan error, 1), make(chan *bridge.Bridge, 1)
	go func() { done <- w.live(stop, tb, func(b *bridge.Bridge) { begun <- b }) }() // ends with stop, or before
	var b *bridge.Bridge
	select {
	case b = <-begun:
	case err := <-done:
		return err
	}
	for !w.drained(b) {
		w.db.appear(true)
		operate(ctx, b, 4) // an import that was paused goes on
		select {
		case err := <-done:
			if ctx.Err() != nil {
				tb.Fatalf("not drained in time: %+v", b.Status())
			}
			return err
		case <-time.After(time.Millisecond):
		}
	}
	stopped()
	return <-done
}

// phantoms counts the events of a timeline that lie at or behind a position: those of
// changes that the server does not have any more, and all, with those of rows read.
func (w *world) phantoms(timeline int32, fork capture.LSN) (changes, all int) {
	id := capture.Identity{System: 7, Timeline: timeline, Database: "shop"}
	var base capture.LSN
	for _, log := range w.kafka.log[0][transform.Events] {
		for _, s := range log {
			base = max(base, s.Base)
		}
	}
	for _, log := range w.kafka.log[0][transform.Events] {
		for _, s := range log {
			if s.Table == nil || s.Place.Pos.LSN < fork+base || transform.NewEventID(id, "Product", s.Key, s.Place) != s.ID {
				continue
			}
			all++
			if s.XID != 0 {
				changes++
			}
		}
	}
	return changes, all
}

// ends are the places at which a copy of the server may end, the newest last.
func (db *fakeDB) ends() []capture.LSN {
	db.mu.Lock()
	defer db.mu.Unlock()
	var ends []capture.LSN
	for _, t := range db.wal {
		ends = append(ends, t.end)
	}
	return append(ends, db.tip)
}

// fresh makes a world whose rows are imported.
func fresh(rt *rapid.T) (w *world, remove func()) {
	seed := rapid.Uint64().Draw(rt, "seed")
	w = &world{db: newFakeDB(seed), kafka: newKafka(seed)}
	for i := range w.dirs {
		var err error
		if w.dirs[i], err = os.MkdirTemp("", "bridge"); err != nil {
			rt.Fatal(err)
		}
	}
	for i := range rapid.IntRange(0, 9).Draw(rt, "standing rows") {
		w.db.standing(newRow(fmt.Sprint(i+1), w.db.description(), "1.00", "0"))
	}
	w.drain(rt)
	return w, func() { _, _ = os.RemoveAll(w.dirs[0]), os.RemoveAll(w.dirs[1]) }
}

// A fail-over is followed, nothing lost and nothing twice, as long as the new server
// has all that was published, whatever the slot lags behind, whoever dies and whether a
// process streams meanwhile or the state was lost. Where events tell of changes that it
// does not have, it is refused; the repair then brings the topics to the table.
func TestFailover(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w, remove := fresh(rt)
		defer remove()
		mended, lost := false, capture.LSN(0) // the lowest fork behind which events tell of another history
		for range rapid.IntRange(1, 4).Draw(rt, "fail-overs") {
			w.db.busy = true
			w.kafka.faults = rapid.SampledFrom([]float64{0, 0.1, 0.3}).Draw(rt, "faults")
			w.oneLife(rt)
			ends := w.db.ends()
			back := len(ends) - 1 - rapid.SampledFrom([]int{0, 0, 0, 1, 2, 5, 9}).Draw(rt, "lost")
			fork := max(ends[max(0, back)], w.db.forks[w.db.timeline-1]) // a standby of this timeline has all up to its beginning
			slot := ends[max(0, back-rapid.IntRange(0, 6).Draw(rt, "slot behind"))]
			was := w.db.timeline
			w.db.promote(fork, slot)
			for range rapid.IntRange(0, 4).Draw(rt, "transactions on the new server") {
				w.db.random(keys)
			}
			err := w.settled(rt)
			_, n := w.phantoms(was, fork)
			switch {
			case err == nil && n > 0:
				rt.Fatalf("%d events behind %s are told of what never was", n, fork)
			case err != nil && n == 0 && !mended: // a repair has compared the tables as they were behind the fork, perhaps
				rt.Fatalf("nothing was published behind %s: %v", fork, err)
			case err != nil:
				if !mended || fork < lost {
					lost = fork
				}
				w.refusedAndMended(rt, lost, err)
				mended = true
			}
			if mended { // what was told of the lost history is not in the server's
				w.equal(rt)
			} else {
				w.check(rt)
			}
		}
	})
}

// refusedAndMended expects a refusal and carries out the repair that it names. Behind
// the fork the server's history is another one.
func (w *world) refusedAndMended(rt *rapid.T, fork capture.LSN, err error) {
	if refusal := new(bridge.Refusal); !errors.As(err, &refusal) {
		rt.Fatalf("events tell of what the server does not have: got %v, want a refusal", err)
	}
	w.repair = true
	if err := w.settled(rt); err != nil {
		rt.Fatalf("repair: %v", err)
	}
	w.repair = false
	w.equal(rt)
	for range 5 {
		w.db.random(keys)
	}
	if err := w.settled(rt); err != nil {
		rt.Fatalf("after the repair: %v", err)
	}
	w.equal(rt)
	w.unrepeated(rt, fork)
}

// unrepeated sees that no change below the fork is told twice, under two bases.
func (w *world) unrepeated(rt *rapid.T, fork capture.LSN) {
	told := map[string]bool{}
	for _, log := range w.kafka.log[0][transform.Events] {
		for _, s := range log {
			if s.Table == nil || s.XID == 0 || s.Place.Pos.LSN-s.Base >= fork {
				continue
			}
			place := s.Place
			place.Pos.LSN -= s.Base
			what := fmt.Sprintf("key %s: %v", s.Key, place)
			if told[what] {
				rt.Fatalf("%s is told twice", what)
			}
			told[what] = true
		}
	}
}

// A process that streams when the primary dies goes on with the new one by itself.
func TestFailoverWhileStreaming(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		w := &world{db: newFakeDB(seed), kafka: newKafka(seed), dirs: [2]string{t.TempDir(), t.TempDir()}}
		i := w.begin(t, time.Millisecond)
		i.imported(t)
		for range 5 {
			for range 10 {
				w.db.random(keys)
				w.db.appear(true)
			}
			end := w.db.insert(fmt.Sprint(100 + w.db.timeline))
			i.confirms(t, end)
			w.db.promote(end, end-8)
		}
		last := w.db.insert("99")
		i.confirms(t, last)
		i.end(t)
		w.check(t)
	}
}

// A former primary that comes back after a fail-over was followed has none of what was
// published since, whether the state is there to tell or not.
func TestFormerPrimaryComesBack(t *testing.T) {
	t.Parallel()
	for _, lost := range []bool{false, true} {
		w := newWorld(t)
		w.db.insert("1")
		w.drain(t)
		fork := w.db.tip
		w.db.promote(fork, fork)
		w.db.insert("2")
		w.drain(t)
		w.db.mu.Lock()
		w.db.cut(fork)
		w.db.timeline, w.db.forks, w.db.confirmed = 1, map[int32]capture.LSN{}, fork
		w.db.mu.Unlock()
		for key := range 4 {
			w.db.insert(fmt.Sprint(10 + key))
		}
		if lost {
			if err := os.RemoveAll(w.dirs[0]); err != nil {
				t.Fatal(err)
			}
		}
		if refusal := new(bridge.Refusal); !errors.As(w.settled(t), &refusal) {
			t.Errorf("state lost %v: not refused", lost)
		}
		w.repair = true
		if err := w.settled(t); err != nil {
			t.Fatalf("state lost %v: repair: %v", lost, err)
		}
		w.equal(t)
	}
}

// An import that waits when its server dies goes on with the new one's positions: what
// commits behind the fork is not visible to chunks by that alone.
func TestHorizonGoesBackToTheFork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.db.insert("1")
	w.drain(t)
	fork := w.db.tip
	store, err := state.Open(t.Context(), state.Config{Dir: w.dirs[0]}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	batch := store.Begin()
	batch.SetMeta("import/1", []byte(fmt.Sprintf(`{"done":true,"reconcile":true,"horizon":%d,"passing":{"all":%d}}`, fork+100, fork+200)))
	if err := errors.Join(store.Commit(batch), store.Close()); err != nil {
		t.Fatal(err)
	}
	w.db.promote(fork, fork)
	w.db.insert("2") // behind the fork, below what the run had passed over on the former server
	if err := w.settled(t); err != nil {
		t.Fatal(err)
	}
	w.check(t)
}

// confirms waits until the slot is confirmed up to a position.
func (i *instance) confirms(t *testing.T, end capture.LSN) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); i.w.db.confirmedAt() < end; {
		select {
		case err := <-i.done:
			t.Fatalf("the bridge has ended: %v", err)
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("confirmed %s, want %s", i.w.db.confirmedAt(), end)
		}
	}
}

// A data directory that was put back to an earlier copy is on the same timeline. Its
// history is refused before anything of it is published, also when its WAL has grown
// beyond the state's position, if the topics have changes that the copy does not.
func TestEarlierCopy(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w, remove := fresh(rt)
		defer remove()
		w.db.busy = true
		w.kafka.faults = rapid.SampledFrom([]float64{0, 0.1, 0.3}).Draw(rt, "faults")
		w.oneLife(rt)
		ends := w.db.ends()
		back := len(ends) - 1 - rapid.IntRange(0, 9).Draw(rt, "lost")
		fork := ends[max(0, back)]
		w.db.putBack(fork, ends[max(0, back-rapid.IntRange(0, 6).Draw(rt, "slot behind"))])
		changes, _ := w.phantoms(w.db.timeline, fork)
		for range rapid.IntRange(0, 20).Draw(rt, "transactions on the copy") {
			w.db.random(keys)
		}
		err := w.settled(rt)
		switch {
		case err == nil && changes > 0:
			rt.Fatalf("%d changes behind %s are told that never were", changes, fork)
		case err == nil:
			w.equal(rt) // without steps, where the state was lost and the tables are compared for that
			w.unrepeated(rt, w.db.tip)
		default: // also where nothing was published: the state's position is beyond the copy
			w.refusedAndMended(rt, fork, err)
		}
	})
}
