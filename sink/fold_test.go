package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"backstory/capture"
	"backstory/transform"
)

// cluster is a broker, or an imitation, with the topics of productTable in it,
// written by another client than ours.
type cluster struct {
	tb      testing.TB
	brokers []string
	writer  *kgo.Client
}

const testPartitions = 3

func newCluster(tb testing.TB, brokers []string, opts ...kgo.Opt) *cluster {
	tb.Helper()
	writer, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
	}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(writer.Close)
	return &cluster{tb, brokers, writer}
}

// fakeCluster imitates brokers that have the topics of productTable.
func fakeCluster(tb testing.TB, brokers int) (*kfake.Cluster, *cluster) {
	tb.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(brokers),
		kfake.SeedTopics(testPartitions, "product.events", "product.latest", "dead.letters"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(fake.Close)
	return fake, newCluster(tb, fake.ListenAddrs())
}

func (c *cluster) producer() *Producer {
	c.tb.Helper()
	cfg := DefaultConfig()
	cfg.Brokers = c.brokers
	client, err := newClient(cfg, slog.New(slog.DiscardHandler), "product.events", "product.latest", "dead.letters")
	if err != nil {
		c.tb.Fatal(err)
	}
	c.tb.Cleanup(client.close)
	topic := func(name string, kind transform.Topic) *topicLog {
		return &topicLog{name: name, kind: kind, table: productTable, parts: make([]partition, testPartitions)}
	}
	return &Producer{
		cfg: cfg, client: client, log: slog.New(slog.DiscardHandler),
		tables: map[*transform.Table]*tableTopics{productTable: {
			table:   productTable,
			sources: sources{table: productTable, own: productSource},
			events:  topic("product.events", transform.Events),
			latest:  topic("product.latest", transform.Latest),
		}},
	}
}

func kgoRecord(topic string, partition int32, key, value []byte, headers []protocol.Header) *kgo.Record {
	r := &kgo.Record{Topic: topic, Partition: partition, Key: key, Value: value}
	for _, h := range headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return r
}

// write appends the records to a partition of a topic, in one batch, and sets
// their partition and offset. Their keys get an ending that makes the partition theirs.
func (c *cluster) write(topic string, partition int32, stored ...transform.Stored) []transform.Stored {
	c.tb.Helper()
	var records []*kgo.Record
	for i := range stored {
		s := &stored[i]
		s.Key = placed(s.Key, partition)
		records = append(records, kgoRecord(topic, partition, s.Key, valueOf(s), headersOf(s)))
	}
	c.send(records...)
	for i, r := range records {
		stored[i].Partition, stored[i].Offset = partition, r.Offset
	}
	return stored
}

// placed returns the key, or one made of it that belongs into the partition.
func placed(key []byte, partition int32) []byte {
	for n := 0; ; n++ {
		k := key
		if n > 0 {
			k = fmt.Appendf(bytes.Clone(key), "-%d", n)
		}
		if partitionOf(murmur2(k), testPartitions) == partition {
			return k
		}
	}
}

func (c *cluster) send(records ...*kgo.Record) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), 90*time.Second)
	defer cancel()
	if err := c.writer.ProduceSync(ctx, records...).FirstErr(); err != nil {
		c.tb.Fatal(err)
	}
}

// marker appends a control record, as the fence does, to a partition. The next
// session of the same id begins when the marker is there.
func (c *cluster) marker(topic string, partition int32) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), 90*time.Second)
	defer cancel()
	id := "test-" + c.tb.Name()
	session := kmsg.NewPtrInitProducerIDRequest()
	session.TransactionalID, session.TransactionTimeoutMillis = &id, 10_000
	eventually(c.tb, func() error {
		answer, err := session.RequestWith(ctx, c.writer)
		if err != nil || answer.ErrorCode != 0 {
			return fmt.Errorf("init producer id: %v, code %d", err, answer.ErrorCode)
		}
		add := kmsg.NewPtrAddPartitionsToTxnRequest()
		add.Version = 3
		add.TransactionalID, add.ProducerID, add.ProducerEpoch = id, answer.ProducerID, answer.ProducerEpoch
		add.Topics = []kmsg.AddPartitionsToTxnRequestTopic{{Topic: topic, Partitions: []int32{partition}}}
		added, err := add.RequestWith(ctx, c.writer)
		if err != nil || added.Topics[0].Partitions[0].ErrorCode != 0 {
			return fmt.Errorf("add partition: %v, %+v", err, added)
		}
		end := kmsg.NewPtrEndTxnRequest()
		end.TransactionalID, end.ProducerID, end.ProducerEpoch = id, answer.ProducerID, answer.ProducerEpoch
		ended, err := end.RequestWith(ctx, c.writer)
		if err != nil || ended.ErrorCode != 0 {
			return fmt.Errorf("end transaction: %v, code %d", err, ended.ErrorCode)
		}
		return nil
	})
	eventually(c.tb, func() error {
		answer, err := session.RequestWith(ctx, c.writer)
		if err != nil || answer.ErrorCode != 0 {
			return fmt.Errorf("init producer id: %v, code %d", err, answer.ErrorCode)
		}
		return nil
	})
}

