package bridge_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/e2e/audit"
	"backstory/internal/state"
	"backstory/internal/testenv"
	"backstory/transform"
)

// instance is a process whose state the test holds too.
type instance struct {
	w     *world
	store *state.Store
	b     *bridge.Bridge
	stop  context.CancelFunc
	done  chan error
}

// begin starts a process that confirms at once, or only at its end.
func (w *world) begin(t *testing.T, flush time.Duration, settings ...func(*bridge.Bridge)) *instance {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	store, err := state.Open(t.Context(), state.Config{Dir: w.dirs[w.turn]}, log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() }) // some tests close it themselves
	bc := bridge.DefaultConfig()
	bc.SyncInterval = flush
	if w.renew > 0 {
		bc.RenewInterval = w.renew
	}
	i := &instance{w: w, store: store, done: make(chan error, 1),
		b: bridge.New(bc, bridge.BackfillConfig{Initial: true, ChunkRows: 3, Parallel: 1}, w.db, &fakeSink{k: w.kafka}, store, w.db.mapping(t), log, prometheus.NewRegistry())}
	for _, set := range settings {
		set(i.b)
	}
	ctx, cancel := context.WithCancel(t.Context())
	i.stop = cancel
	t.Cleanup(cancel)
	go func() { i.done <- i.b.Run(ctx) }() // ends with ctx, or before
	return i
}

// imported waits until the bridge streams and the first import is over.
func (i *instance) imported(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, time.Minute, func() error {
		s := i.b.Status()
		if s.Phase != "streaming" || s.Tables[0].Backfill.Phase != "done" {
			return fmt.Errorf("phase %s", s.Phase)
		}
		return nil
	})
}

// ended waits for the process's end and returns why.
func (i *instance) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-i.done:
		return err
	case <-time.After(time.Minute):
		t.Fatal("the bridge does not end")
		return nil
	}
}

// tells waits until the newest state of a key has a text in it.
func (w *world) tells(t *testing.T, key, text string) {
	t.Helper()
	testenv.Eventually(t, time.Minute, func() error {
		if value := w.kafka.latest(key); !bytes.Contains(value, []byte(text)) {
			return fmt.Errorf("latest of %s is %s, want %q in it", key, value, text)
		}
		return nil
	})
}

// forgets waits until a key has no state any more.
func (w *world) forgets(t *testing.T, key string) {
	t.Helper()
	testenv.Eventually(t, time.Minute, func() error {
		if value := w.kafka.latest(key); len(value) > 0 {
			return fmt.Errorf("latest of %s is %s, and the row is gone", key, value)
		}
		return nil
	})
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{db: newFakeDB(1), kafka: newKafka(1), dirs: [2]string{t.TempDir(), t.TempDir()}}
}

// insert commits a new row and returns the end of its transaction.
func (db *fakeDB) insert(key string) capture.LSN {
	t := db.commit(func(t *tx) { t.put(capture.OpInsert, nil, newRow(key, "", "1.00", "0")) })
	db.appear(true)
	return t.end
}

func (db *fakeDB) confirmedAt() capture.LSN {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.confirmed
}

// What the state could not take in is not confirmed: notes and the list of rows to
// be read again stand nowhere else.
func TestConfirmsOnlyWhatIsCommitted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	blocker := i.store.Begin() // no later batch can be committed before it
	end := w.db.insert("1")
	if err := i.ended(t); err == nil {
		t.Error("the bridge went on though it could not commit")
	}
	i.store.Drop(blocker)
	if got := w.db.confirmedAt(); got >= end {
		t.Errorf("confirmed %s, which has the transaction that ends at %s; the state does not have it", got, end)
	}
	if n := len(w.kafka.records(transform.Events)); n != 1 {
		t.Errorf("got %d events, want 1: the test proves nothing", n)
	}
}

// What a topic does not have yet is not confirmed, however long that takes.
func TestConfirmsOnlyWhatIsPublished(t *testing.T) {
	t.Parallel()
	for _, topic := range []transform.Topic{transform.Events, transform.Latest} {
		t.Run(topic.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			i := w.begin(t, time.Millisecond)
			i.imported(t)
			held := make(chan struct{})
			w.kafka.mu.Lock()
			w.kafka.held[topic] = held
			w.kafka.mu.Unlock()
			end := w.db.insert("1")
			<-time.After(100 * time.Millisecond) // dozens of rounds of confirm
			if got := w.db.confirmedAt(); got >= end {
				t.Errorf("confirmed %s before %s has it", got, topic)
			}
			close(held)
			testenv.Eventually(t, time.Minute, func() error {
				if got := w.db.confirmedAt(); got < end {
					return fmt.Errorf("confirmed %s, want %s", got, end)
				}
				return nil
			})
		})
	}
}

