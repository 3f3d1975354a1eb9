package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"backstory/internal/testenv"
	"backstory/transform"
)

// realCluster is a broker of the test's own, with the topics of productTable.
// Its segments roll as record times advance, and are compacted at once.
func realCluster(t *testing.T) (*testenv.Cluster, *cluster) {
	t.Helper()
	kafka := testenv.Kafka(t, testenv.KafkaPrivate(),
		testenv.KafkaProperty("log.cleaner.backoff.ms", "200"),
		testenv.KafkaProperty("log.cleaner.dedupe.buffer.size", "4194304"))
	c := newCluster(t, kafka.Brokers(), kgo.RequiredAcks(kgo.AllISRAcks()))
	c.create("product.events", "cleanup.policy", "delete")
	c.create("product.latest", "cleanup.policy", "compact", "segment.ms", "100",
		"min.cleanable.dirty.ratio", "0.001", "delete.retention.ms", "3155760000000")
	return kafka, c
}

func (c *cluster) create(topic string, settings ...string) {
	c.tb.Helper()
	q := kmsg.NewPtrCreateTopicsRequest()
	q.TimeoutMillis = 10_000
	made := kmsg.NewCreateTopicsRequestTopic()
	made.Topic, made.NumPartitions, made.ReplicationFactor = topic, testPartitions, 1
	for i := 0; i < len(settings); i += 2 {
		set := kmsg.NewCreateTopicsRequestTopicConfig()
		set.Name, set.Value = settings[i], &settings[i+1]
		made.Configs = append(made.Configs, set)
	}
	q.Topics = append(q.Topics, made)
	eventually(c.tb, func() error {
		answer, err := q.RequestWith(c.tb.Context(), c.writer)
		if err != nil {
			return err
		}
		if code := answer.Topics[0].ErrorCode; code != 0 && code != 36 {
			return fmt.Errorf("create topic %s: code %d", topic, code)
		}
		return nil
	})
}

// deleteTopic deletes a topic and waits until the broker has forgotten it.
func (c *cluster) deleteTopic(topic string) {
	c.tb.Helper()
	q := kmsg.NewPtrDeleteTopicsRequest()
	q.TimeoutMillis, q.TopicNames = 10_000, []string{topic}
	named := kmsg.NewDeleteTopicsRequestTopic()
	named.Topic = &topic
	q.Topics = append(q.Topics, named)
	eventually(c.tb, func() error {
		answer, err := q.RequestWith(c.tb.Context(), c.writer)
		if err != nil {
			return err
		}
		if code := answer.Topics[0].ErrorCode; code != 3 {
			return fmt.Errorf("delete topic %s: code %d", topic, code)
		}
		return nil
	})
	c.writer.PurgeTopicsFromClient(topic)
}

// deleteRecords moves the log's start, as retention does.
func (c *cluster) deleteRecords(topic string, partition int32, below int64) {
	c.tb.Helper()
	q := kmsg.NewPtrDeleteRecordsRequest()
	q.TimeoutMillis = 10_000
	part := kmsg.NewDeleteRecordsRequestTopicPartition()
	part.Partition, part.Offset = partition, below
	q.Topics = append(q.Topics, kmsg.DeleteRecordsRequestTopic{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{part}})
	eventually(c.tb, func() error {
		answer, err := q.RequestWith(c.tb.Context(), c.writer)
		if err != nil {
			return err
		}
		if code := answer.Topics[0].Partitions[0].ErrorCode; code != 0 {
			return fmt.Errorf("delete records: code %d", code)
		}
		return nil
	})
}

// writeAt is write with a record time.
func (c *cluster) writeAt(topic string, partition int32, at time.Time, stored ...transform.Stored) []transform.Stored {
	c.tb.Helper()
	var records []*kgo.Record
	for i := range stored {
		s := &stored[i]
		s.Key = placed(s.Key, partition)
		r := kgoRecord(topic, partition, s.Key, valueOf(s), headersOf(s))
		r.Timestamp = at
		records = append(records, r)
	}
	c.send(records...)
	for i, r := range records {
		stored[i].Partition, stored[i].Offset = partition, r.Offset
	}
	return stored
}

