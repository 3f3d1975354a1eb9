package sink_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/internal/testenv"
	"backstory/sink"
	"backstory/transform"
)

// smallTopics makes topics that take batches of at most 8 KiB, and a dead-letter
// topic. Its partitions are more than the bridge itself makes.
func smallTopics(t *testing.T, brokers []string, name string) (sink.Config, *transform.Mapping) {
	t.Helper()
	limit := map[string]string{"max.message.bytes": "8192", "retention.ms": "-1"}
	createTopic(t, brokers, name+".events", 2, limit)
	createTopic(t, brokers, name+".latest", 2, limit, map[string]string{"cleanup.policy": "compact", "delete.retention.ms": "3155760000000"})
	createTopic(t, brokers, name+".dead", 3, map[string]string{"retention.ms": "-1"})
	cfg := config(brokers)
	cfg.DeadLetterTopic = name + ".dead"
	cfg.Compression = "none"
	return cfg, shop(name, 2)
}

// grow makes the data and the state of an event size bytes longer.
func grow(e *transform.Event, size int) {
	filler := strings.Repeat("x", size)
	e.Data = fmt.Appendf(nil, `{"old":{},"new":{"image":%q},"reason":null}`, filler)
	e.State = fmt.Appendf(nil, `{"id":%q,"image":%q}`, e.Key, filler)
}

// mixed makes changes of keys a to f, every other one with a record that is too
// large, and one of two events that are too large together.
func mixed(mk *maker) []transform.Event {
	var out []transform.Event
	for i, key := range strings.Split("a b c d e f a b c d e f", " ") {
		events := mk.change(key, "PriceChanged")
		if i%2 == 0 {
			grow(&events[0], 20_000+i)
		}
		out = append(out, events...)
	}
	pair := mk.change("pair", "PriceChanged", "StockAdjusted")
	grow(&pair[0], 6000)
	grow(&pair[1], 5000)
	return append(out, pair...)
}

// folded reads a topic back as the bridge does, values in full.
func folded(t *testing.T, p *sink.Producer, m *transform.Mapping, topic transform.Topic) []string {
	t.Helper()
	var out []string
	_, err := p.Fold(within(t), m.Tables[0], topic, []int64{0, 0}, func(s *transform.Stored) error {
		value := s.Data
		if topic == transform.Latest {
			value = s.State
		}
		out = append(out, fmt.Sprintf("%s/%d %s", s.Key, s.Version, value))
		return nil
	})
	if err != nil {
		t.Fatalf("fold %s: %v", topic, err)
	}
	slices.Sort(out)
	return out
}

// said is what folded should find of events.
func said(events []transform.Event, topic transform.Topic) []string {
	var out []string
	newest := make(map[string]int)
	for i := range events {
		newest[string(events[i].Key)] = i
	}
	for i, e := range events {
		switch {
		case topic == transform.Events:
			out = append(out, fmt.Sprintf("%s/%d %s", e.Key, e.Version, e.Data))
		case newest[string(e.Key)] == i:
			out = append(out, fmt.Sprintf("%s/%d %s", e.Key, e.Version, e.State))
		}
	}
	slices.Sort(out)
	return out
}

// TestDeadLetters parks what is too large, with a stand-in in its place.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("letters")
	cfg, m := smallTopics(t, cluster.Brokers(), name)
	p := fenced(t, cfg, m, name)
	events := mixed(newMaker(m))
	marks := publish(t, p, events)
	if err := p.Check(within(t), marks); err != nil {
		t.Errorf("check: %v", err)
	}
	for _, topic := range []transform.Topic{transform.Events, transform.Latest} {
		if diff := cmp.Diff(said(events, topic), folded(t, p, m, topic)); diff != "" {
			t.Errorf("%s: %s", topic, diff)
		}
	}
	standIns := 0
	for _, r := range consume(t, cluster.Brokers(), name+".events") {
		if _, ok := header(r, sink.HeaderDataRef); ok != (string(r.Value) == sink.StandInValue) {
			t.Errorf("offset %d: value %s, with a reference: %v", r.Offset, r.Value, ok)
		} else if ok {
			standIns++
		}
	}
	if standIns != 7 { // six alone, and the larger one of the pair
		t.Errorf("got %d stand-ins, want 7", standIns)
	}
	// Nothing but the value differs between a letter and its stand-in.
	letters := consume(t, cluster.Brokers(), name+".dead")
	if len(letters) != 7+3+0 { // and the states of a, c and e, whose newest events are large
		t.Errorf("got %d dead letters, want 10", len(letters))
	}
	for _, r := range letters {
		if _, ok := header(r, sink.HeaderDataRef); ok || len(r.Value) < 5000 {
			t.Errorf("dead letter at offset %d: %d bytes, with a reference: %v", r.Offset, len(r.Value), ok)
		}
	}
}