// What is committed and not flushed to disk is not confirmed.
func TestConfirmsOnlyWhatIsFlushed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	i := w.begin(t, time.Hour)
	i.imported(t)
	end := w.db.insert("1")
	testenv.Eventually(t, time.Minute, func() error {
		v, _ := i.store.Meta("lsn")
		if want := fmt.Sprintf("%016x", uint64(end)); fmt.Sprintf("%x", v) != want {
			return fmt.Errorf("the state is at %x, want %s", v, want)
		}
		return nil
	})
	if err := i.store.Close(); err != nil {
		t.Fatal(err)
	}
	i.stop()
	if err := i.ended(t); !errors.Is(err, state.ErrClosed) {
		t.Errorf("the bridge could not flush its state: got %v, want %v", err, state.ErrClosed)
	}
	if got := w.db.confirmedAt(); got >= end {
		t.Errorf("confirmed %s without a flush", got)
	}
}

// A slot that somebody has moved while nobody was at the topics has lost changes:
// the bridge says so and does not stream over the gap. The markers of its own
// sessions must not pass for another instance's.
func TestMovedSlotIsRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		before func(*testing.T, *world)
	}{
		{"started again and again", func(t *testing.T, w *world) {
			for key := range 3 { // a start that finds nothing new must not hide the gap
				w.confirms(t, fmt.Sprint(key+1))
			}
		}},
		{"renewed", func(t *testing.T, w *world) {
			w.renew = time.Millisecond
			w.confirms(t, "1")
			w.renew = 0
		}},
		{"died between fence and fold", func(t *testing.T, w *world) {
			w.confirms(t, "1")
			for range 3 {
				w.kafka.mu.Lock()
				w.kafka.unread = true
				w.kafka.mu.Unlock()
				i := w.begin(t, time.Millisecond)
				if dead := new(crash); !errors.As(i.ended(t), &dead) {
					t.Fatal("the process has not died")
				}
				if err := i.store.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			tt.before(t, w)
			end := w.db.insert("9")
			w.db.mu.Lock()
			w.db.confirmed = end
			w.db.mu.Unlock()
			w.refuses(t)
		})
	}
}

// confirms runs a process until it has confirmed an insert and, if its sessions are
// to be renewed, has renewed one since.
func (w *world) confirms(t *testing.T, key string) {
	t.Helper()
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	end := w.db.insert(key)
	testenv.Eventually(t, time.Minute, func() error {
		if got := w.db.confirmedAt(); got < end {
			return fmt.Errorf("confirmed %s, want %s", got, end)
		}
		return nil
	})
	if w.renew > 0 {
		session := w.kafka.session()
		testenv.Eventually(t, time.Minute, func() error {
			if w.kafka.session() < session+3 {
				return errors.New("the session is not renewed")
			}
			return nil
		})
	}
	i.end(t)
}

// refuses wants a process that refuses to stream.
func (w *world) refuses(t *testing.T) {
	t.Helper()
	i := w.begin(t, time.Millisecond)
	testenv.Eventually(t, time.Minute, func() error {
		switch phase := i.b.Status().Phase; phase {
		case "streaming":
			t.Fatal("it streams over the gap, want a refusal")
		case "failed":
			return nil
		default:
			return errors.New("phase " + phase)
		}
		return nil
	})
	var refusal *bridge.Refusal
	if err := i.ended(t); !errors.As(err, &refusal) {
		t.Errorf("got %v, want a refusal", err)
	}
}

