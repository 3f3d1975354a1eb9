package sink_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/capture"
	"backstory/internal/testenv"
	"backstory/sink"
	"backstory/transform"
)

// testLimit bounds a test that waits for servers.
const testLimit = 2 * time.Minute

// shop is a mapping of one table, with topics of its own.
func shop(name string, partitions int32) *transform.Mapping {
	return &transform.Mapping{Tables: []*transform.Table{{
		ID: 1, Schema: "public", Name: "products", Aggregate: "Product", Key: []string{"id"},
		Topics: transform.Topics{Events: name + ".events", Latest: name + ".latest", Partitions: partitions, Replication: 1},
	}}}
}

var identity = capture.Identity{System: 7301234567890, Timeline: 1, Database: "legacy"}

// config reaches the brokers, with short timeouts.
func config(brokers []string) sink.Config {
	cfg := sink.DefaultConfig()
	cfg.Brokers = brokers
	cfg.RequestTimeout = 5 * time.Second
	return cfg
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func registry() *prometheus.Registry { return prometheus.NewRegistry() }

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	t.Cleanup(cancel)
	return ctx
}

// open opens a producer of the mapping; slot names the bridge.
func open(t *testing.T, cfg sink.Config, m *transform.Mapping, slot string) *sink.Producer {
	t.Helper()
	p, err := sink.Open(within(t), cfg, m, identity, slot, quiet(), registry())
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

// fenced opens a producer and fences.
func fenced(t *testing.T, cfg sink.Config, m *transform.Mapping, slot string) *sink.Producer {
	t.Helper()
	p := open(t, cfg, m, slot)
	if err := p.Fence(within(t)); err != nil {
		t.Fatalf("fence: %v", err)
	}
	return p
}

// publish sends events through both topics and returns the marks.
func publish(t *testing.T, p *sink.Producer, events []transform.Event) []transform.Mark {
	t.Helper()
	marks, err := tryPublish(within(t), p, events)
	if err != nil {
		t.Fatalf("publish: %v", err)
	}
	return marks
}

func tryPublish(ctx context.Context, p *sink.Producer, events []transform.Event) ([]transform.Mark, error) {
	pub, err := p.Encode(events)
	if err != nil {
		return nil, err
	}
	defer pub.Release()
	if err := pub.Events(ctx); err != nil {
		return nil, err
	}
	if err := pub.Latest(ctx); err != nil {
		return nil, err
	}
	return append([]transform.Mark(nil), pub.Marks()...), nil
}

// maker makes events with versions that go on counting.
type maker struct {
	table    *transform.Table
	lsn      capture.LSN
	clock    int64 // commit time of the events, in microseconds
	versions map[string]uint64
}

func newMaker(m *transform.Mapping) *maker {
	return &maker{table: m.Tables[0], lsn: 0x15A2F30, clock: noon, versions: make(map[string]uint64)}
}

// noon is a commit time, in microseconds.
const noon = 1_788_264_000_123_456

// recent makes the events young enough to be sent again whatever the outcome.
func (mk *maker) recent() *maker {
	mk.clock = time.Now().UnixMicro()
	return mk
}

// change makes the events of one change of a key, one for each type.
func (mk *maker) change(key string, types ...string) []transform.Event {
	mk.lsn += 8
	var out []transform.Event
	for i, typ := range types {
		mk.versions[key]++
		v := mk.versions[key]
		place := transform.Place{Pos: capture.Position{LSN: mk.lsn, Kind: capture.KindChange, Index: 1}, Index: uint16(i + 1)}
		e := transform.Event{
			ID:   idOf(key, v),
			Type: typ + ".v1", Table: mk.table, Key: []byte(key), Version: v, Place: place,
			XID: uint32(700 + mk.lsn%100), Time: mk.clock + int64(mk.lsn), Op: capture.OpUpdate,
			Data:  fmt.Appendf(nil, `{"old":{"price":"%d.00"},"new":{"price":"%d.00"},"reason":null}`, v-1, v),
			State: fmt.Appendf(nil, `{"id":%q,"price":"%d.00"}`, key, v),
		}
		if typ == "ProductDeleted" {
			e.Op, e.State = capture.OpDelete, nil
		}
		out = append(out, e)
	}
	return out
}

func idOf(key string, version uint64) (id transform.EventID) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", key, version))
	copy(id[:], sum[:])
	return id
}

// many makes one event for each of n keys.
func (mk *maker) many(n int) []transform.Event {
	var out []transform.Event
	for i := range n {
		out = append(out, mk.change(fmt.Sprintf("key-%d", i), "PriceChanged")...)
	}
	return out
}

