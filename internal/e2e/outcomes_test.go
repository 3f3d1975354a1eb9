package e2e_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// outcomes are what can have become of a request when its process dies: it was
// acknowledged, or it did not arrive, or it was appended and nobody was told.
var outcomes = []testenv.Fate{testenv.Answered, testenv.Lost, testenv.Unanswered}

// small are flags with which each record is a request of its own, so that two
// partitions of one broker have two in flight.
var small = []string{"--kafka.max_request_bytes=64KiB", "--kafka.compression=none", "--bridge.sync_interval=20ms"}

// The process dies with two requests in flight, in each combination of their
// outcomes: of events, of latest, and of the latest that a recovery publishes; or when
// it has sent again what was lost or unanswered; or not at all.
func TestDiesWithEachOutcome(t *testing.T) {
	t.Parallel()
	kafka := testenv.Kafka(t, testenv.KafkaProxied())
	w := &twoRequests{rig: newRig(t, testenv.Postgres(t), kafka.Brokers(), 20), failing: failing(t)}
	kafka.Proxy(0).Judge(w.fate, w.tell)
	p := w.start(small...)
	p.drained(time.Minute)
	w.chooseKeys()
	p.stop()
	combinations := 0
	for i, one := range outcomes {
		for _, other := range outcomes[i:] { // which partition is which makes no difference
			combinations++
			o := [2]testenv.Fate{one, other}
			t.Logf("%s, %s", one, other)
			w.events(o)
			w.eventsSentAgain(o)
			w.recoveredLatest(o)
			w.latest(o)
			w.latestSentAgain(o)
		}
	}
	p = w.start(small...)
	p.drained(time.Minute)
	p.stop()
	if report, want := w.compare(), 20+6*2*combinations; report.Events != want {
		t.Errorf("%d events, want %d: those of six transactions for each combination", report.Events, want)
	}
}

// twoRequests is a rig whose transactions make two requests to each topic.
type twoRequests struct {
	*rig
	failing string    // the program that dies where it is told to
	keys    [2]string // of different partitions
	parts   [2]int32  // theirs

	mu    sync.Mutex
	topic string          // whose requests are judged
	want  [2]testenv.Fate // by request
	once  bool            // the first attempt of each; else all
	met   [2]bool
	both  chan struct{} // closed when both have met their fates
}

// fate is asked by the proxy.
func (w *twoRequests) fate(topic string, partition int32) testenv.Fate {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.parts {
		if topic == w.topic && partition == w.parts[i] && (!w.once || !w.met[i]) {
			return w.want[i]
		}
	}
	return testenv.Answered
}

// tell takes in what the proxy has done.
func (w *twoRequests) tell(p testenv.Produce) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.Topic != w.topic || w.met[0] && w.met[1] {
		return
	}
	for i := range w.parts {
		if p.Partition == w.parts[i] {
			w.met[i] = true
		}
	}
	if w.met[0] && w.met[1] {
		close(w.both)
	}
}

// judge decides over the next two requests for a topic.
func (w *twoRequests) judge(topic string, o [2]testenv.Fate, once bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.topic, w.want, w.once, w.met, w.both = topic, o, once, [2]bool{}, make(chan struct{})
}

// chooseKeys finds two rows whose records are in different partitions.
func (w *twoRequests) chooseKeys() {
	w.tb.Helper()
	events, _, err := audit.ReadTopic(w.tb.Context(), w.brokers, w.topics[0])
	if err != nil {
		w.tb.Fatal(err)
	}
	for i := range events {
		if e, first := &events[i], &events[0]; e.Partition != first.Partition {
			w.keys, w.parts = [2]string{first.Key, e.Key}, [2]int32{first.Partition, e.Partition}
			return
		}
	}
	w.tb.Fatal("all rows are in one partition")
}

// change commits a transaction that makes an event of over 64 KiB of each key.
func (w *twoRequests) change() {
	w.tb.Helper()
	w.exec(fmt.Sprintf(`UPDATE products SET description = (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 2200))
		WHERE id IN (%s, %s)`, w.keys[0], w.keys[1]))
}

// dies kills the process when both requests have met their fates.
func (w *twoRequests) dies(p *process) {
	w.tb.Helper()
	w.judged()
	p.kill()
	w.judge("", [2]testenv.Fate{}, false)
}

// judged waits until both requests have met their fates.
func (w *twoRequests) judged() {
	w.tb.Helper()
	select {
	case <-w.both:
	case <-time.After(time.Minute):
		w.mu.Lock()
		defer w.mu.Unlock()
		w.tb.Fatalf("two requests for %s have not met their fates within a minute: %v", w.topic, w.met)
	}
}

// events: the outcomes are those of the stream's events.
func (w *twoRequests) events(o [2]testenv.Fate) {
	w.tb.Helper()
	w.change()
	w.judge(w.topics[0], o, false)
	w.dies(w.start(small...))
	w.goesOn(w.topics[0], o)
}

// goesOn: nothing dies, and what was lost or unanswered is sent again.
func (w *twoRequests) goesOn(topic string, o [2]testenv.Fate) {
	w.tb.Helper()
	p := w.start(small...)
	p.drained(time.Minute)
	w.judge(topic, o, true)
	w.change()
	p.drained(time.Minute)
	w.judged()
	p.stop()
}

// eventsSentAgain: the process dies when it has sent the events again.
func (w *twoRequests) eventsSentAgain(o [2]testenv.Fate) {
	w.tb.Helper()
	w.change()
	w.judge(w.topics[0], o, true)
	w.diesOf("events-published")
}

// recoveredLatest: the outcomes are those of what a recovery publishes, because
// the former process died with its events in the topic.
func (w *twoRequests) recoveredLatest(o [2]testenv.Fate) {
	w.tb.Helper()
	w.judge(w.topics[1], o, false)
	w.dies(w.start(small...))
}

// latest: the outcomes are those of the stream's latest records.
func (w *twoRequests) latest(o [2]testenv.Fate) {
	w.tb.Helper()
	p := w.start(small...)
	p.drained(time.Minute)
	w.judge(w.topics[1], o, false)
	w.change()
	w.dies(p)
}

// latestSentAgain: the process dies when it has sent the latest records again.
func (w *twoRequests) latestSentAgain(o [2]testenv.Fate) {
	w.tb.Helper()
	w.goesOn(w.topics[1], o)
	w.change()
	w.judge(w.topics[1], o, true)
	w.diesOf("latest-published")
}

// diesOf runs the bridge until it has died at a failpoint, and both requests have
// met their fates on the way.
func (w *twoRequests) diesOf(place string) {
	w.tb.Helper()
	normal := w.program
	w.program = w.failing
	w.diesAt(place, small...)
	w.program = normal
	w.judged()
	w.judge("", [2]testenv.Fate{}, false)
}