// A process that dies when the end of a moved key is in the events topic and the
// beginning of its successor is not: the large column that WAL left out is that of
// the old key, which has no image any more.
func TestMovedKeyHalfway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.db.standing(newRow("1", "a large description, stored out of line", "1.00", "0"))
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	w.kafka.mu.Lock()
	w.kafka.lands = func(r request) bool { return r.partition == partitionOf([]byte("1")) }
	w.kafka.mu.Unlock()
	end := w.db.commit(func(t *tx) {
		row := t.db.rows["1"]
		now := slices.Clone(row)
		now[colID] = text("2")
		t.put(capture.OpUpdate, row, now)
	}).end
	w.db.appear(true)
	if dead := new(crash); !errors.As(i.ended(t), &dead) {
		t.Fatal("the process has not died")
	}
	if err := i.store.Close(); err != nil {
		t.Fatal(err)
	}
	w.begin(t, time.Millisecond)
	testenv.Eventually(t, time.Minute, func() error {
		if got := w.db.confirmedAt(); got < end {
			return fmt.Errorf("confirmed %s, want %s", got, end)
		}
		return nil
	})
	r := audit.CompareUnplaced(w.db.history, w.kafka.records(transform.Events), w.kafka.records(transform.Latest))
	if r.Wrong > 0 {
		t.Errorf("%s", r)
	}
}

// end stops the process in an orderly way.
func (i *instance) end(t *testing.T) {
	t.Helper()
	i.stop()
	if err := i.ended(t); err != nil {
		t.Fatal(err)
	}
	if err := i.store.Close(); err != nil {
		t.Fatal(err)
	}
}

// lose commits a change that the slot never delivers, as one that was made anew.
func (db *fakeDB) lose(f func(*tx)) {
	db.commit(f)
	db.appear(true)
	db.mu.Lock()
	defer db.mu.Unlock()
	db.confirmed = db.tip
}

// latest is the newest state of a key; nil if there is none.
func (k *kafka) latest(key string) (value []byte) {
	for _, r := range k.records(transform.Latest) {
		if r.Key == key {
			value = r.Value
		}
	}
	return value
}

// Of a state that was lost nobody knows whether the slot is the one that it went
// with: it is compared with the table, also for rows that are gone.
func TestRebuiltStateIsCompared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.db.standing(newRow("1", "", "1.00", "0"))
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	i.end(t)
	if len(w.kafka.latest("1")) == 0 {
		t.Fatal("the row was not imported")
	}
	w.db.lose(func(t *tx) { t.put(capture.OpDelete, t.db.rows["1"], nil) })
	w.dirs[w.turn] = t.TempDir()
	w.begin(t, time.Millisecond)
	w.forgets(t, "1")
}

// A repair that is resumed does not know of changes that the stream has brought
// before it, some of them filled from a state that is stale. It passes their rows
// over while its snapshots do not see them, and has to look at them again.
func TestRepairLooksAgainAtWhatItPassedOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.db.standing(newRow("1", "a large description, as it was once", "1.00", "0"))
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	i.end(t)

	w.db.lose(func(t *tx) {
		now := slices.Clone(t.db.rows["1"])
		now[colDescription] = text("a large description that the stream has lost")
		t.put(capture.OpUpdate, t.db.rows["1"], now)
	})
	reading := make(chan struct{}, 1)
	w.db.chunking = func(ctx context.Context) error {
		reading <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	i = w.begin(t, time.Millisecond, (*bridge.Bridge).Repair)
	select {
	case <-reading: // the run has begun, and no row is read
	case err := <-i.done:
		t.Fatal(err)
	}
	i.end(t)

	w.db.commit(func(t *tx) {
		now := slices.Clone(t.db.rows["1"])
		now[colPrice] = text("2.00")
		t.put(capture.OpUpdate, t.db.rows["1"], now)
	})
	priced := make(chan struct{})
	w.db.opening, w.db.chunking = func() { <-priced }, nil
	i = w.begin(t, time.Millisecond)
	w.tells(t, "1", "2.00")
	close(priced)
	i.imported(t) // it has passed over the row, which it can't see yet
	w.db.appear(true)
	w.tells(t, "1", "the stream has lost")
}