// consume reads a topic to its end with another client, control records left
// out, and returns the records in order of partition and offset.
func consume(t *testing.T, brokers []string, topic string) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepControlRecords())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err != nil {
		t.Fatalf("ends of %s: %v", topic, err)
	}
	left := make(map[int32]bool)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = true
		}
	})
	byPart := make(map[int32][]*kgo.Record)
	for len(left) > 0 {
		polled := cl.PollFetches(ctx)
		if err := polled.Err0(); err != nil {
			t.Fatalf("consume %s: %v", topic, err)
		}
		polled.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				byPart[r.Partition] = append(byPart[r.Partition], r)
			}
			if end, ok := ends.Lookup(topic, r.Partition); ok && r.Offset == end.Offset-1 {
				delete(left, r.Partition)
			}
		})
	}
	var out []*kgo.Record
	for _, part := range slices.Sorted(maps.Keys(byPart)) {
		out = append(out, byPart[part]...)
	}
	return out
}

// value of a header, and whether it is there.
func header(r *kgo.Record, name string) (string, bool) {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value), true
		}
	}
	return "", false
}

// story is the events of a record list, as "key/version", in order.
func story(records []*kgo.Record) string {
	var b strings.Builder
	for _, r := range records {
		v, _ := header(r, sink.HeaderAggregateVersion)
		fmt.Fprintf(&b, "%s/%s ", r.Key, v)
	}
	return b.String()
}

// consumeEvents is consume without barriers.
func consumeEvents(t *testing.T, brokers []string, topic string) []*kgo.Record {
	t.Helper()
	return slices.DeleteFunc(consume(t, brokers, topic), func(r *kgo.Record) bool {
		_, barrier := header(r, sink.HeaderBarrier)
		return barrier
	})
}

// admin runs fn with another client.
func admin(t *testing.T, brokers []string, fn func(context.Context, *kgo.Client)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	fn(ctx, cl)
}

// intrude writes a record to partition 0 of a topic as another program would.
func intrude(t *testing.T, brokers []string, topic string) {
	t.Helper()
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Key: []byte("x"), Value: []byte("y")}).FirstErr(); err != nil {
			t.Fatalf("intrude: %v", err)
		}
	})
}

// createTopic makes a topic with settings, of which later ones win.
func createTopic(t *testing.T, brokers []string, name string, partitions int32, settings ...map[string]string) {
	t.Helper()
	all := make(map[string]*string)
	for _, s := range settings {
		for k, v := range s {
			all[k] = &v
		}
	}
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		if _, err := kadm.NewClient(cl).CreateTopic(ctx, partitions, 1, all, name); err != nil {
			t.Fatalf("create %s: %v", name, err)
		}
	})
}

// deleteTopic deletes a topic and returns when the broker has forgotten it.
func deleteTopic(t *testing.T, brokers []string, name string) {
	t.Helper()
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		if _, err := kadm.NewClient(cl).DeleteTopic(ctx, name); err != nil {
			t.Fatalf("delete %s: %v", name, err)
		}
		for {
			found, err := kadm.NewClient(cl).ListTopics(ctx, name)
			if err != nil {
				t.Fatalf("list topics: %v", err)
			}
			if !found.Has(name) {
				return
			}
		}
	})
}

// alterTopic sets a topic's setting and returns when it is in effect.
func alterTopic(t *testing.T, brokers []string, topic, name, value string) {
	t.Helper()
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		if _, err := kadm.NewClient(cl).AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: name, Value: &value}}, topic); err != nil {
			t.Fatalf("alter %s: %v", topic, err)
		}
	})
	testenv.Eventually(t, testLimit, func() error {
		if got := settingsOf(t, brokers, topic)[name]; got != value {
			return fmt.Errorf("%s is %s", name, got)
		}
		return nil
	})
}

// settingsOf are the settings of a topic, defaults included.
func settingsOf(t *testing.T, brokers []string, topic string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		found, err := kadm.NewClient(cl).DescribeTopicConfigs(ctx, topic)
		if err != nil || len(found) != 1 || found[0].Err != nil {
			t.Fatalf("describe %s: %v, %v", topic, err, found)
		}
		for _, c := range found[0].Configs {
			out[c.Key] = c.MaybeValue()
		}
	})
	return out
}

// partitionOfKey is where Java's partitioner puts a key.
func partitionOfKey(key string, partitions int) int {
	all := make([]int, partitions)
	for i := range all {
		all[i] = i
	}
	return kafka.Murmur2Balancer{}.Balance(kafka.Message{Key: []byte(key)}, all...)
}