// eventually repeats fn until it succeeds, for a minute and a half at most.
func eventually(tb testing.TB, fn func() error) {
	tb.Helper()
	deadline := time.After(90 * time.Second)
	for {
		err := fn()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			tb.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// fold returns what Fold hands out, by partition.
func fold(tb testing.TB, p *Producer, topic transform.Topic, from ...int64) ([testPartitions][]transform.Stored, []transform.Mark) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 60*time.Second)
	defer cancel()
	var got [testPartitions][]transform.Stored
	marks, err := p.Fold(ctx, productTable, topic, from, func(s *transform.Stored) error {
		got[s.Partition] = append(got[s.Partition], *clone(s))
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return got, marks
}

func mark(topic transform.Topic, partition int32, end int64, last *transform.Stored) transform.Mark {
	m := transform.Mark{Table: productTable, Topic: topic, Partition: partition, End: end, LastAt: -1}
	if last != nil {
		m.Last, m.LastAt = last.ID, last.Offset
	}
	return m
}

func someEvents(from, n int) []transform.Stored {
	out := make([]transform.Stored, n)
	for i := range out {
		out[i] = someEvent(fmt.Sprint("key", i%5), from+i)
	}
	return out
}

func TestFold(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 3)
	var want [testPartitions][]transform.Stored
	for round := range 5 {
		for part := range int32(2) { // partition 2 stays empty
			n := 100 + round*100*int(part)
			want[part] = append(want[part], c.write("product.events", part, someEvents(round*1000, n)...)...)
		}
	}
	c.marker("product.events", 0)
	p := c.producer()
	t.Run("all", func(t *testing.T) {
		got, marks := fold(t, p, transform.Events, 0, 0, 0)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		wantMarks := []transform.Mark{
			mark(transform.Events, 0, 501, &want[0][499]), // the marker has an offset
			mark(transform.Events, 1, 1500, &want[1][1499]),
			mark(transform.Events, 2, 0, nil),
		}
		if diff := cmp.Diff(wantMarks, marks); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("from the middle and the end", func(t *testing.T) {
		got, marks := fold(t, p, transform.Events, 500, 333, 0)
		if diff := cmp.Diff([testPartitions][]transform.Stored{1: want[1][333:]}, got); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(mark(transform.Events, 0, 501, nil), marks[0]); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("behind the end", func(t *testing.T) {
		_, err := p.Fold(t.Context(), productTable, transform.Events, []int64{0, 1501, 0}, func(*transform.Stored) error { return nil })
		wantRefusal(t, err, "product.events partition 1", "1500", "1501")
	})
	t.Run("the caller's error", func(t *testing.T) {
		mine := errors.New("mine")
		n := 0
		_, err := p.Fold(t.Context(), productTable, transform.Events, []int64{0, 0, 0}, func(*transform.Stored) error {
			if n++; n == 3 {
				return mine
			}
			return nil
		})
		if !errors.Is(err, mine) || n != 3 {
			t.Errorf("got %v after %d records, want %v after 3", err, n, mine)
		}
	})
	t.Run("wrong number of offsets", func(t *testing.T) {
		if _, err := p.Fold(t.Context(), productTable, transform.Events, []int64{0}, nil); err == nil {
			t.Error("one offset for three partitions passes")
		}
	})
	t.Run("unknown table", func(t *testing.T) {
		if _, err := p.Fold(t.Context(), &transform.Table{}, transform.Events, []int64{0}, nil); err == nil {
			t.Error("a table that is not in the mapping passes")
		}
	})
}

// wantRefusal checks that err is a refusal with a cure, and names all parts.
func wantRefusal(tb testing.TB, err error, parts ...string) {
	tb.Helper()
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Cure == "" {
		tb.Fatalf("got %v, want a refusal with a cure", err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			tb.Errorf("%q does not say %q", err, part)
		}
	}
}

func TestFoldRefusesForeignRecord(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 1)
	c.write("product.latest", 1, someState("1", 1, 0, []byte("{}")))
	c.send(&kgo.Record{Topic: "product.latest", Partition: 1, Key: []byte("1"), Value: []byte("{}")})
	_, err := c.producer().Fold(t.Context(), productTable, transform.Latest, []int64{0, 0, 0}, func(*transform.Stored) error { return nil })
	wantRefusal(t, err, "product.latest partition 1", "offset 1", "ce_specversion")
}

func TestFoldResolvesDeadLetters(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 1)
	full := someState("1", 7, 3, []byte(`{"image":"large"}`))
	full.Key = placed(full.Key, 2)
	c.write("dead.letters", 2, someState("9", 1, 0, nil), someState("1", 8, 3, []byte(`{"image":"other"}`)))
	at := c.write("dead.letters", 2, full)[0].Offset
	ref := func(offset int64) []protocol.Header {
		return append(headersOf(&full), protocol.Header{Key: HeaderDataRef, Value: fmt.Appendf(nil, "kafka:dead.letters/2/%d", offset)})
	}
	c.send(kgoRecord("product.latest", 2, full.Key, []byte(StandInValue), ref(at)))
	p := c.producer()
	got, _ := fold(t, p, transform.Latest, 0, 0, 0)
	full.Partition, full.Offset = 2, 0
	if diff := cmp.Diff([testPartitions][]transform.Stored{2: {full}}, got); diff != "" {
		t.Error(diff)
	}
	for _, wrong := range []int64{at - 1, at + 1} { // another record; none
		bad := kgoRecord("product.latest", 2, full.Key, []byte(StandInValue), ref(wrong))
		c.send(bad)
		_, err := p.Fold(t.Context(), productTable, transform.Latest, []int64{0, 0, bad.Offset}, func(*transform.Stored) error { return nil })
		wantRefusal(t, err, "product.latest partition 2", fmt.Sprintf("dead.letters/2/%d", wrong))
	}
}

func TestNewest(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 3)
	p := c.producer()
	c.write("product.latest", 0, someState("a", 1, 0, nil), someState("b", 2, 5, []byte("{}")))
	want := c.write("product.latest", 0, someState("c", 3, 7, []byte(`{"c":3}`)))
	want[0].Context = nil
	for range 20 { // more than the first step
		c.marker("product.latest", 0)
	}
	c.marker("product.latest", 1) // nothing but a marker
	got, err := p.Newest(t.Context(), productTable, transform.Latest)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*transform.Stored{&want[0], nil, nil}, got); diff != "" {
		t.Error(diff)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 3)
	p := c.producer()
	events := c.write("product.events", 1, someEvents(0, 10)...)
	states := c.write("product.latest", 1, someState("a", 1, 0, nil), someState("a", 2, 0, []byte("{}")))
	c.marker("product.events", 1)
	c.marker("product.latest", 1)
	other := events[9]
	other.ID = someID(4711)
	beyond := events[9]
	beyond.Offset = 10
	tests := []struct {
		name  string
		marks []transform.Mark
		want  []string // of the refusal; nil: none
	}{
		{"nothing remembered", nil, nil},
		{"as it is", []transform.Mark{
			mark(transform.Events, 0, 0, nil), mark(transform.Events, 1, 11, &events[9]), mark(transform.Latest, 1, 3, &states[1]),
		}, nil},
		{"grown since", []transform.Mark{mark(transform.Events, 1, 4, &events[3]), mark(transform.Latest, 1, 1, &states[0])}, nil},
		{"lost its end", []transform.Mark{mark(transform.Events, 1, 12, &events[9])}, []string{"product.events partition 1", "offset 11", "12"}},
		{"emptied", []transform.Mark{mark(transform.Latest, 2, 1, &states[0])}, []string{"product.latest partition 2", "offset 0"}},
		{"another record", []transform.Mark{mark(transform.Events, 1, 11, &other)},
			[]string{"product.events partition 1", "offset 9", idText(events[9].ID), idText(other.ID)}},
		{"a marker for an event", []transform.Mark{mark(transform.Events, 1, 11, &beyond)}, []string{"offset 10", "is no event"}},
		{"a compacted state", []transform.Mark{{Table: productTable, Topic: transform.Latest, Partition: 1, End: 3, Last: someID(1), LastAt: 2}}, nil},
		{"a partition too many", []transform.Mark{mark(transform.Events, 3, 0, nil)}, []string{"3 partitions"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := p.Check(t.Context(), tt.marks)
			if tt.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantRefusal(t, err, tt.want...)
		})
	}
}

func TestOrphans(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 3)
	p := c.producer()
	c.write("product.events", 0, someEvents(0, 20)...)
	c.write("product.latest", 0, someState("a", 3, 2, nil), someState("b", 12, 10, []byte("{}")))
	c.write("product.events", 1, someEvents(0, 5)...)
	if err := p.Orphans(t.Context(), productTable, nil); err != nil {
		t.Fatal(err)
	}
	// The event is there, but below what the record names.
	c.write("product.latest", 1, someState("c", 1, 3, nil))
	wantRefusal(t, p.Orphans(t.Context(), productTable, []int64{0, 0, 0}), "product.events partition 1", idText(someID(1)), "offset 3")
	if err := p.Orphans(t.Context(), productTable, []int64{0, 1, 0}); err != nil {
		t.Errorf("a record below latestFrom is looked at: %v", err)
	}
	// The log ends below what the record names.
	c.write("product.latest", 2, someState("d", 99, 40, nil))
	wantRefusal(t, p.Orphans(t.Context(), productTable, []int64{9, 9, 0}), "product.events partition 2", "ends at 0")
}