// A row that a repair has not looked at moves to a key that it has: the large column
// that the update left out comes from a state that may be stale, and nothing else
// would look at that key again.
func TestRepairDoubtsWhatIsFilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, key := range []string{"1", "2", "3", "4", "5", "6", "9"} {
		w.db.standing(newRow(key, "a large description, as it was once", "1.00", "0"))
	}
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	i.end(t)
	w.db.lose(func(t *tx) {
		now := slices.Clone(t.db.rows["9"])
		now[colDescription] = text("a large description that the stream has lost")
		t.put(capture.OpUpdate, t.db.rows["9"], now)
	})
	chunks, moved := 0, make(chan error, 1)
	w.db.chunking = func(ctx context.Context) error {
		if chunks++; chunks != 3 { // by the third, the first is applied
			return nil
		}
		w.db.commit(func(t *tx) {
			now := slices.Clone(t.db.rows["9"])
			now[colID], now[colPrice] = text("2"), text("2.00")
			t.put(capture.OpDelete, t.db.rows["2"], nil)
			t.put(capture.OpUpdate, t.db.rows["9"], now)
		})
		w.db.appear(true)
		for !bytes.Contains(w.kafka.latest("2"), []byte("2.00")) {
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				moved <- ctx.Err()
				return ctx.Err()
			}
		}
		moved <- nil
		return nil
	}
	i = w.begin(t, time.Millisecond, (*bridge.Bridge).Repair)
	select {
	case err := <-moved:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the third chunk is not read")
	}
	i.imported(t)
	w.tells(t, "2", "the stream has lost")
}

// A repair that dies when the state has just been bound to the restored database's
// timeline leaves a position of the former one, which a slot of the new one may lie
// below: nothing may be streamed before the tables are compared.
func TestRepairThatDiedIsOwed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.db.standing(newRow("1", "a large description, as it was once", "1.00", "0"))
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	i.end(t)
	w.db.lose(func(t *tx) { t.put(capture.OpDelete, t.db.rows["1"], nil) })
	store, err := state.Open(t.Context(), state.Config{Dir: w.dirs[w.turn]}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	batch := store.Begin() // the position, of another history, lies above what is lost in this one
	batch.SetMeta("lsn", binary.BigEndian.AppendUint64(nil, uint64(w.db.tip)))
	batch.SetMeta(state.MetaRebound, []byte{})
	if err := errors.Join(store.Commit(batch), store.Close()); err != nil {
		t.Fatal(err)
	}

	i = w.begin(t, time.Millisecond)
	var refusal *bridge.Refusal
	if err := i.ended(t); !errors.As(err, &refusal) || !strings.Contains(refusal.Cure, "--reconcile") {
		t.Fatalf("without repair: got %v, want a refusal that names the repair", err)
	}
	if err := i.store.Close(); err != nil {
		t.Fatal(err)
	}
	i = w.begin(t, time.Millisecond, (*bridge.Bridge).Repair)
	w.forgets(t, "1")
	i.end(t)
	i = w.begin(t, time.Millisecond)
	i.imported(t)
	i.end(t)
}

// An instance that takes over from another can't know what that one still had to
// look at: it compares its tables, though it was level when it stopped.
func TestTakeOverIsCompared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.db.standing(newRow("1", "a large description, as it was once", "1.00", "0"))
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	i.end(t)
	w.db.lose(func(t *tx) {
		now := slices.Clone(t.db.rows["1"])
		now[colDescription] = text("a large description that the stream has lost")
		t.put(capture.OpUpdate, t.db.rows["1"], now)
	})

	w.turn = 1 // another instance, whose state is rebuilt, ends before it has compared
	reading := make(chan struct{}, 1)
	w.db.chunking = func(ctx context.Context) error {
		reading <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	i = w.begin(t, time.Millisecond)
	select {
	case <-reading:
	case err := <-i.done:
		t.Fatal(err)
	}
	end := w.db.insert("2")
	testenv.Eventually(t, time.Minute, func() error {
		if got := w.db.confirmedAt(); got < end {
			return fmt.Errorf("confirmed %s, want %s", got, end)
		}
		return nil
	})
	i.end(t)

	w.turn, w.db.chunking = 0, nil
	w.begin(t, time.Millisecond)
	w.tells(t, "1", "the stream has lost")
}

// A TRUNCATE between the snapshot of a chunk and its watermark: the state has no
// note of the keys, which it does not know, and must not import the dead.
func TestTruncateBehindASnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, key := range []string{"1", "2"} {
		w.db.standing(newRow(key, "", "1.00", "0"))
	}
	var once sync.Once
	w.db.marking = func() {
		once.Do(func() { w.db.commit(func(t *tx) { t.truncate() }) })
	}
	i := w.begin(t, time.Millisecond)
	i.imported(t)
	for _, key := range []string{"1", "2"} {
		if value := w.kafka.latest(key); len(value) > 0 {
			t.Errorf("latest of key %s is %s, and the table is empty", key, value)
		}
	}
}