// TestDeadLetterCrash ends the bridge between the dead letters and the stand-ins,
// then between those of the two topics. The change comes again; each event stands once and every value is
// found. A letter that nobody points to may be left over.
func TestDeadLetterCrash(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("crash")
	cfg, m := smallTopics(t, cluster.Brokers(), name)
	mk := newMaker(m)
	before := mk.many(5)
	publish(t, fenced(t, cfg, m, name), before)
	events := mixed(mk)

	dies := fenced(t, cfg, m, name)
	pub, err := dies.Encode(events)
	if err != nil {
		t.Fatal(err)
	}
	if err := pub.DeadLetters(within(t)); err != nil {
		t.Fatal(err)
	}
	second := fenced(t, cfg, m, name)
	if diff := cmp.Diff(said(before, transform.Events), folded(t, second, m, transform.Events)); diff != "" {
		t.Errorf("after the dead letters alone: %s", diff)
	}
	pub, err = second.Encode(events)
	if err != nil {
		t.Fatal(err)
	}
	if err := pub.Events(within(t)); err != nil {
		t.Fatal(err)
	}
	third := fenced(t, cfg, m, name)
	all := slices.Concat(before, events)
	if diff := cmp.Diff(said(all, transform.Events), folded(t, third, m, transform.Events)); diff != "" {
		t.Errorf("after the events: %s", diff)
	}
	// Recovery sends the states that latest lacks.
	pub, err = third.EncodeState(events, []int64{0, 0})
	if err != nil {
		t.Fatal(err)
	}
	if err := pub.Latest(within(t)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(said(all, transform.Latest), folded(t, third, m, transform.Latest)); diff != "" {
		t.Errorf("at the end: %s", diff)
	}
}

// TestTooLarge stops where no dead-letter topic is configured, before anything
// is sent, and says whose record it is and what to do.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("large")
	cfg, m := smallTopics(t, cluster.Brokers(), name)
	cfg.DeadLetterTopic = ""
	p := fenced(t, cfg, m, name)
	events := newMaker(m).change("the-key", "PriceChanged")
	grow(&events[0], 20_000)
	_, err := p.Encode(events)
	if !isRefused(err) {
		t.Fatalf("got %v, want a Refusal", err)
	}
	for _, part := range []string{name + ".events", `"the-key"`, "version 1", "8192", "max.message.bytes=", "dead_letter_topic"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	// What compression makes small enough is not refused.
	cfg.Compression = "lz4"
	p = fenced(t, cfg, m, name)
	publish(t, p, events)
	got := consume(t, cluster.Brokers(), name+".events")
	if len(got) != 1 || !bytes.Equal(got[0].Value, events[0].Data) {
		t.Errorf("got %v, want the one event", story(got))
	}
}

// TestTooLargeForAll refuses what does not fit in the dead-letter topic either.
func TestTooLargeForAll(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("huge")
	cfg, m := smallTopics(t, cluster.Brokers(), name)
	p := fenced(t, cfg, m, name)
	events := newMaker(m).change("the-key", "PriceChanged")
	grow(&events[0], 2<<20)
	if _, err := p.Encode(events); !isRefused(err) || !strings.Contains(err.Error(), name+".dead") || !strings.Contains(err.Error(), "the-key") {
		t.Errorf("got %v, want a Refusal that names the dead-letter topic and the key", err)
	}
}

// TestLimitLowered is told by the broker of a limit that became smaller.
func TestLimitLowered(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("lowered")
	m := shop(name, 1)
	cfg := config(cluster.Brokers())
	cfg.Compression = "none"
	p := fenced(t, cfg, m, name)
	alterTopic(t, cluster.Brokers(), name+".events", "max.message.bytes", "4096")
	events := newMaker(m).recent().change("the-key", "PriceChanged")
	grow(&events[0], 10_000)
	_, err := tryPublish(within(t), p, events)
	if !isRefused(err) || !strings.Contains(err.Error(), "the-key") || !strings.Contains(err.Error(), "max.message.bytes") {
		t.Errorf("got %v, want a Refusal with key and setting", err)
	}
	if n := len(slices.DeleteFunc(consume(t, cluster.Brokers(), name+".events"), func(r *kgo.Record) bool { return r.Attrs.IsControl() })); n != 0 {
		t.Errorf("got %d records, want none", n)
	}
}