func TestTail(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 3)
	events := c.write("product.events", 0, someEvents(0, 10)...)
	c.marker("product.events", 0)
	states := c.write("product.latest", 2, someState("a", 3, 1, nil))
	cfg := DefaultConfig()
	cfg.Brokers = c.brokers
	log := slog.New(slog.DiscardHandler)
	tail := func(from TailFrom, topics ...string) []int64 {
		var got []int64
		err := Tail(t.Context(), cfg, topics, from, false, log, func(s *transform.Stored) error {
			if want := map[transform.Topic]string{transform.Events: "product.events", transform.Latest: "product.latest"}[s.Topic]; s.Table.Topics.Events != want {
				t.Errorf("a record of %s says it is from %s", s.Topic, s.Table.Topics.Events)
			}
			got = append(got, int64(s.ID[15]))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	var all []int64
	for i := range events {
		all = append(all, int64(i))
	}
	for _, tt := range []struct {
		name string
		got  []int64
		want []int64
	}{
		{"start", tail(FromStart(), "product.events"), all},
		{"end", tail(FromEnd(), "product.events"), nil},
		{"offset", tail(FromOffset(7), "product.events"), all[7:]},
		{"offset behind", tail(FromOffset(70), "product.events"), nil},
		{"time before", tail(FromTime(time.Now().Add(-time.Hour)), "product.events"), all},
		{"time behind", tail(FromTime(time.Now().Add(time.Hour)), "product.events"), nil},
		{"latest", tail(FromStart(), "product.latest"), []int64{int64(states[0].ID[15])}},
	} {
		if diff := cmp.Diff(tt.want, tt.got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
	err := Tail(t.Context(), cfg, []string{"no.such.topic"}, FromStart(), true, log, nil)
	wantRefusal(t, err, "no.such.topic")
}

// A follower sees what is appended, wherever the leaders go meanwhile, in order.
func TestTailFollowsLeaders(t *testing.T) {
	t.Parallel()
	fake, c := fakeCluster(t, 3)
	cfg := DefaultConfig()
	cfg.Brokers = c.brokers
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	got := make(chan transform.Stored, 1000)
	ended := make(chan error, 1)
	go func() {
		ended <- Tail(ctx, cfg, []string{"product.events"}, FromStart(), true, slog.New(slog.DiscardHandler),
			func(s *transform.Stored) error { got <- *clone(s); return nil })
	}()
	for round := range 6 {
		for part := range int32(testPartitions) {
			if err := fake.MoveTopicPartition("product.events", part, int32(round+int(part))%3); err != nil {
				t.Fatal(err)
			}
			want := c.write("product.events", part, someEvents(round*10, 3)...)
			for i := range want {
				select {
				case s := <-got:
					if s.Partition != part || s.Offset != want[i].Offset || s.ID != want[i].ID {
						t.Fatalf("got partition %d offset %d, want %d and %d", s.Partition, s.Offset, part, want[i].Offset)
					}
				case err := <-ended:
					t.Fatal(err)
				case <-ctx.Done():
					t.Fatalf("round %d: offset %d of partition %d does not come", round, want[i].Offset, part)
				}
			}
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it canceled", err)
	}
}

// What a broker may answer instead of records.
func TestFetchAnswers(t *testing.T) {
	t.Parallel()
	change := func(t *testing.T, fn func(n int, p *kmsg.FetchResponseTopicPartition)) (*cluster, []transform.Stored) {
		fake, c := fakeCluster(t, 1)
		want := c.write("product.events", 0, someEvents(0, 10)...)
		n := 0
		fake.ControlKey(1, func(req kmsg.Request) (kmsg.Response, error, bool) {
			fake.KeepControl()
			q := req.(*kmsg.FetchRequest)
			r := q.ResponseKind().(*kmsg.FetchResponse)
			part := kmsg.NewFetchResponseTopicPartition()
			part.HighWatermark, part.LastStableOffset = 10, 10
			fn(n, &part)
			n++
			if part.ErrorCode == 0 && part.HighWatermark == 10 {
				return nil, nil, false
			}
			topic := kmsg.NewFetchResponseTopic()
			topic.Topic = "product.events"
			topic.Partitions = append(topic.Partitions, part)
			r.Topics = append(r.Topics, topic)
			return r, nil, true
		})
		return c, want
	}
	for name, code := range map[string]int16{
		"not the leader": 6, "unknown topic": 3, "no leader": 5, "disk": 56, "stale epoch": 75, "offset not known yet": 78, "unknown": -1, "out of range": 1,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, want := change(t, func(n int, p *kmsg.FetchResponseTopicPartition) {
				if n < 2 {
					p.ErrorCode = code
				}
			})
			got, _ := fold(t, c.producer(), transform.Events, 0, 0, 0)
			if diff := cmp.Diff([testPartitions][]transform.Stored{want}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("no right to read", func(t *testing.T) {
		t.Parallel()
		c, _ := change(t, func(_ int, p *kmsg.FetchResponseTopicPartition) { p.ErrorCode = 29 })
		_, err := c.producer().Fold(t.Context(), productTable, transform.Events, []int64{0, 0, 0}, nil)
		wantRefusal(t, err, "product.events partition 0", "Read")
	})
	t.Run("nothing for ever", func(t *testing.T) { // compaction has taken all behind an offset
		t.Parallel()
		c, _ := change(t, func(_ int, p *kmsg.FetchResponseTopicPartition) { p.HighWatermark = 11 })
		got, marks := fold(t, c.producer(), transform.Events, 4, 0, 0)
		if len(got[0]) != 0 || marks[0].End != 10 || marks[0].LastAt != -1 {
			t.Errorf("got %d records, mark %+v", len(got[0]), marks[0])
		}
	})
}

// An unreachable broker is waited for until ctx is done, and named then.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 1)
	c.brokers = []string{"127.0.0.1:1"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := c.producer().Newest(ctx, productTable, transform.Latest)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("got %v, want the deadline and the broker in it", err)
	}
}

// Nothing runs on after a fold, finished or not.
func TestFoldLeaksNothing(t *testing.T) {
	_, c := fakeCluster(t, 3)
	c.write("product.events", 0, someEvents(0, 1000)...)
	c.write("product.events", 1, someEvents(0, 1000)...)
	p := c.producer()
	fold(t, p, transform.Events, 0, 0, 0)
	before := goleak.IgnoreCurrent()
	for range 5 {
		fold(t, p, transform.Events, 0, 0, 0)
		stop := errors.New("stop here")
		if _, err := p.Fold(t.Context(), productTable, transform.Events, []int64{0, 0, 0}, func(*transform.Stored) error { return stop }); !errors.Is(err, stop) {
			t.Fatal(err)
		}
	}
	p.client.close()
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("github.com/segmentio/kafka-go.(*conn).run"),
		goleak.IgnoreAnyFunction("github.com/segmentio/kafka-go.(*connPool).discover"),
		goleak.IgnoreAnyFunction("github.com/twmb/franz-go/pkg/kfake.(*clientConn).read"),
		goleak.IgnoreAnyFunction("github.com/twmb/franz-go/pkg/kfake.(*clientConn).write"))
}

func TestCloneSharesNothing(t *testing.T) {
	t.Parallel()
	s := someState("a", 1, 2, []byte(`{"a":1}`))
	s.Related, s.Context = []byte("b"), &capture.Context{Actor: "ann"}
	c := clone(&s)
	want, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Key[0], s.State[0], s.Related[0], s.Context.Actor = 'x', 'x', 'x', "bob"
	if got, err := json.Marshal(c); err != nil || string(got) != string(want) {
		t.Errorf("the copy became %s, was %s (%v)", got, want, err)
	}
}