// A compacted topic has batches whose last records are gone, batches that are
// all gone, markers and tombstones; all of them are read past.
func TestKafkaCompacted(t *testing.T) {
	t.Parallel()
	_, c := realCluster(t)
	p := c.producer()
	// A segment is compacted once it isn't the active one, and rolls when a batch
	// is written whose time is behind that of the segment's first one: so each put
	// rolls a segment, if times never go back. A marker's time is the broker's.
	clock := time.Now().Add(-20 * time.Minute)
	n := 0
	put := func(keys ...string) []transform.Stored {
		var s []transform.Stored
		for _, key := range keys {
			image := []byte(`{"k":"` + key + `"}`)
			if key == "dead" {
				image = nil
			}
			n++
			s = append(s, someState(key, n, int64(n), image))
		}
		clock = clock.Add(time.Minute)
		return c.writeAt("product.latest", 0, clock, s...)
	}
	put("b", "c")
	first := put("a", "b", "c", "dead") // of which only a and the tombstone remain
	gone := put("b", "c")               // nothing remains
	c.marker("product.latest", 0)
	clock = time.Now()
	second := put("b", "d", "c") // of which only b and d remain
	third := put("c", "e")
	put("x")
	inactive := put("x") // the newest that the cleaner looks at
	last := put("x")     // the active segment
	want := []transform.Stored{first[0], first[3], second[0], second[1], third[0], third[1], inactive[0], last[0]}
	read := func() [testPartitions][]transform.Stored {
		got, marks := fold(t, p, transform.Latest, 0, 0, 0)
		if m := mark(transform.Latest, 0, last[0].Offset+1, &last[0]); !cmp.Equal(m, marks[0]) {
			t.Fatalf("marks: %s", cmp.Diff(m, marks[0]))
		}
		return got
	}
	eventually(t, func() error {
		if diff := cmp.Diff([testPartitions][]transform.Stored{want}, read()); diff != "" {
			return errors.New("not compacted as expected: " + diff)
		}
		return nil
	})
	// Any offset is a good one to begin with, holes too.
	for from := range last[0].Offset + 1 {
		rest := want
		for len(rest) > 0 && rest[0].Offset < from {
			rest = rest[1:]
		}
		got, _ := fold(t, p, transform.Latest, from, 0, 0)
		if diff := cmp.Diff([testPartitions][]transform.Stored{rest}, got); diff != "" {
			t.Errorf("from %d: %s", from, diff)
		}
	}
	newest, err := p.Newest(t.Context(), productTable, transform.Latest)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*transform.Stored{&last[0], nil, nil}, newest); diff != "" {
		t.Error(diff)
	}
	for _, s := range []transform.Stored{gone[1], first[2], first[0]} {
		if err := p.Check(t.Context(), []transform.Mark{mark(transform.Latest, 0, s.Offset+1, &s)}); err != nil {
			t.Errorf("check of offset %d: %v", s.Offset, err)
		}
	}
}

// Records below the log's start are passed over, wherever the reader stands.
func TestKafkaRetention(t *testing.T) {
	t.Parallel()
	_, c := realCluster(t)
	p := c.producer()
	want := c.write("product.events", 1, someEvents(0, 10)...)
	c.deleteRecords("product.events", 1, 5)
	got, _ := fold(t, p, transform.Events, 0, 0, 0)
	if diff := cmp.Diff([testPartitions][]transform.Stored{1: want[5:]}, got); diff != "" {
		t.Error(diff)
	}
	if err := p.Check(t.Context(), []transform.Mark{mark(transform.Events, 1, 4, &want[3])}); err != nil {
		t.Errorf("an event that retention has taken: %v", err)
	}
	// Retention overtakes a reader that has already begun.
	cursors := newCursors("product.events", testPartitions, productTable, transform.Events, nil)[1:2]
	cursors[0].next, cursors[0].end = 2, 10
	var offsets []int64
	err := newReader(p.client, p.log).stored(t.Context(), cursors, func(_ *cursor, s *transform.Stored) error {
		offsets = append(offsets, s.Offset)
		return nil
	})
	if diff := cmp.Diff([]int64{5, 6, 7, 8, 9}, offsets); err != nil || diff != "" {
		t.Error(err, diff)
	}
	// A log that has nothing left still has its end.
	c.deleteRecords("product.events", 1, 10)
	_, marks := fold(t, p, transform.Events, 0, 0, 0)
	if diff := cmp.Diff(mark(transform.Events, 1, 10, nil), marks[1]); diff != "" {
		t.Error(diff)
	}
}

// A topic that was made anew is noticed, shorter or longer than it was.
func TestKafkaTopicMadeAnew(t *testing.T) {
	t.Parallel()
	_, c := realCluster(t)
	events := c.write("product.events", 0, someEvents(0, 10)...)
	remembered := []transform.Mark{mark(transform.Events, 0, 10, &events[9])}
	if err := c.producer().Check(t.Context(), remembered); err != nil {
		t.Fatal(err)
	}
	c.deleteTopic("product.events")
	c.create("product.events", "cleanup.policy", "delete")
	c.write("product.events", 0, someEvents(100, 5)...)
	wantRefusal(t, c.producer().Check(t.Context(), remembered), "ends at offset 5", "reached 10")
	c.write("product.events", 0, someEvents(105, 15)...)
	wantRefusal(t, c.producer().Check(t.Context(), remembered), "offset 9", idText(someID(109)), idText(someID(9)))
}

// A broker that is killed and comes back costs a follower nothing but time.
func TestKafkaTailOverRestart(t *testing.T) {
	t.Parallel()
	kafka, c := realCluster(t)
	cfg := DefaultConfig()
	cfg.Brokers = c.brokers
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	got := make(chan int64, 10_000)
	ended := make(chan error, 1)
	go func() {
		ended <- Tail(ctx, cfg, []string{"product.events"}, FromStart(), true, slog.New(slog.DiscardHandler),
			func(s *transform.Stored) error { got <- s.Offset; return nil })
	}()
	next := int64(0)
	expect := func(events []transform.Stored) {
		t.Helper()
		for range events {
			select {
			case offset := <-got:
				if offset != next {
					t.Fatalf("got offset %d, want %d", offset, next)
				}
				next++
			case err := <-ended:
				t.Fatal(err)
			case <-ctx.Done():
				t.Fatalf("offset %d does not come", next)
			}
		}
	}
	expect(c.write("product.events", 0, someEvents(0, 500)...))
	kafka.Kill9(t, 0)
	kafka.Restart(t, 0)
	expect(c.write("product.events", 0, someEvents(500, 500)...))
	kafka.Stop(t, 0)
	kafka.Cont(t, 0)
	expect(c.write("product.events", 0, someEvents(1000, 500)...))
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it canceled", err)
	}
}
