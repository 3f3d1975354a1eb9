package sink_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/capture"
	"backstory/internal/testenv"
	"backstory/sink"
	"backstory/transform"
)

// moved is the identity of a server that the rows were moved to.
var moved = capture.Identity{System: 42, Timeline: 1, Database: "legacy"}

func openAs(t *testing.T, brokers []string, m *transform.Mapping, id capture.Identity, slot string) (*sink.Producer, error) {
	t.Helper()
	p, err := sink.Open(within(t), config(brokers), m, id, slot, quiet(), registry())
	if err == nil {
		t.Cleanup(func() { _ = p.Close() }) // nothing is under way
	}
	return p, err
}

// refusedFor wants a refusal that names both sources and the way out.
func refusedFor(t *testing.T, step string, err error, sources ...string) {
	t.Helper()
	var refusal *sink.Refusal
	if !errors.As(err, &refusal) || refusal.Foreign == "" || !strings.Contains(refusal.Cure, "--adopt-topics") {
		t.Errorf("%s: got %v, want a refusal for the source", step, err)
		return
	}
	for _, source := range sources {
		if !strings.Contains(err.Error(), source) {
			t.Errorf("%s: %q does not name %s", step, err, source)
		}
	}
}

// offsets are the ends of topics, with the markers of fences; -1 where there is none.
func offsets(t *testing.T, brokers []string, topics ...string) (text string) {
	t.Helper()
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topics...)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		ends.Each(func(o kadm.ListedOffset) { all = append(all, fmt.Sprint(o.Topic, "/", o.Partition, ": ", o.Offset)) })
		slices.Sort(all)
		text = strings.Join(all, ", ")
	})
	return text
}

// A bridge of another source is refused before it makes or fences anything, whichever
// of the topics is in use, and whatever differs: server, database or table.
func TestOpenRefusesOtherSource(t *testing.T) {
	t.Parallel()
	brokers := testenv.KFake(t).ListenAddrs()
	m := shop("used", 3)
	rightful := fenced(t, config(brokers), m, "slot")
	mk := newMaker(m)
	publish(t, rightful, mk.many(20))
	before := offsets(t, brokers, "used.events", "used.latest")

	renamed := shop("used", 3)
	renamed.Tables[0].Name = "wares"
	onlyEvents, onlyLatest := shop("used", 3), shop("used", 3)
	onlyEvents.Tables[0].Topics.Latest, onlyLatest.Tables[0].Topics.Events = "own.latest", "own.events"
	otherAggregate := shop("used", 3)
	otherAggregate.Tables[0].Aggregate = "Ware"
	for _, tt := range []struct {
		name string
		m    *transform.Mapping
		id   capture.Identity
		own  string
	}{
		{"another server", shop("used", 3), moved, "/postgres/42/legacy/public.products"},
		{"another database", shop("used", 3), capture.Identity{System: identity.System, Database: "other"}, "/postgres/7301234567890/other/public.products"},
		{"another table", renamed, identity, "/postgres/7301234567890/legacy/public.wares"},
		{"events only", onlyEvents, moved, "/postgres/42/"},
		{"latest only", onlyLatest, moved, "/postgres/42/"},
		{"another aggregate too", otherAggregate, moved, "/postgres/42/"},
	} {
		_, err := openAs(t, brokers, tt.m, tt.id, "slot")
		refusedFor(t, tt.name+", open", err, "/postgres/7301234567890/legacy/public.products", tt.own)
		_, err = sink.Inspect(within(t), config(brokers), tt.m, tt.id, "slot", quiet())
		refusedFor(t, tt.name+", inspect", err, "/postgres/7301234567890/legacy/public.products", tt.own)
	}
	if after := offsets(t, brokers, "used.events", "used.latest"); after != before {
		t.Errorf("the topics are at %s, were at %s", after, before)
	}
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		found, err := kadm.NewClient(cl).ListTopics(ctx)
		if err != nil || found.Has("own.events") || found.Has("own.latest") {
			t.Errorf("a topic was made for a bridge that is refused (%v)", err)
		}
	})
	publish(t, rightful, mk.many(20)) // with the same session
}

// Every reader refuses a record of another source, wherever it stands: under the newest
// ones nothing is seen of it at the start.
func TestReadersRefuseOtherSource(t *testing.T) {
	t.Parallel()
	brokers := testenv.KFake(t).ListenAddrs()
	m := shop("mixed", 1)
	mk := newMaker(m)
	other := fenced(t, config(brokers), m, "slot")
	marks := publish(t, other, mk.change("a", "PriceChanged"))
	theirs := shop("mixed", 1)
	theirs.Tables[0].Adopts = true
	own, err := openAs(t, brokers, theirs, moved, "slot")
	if err != nil {
		t.Fatal(err)
	}
	table := theirs.Tables[0]
	if err := own.Fence(within(t)); err != nil {
		t.Fatal(err)
	}
	mk.table = table
	table.Adopts = false // so that the former source is nowhere remembered
	for i := range marks {
		marks[i].Table = table
	}
	fold := func(topic transform.Topic) error {
		_, err := own.Fold(within(t), table, topic, []int64{0}, func(*transform.Stored) error { return nil })
		return err
	}
	newest := func(topic transform.Topic) error { _, err := own.Newest(within(t), table, topic); return err }
	for step, err := range map[string]error{
		"fold events": fold(transform.Events), "fold latest": fold(transform.Latest),
		"newest events": newest(transform.Events), "newest latest": newest(transform.Latest),
		"check": own.Check(within(t), marks), "orphans": own.Orphans(within(t), table, nil),
		"fence": own.Fence(within(t)),
	} {
		refusedFor(t, step, err, "/postgres/7301234567890/legacy/public.products", "/postgres/42/legacy/public.products")
	}
	publish(t, own, mk.change("a", "PriceChanged")) // its session was not fenced by that
	for _, topic := range []transform.Topic{transform.Events, transform.Latest} {
		refusedFor(t, "fold with an own record above", fold(topic))
	}
}

// Former sources that are remembered are accepted where they may stand, records name
// them, and who has lost the state learns of them from there.
func TestFormerSources(t *testing.T) {
	t.Parallel()
	brokers := testenv.KFake(t).ListenAddrs()
	m := shop("moved", 2)
	former := fenced(t, config(brokers), m, "slot")
	mk := newMaker(m)
	publish(t, former, mk.many(10))
	const source = "/postgres/7301234567890/legacy/public.products"

	theirs := shop("moved", 2)
	table := theirs.Tables[0]
	table.Former = []transform.Former{{Source: source}, {Source: "/postgres/1/older/public.products"}}
	own, err := openAs(t, brokers, theirs, moved, "slot")
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Fence(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := tryPublish(within(t), former, mk.change("key-0", "PriceChanged")); !restarts(err) {
		t.Errorf("the former bridge publishes: %v, want it fenced", err)
	}
	mk = newMaker(theirs)
	for i := range 10 {
		mk.versions[fmt.Sprint("key-", i)] = 1
	}
	publish(t, own, mk.change("key-0", "PriceChanged"))
	for _, topic := range []string{"moved.events", "moved.latest"} {
		records := consume(t, brokers, topic)
		fragment := strings.TrimPrefix(strings.TrimPrefix(topic, "moved."), "events")
		if fragment != "" {
			fragment = "#" + fragment
		}
		for _, r := range records {
			from, _ := header(r, sink.HeaderSource)
			list, listed := header(r, sink.HeaderFormerSource)
			switch {
			case from == source+fragment && !listed:
			case from == "/postgres/42/legacy/public.products"+fragment && list == source+" /postgres/1/older/public.products":
			default:
				t.Errorf("%s: source %q, former %q", topic, from, list)
			}
		}
	}

	lost := shop("moved", 2)
	learned, err := openAs(t, brokers, lost, moved, "slot")
	if err != nil {
		t.Fatalf("open without the state: %v", err)
	}
	folded := 0
	if _, err := learned.Fold(within(t), lost.Tables[0], transform.Events, []int64{0, 0}, func(s *transform.Stored) error {
		if folded++; s.Source == "/postgres/42/legacy/public.products" && len(s.Former) != 2 {
			t.Errorf("former sources: %q", s.Former)
		}
		return nil
	}); err != nil || folded != 11 {
		t.Errorf("folded %d of 11 without the state: %v", folded, err)
	}

	ended := shop("moved", 2) // the former source's records end before its last ones
	ended.Tables[0].Former = []transform.Former{{Source: source, Events: []int64{2, 2}, Latest: []int64{100, 100}}}
	if _, err := openAs(t, brokers, ended, moved, "slot"); err == nil || !strings.Contains(err.Error(), "still writes") {
		t.Errorf("records behind the former source's end: got %v, want a refusal", err)
	}
}

// A copy of the database, with system id and slot the same, publishes to topics of its
// own without fencing anybody.
func TestCopyDoesNotFence(t *testing.T) {
	t.Parallel()
	brokers := testenv.KFake(t).ListenAddrs()
	production, staging := shop("production", 2), shop("staging", 2)
	one := fenced(t, config(brokers), production, "slot")
	mk := newMaker(production)
	publish(t, one, mk.many(5))
	two := fenced(t, config(brokers), staging, "slot")
	publish(t, two, newMaker(staging).many(5))
	publish(t, one, mk.many(5))
	if err := one.Renew(within(t)); err != nil {
		t.Errorf("renew: %v", err)
	}
	// With a further table the first topic by name is another: the former instance is
	// ended all the same.
	more := shop("production", 2)
	more.Tables = append(more.Tables, &transform.Table{ID: 2, Schema: "public", Name: "articles", Aggregate: "Article", Key: []string{"id"},
		Topics: transform.Topics{Events: "article.events", Latest: "article.latest", Partitions: 2, Replication: 1}})
	fenced(t, config(brokers), more, "slot")
	if _, err := tryPublish(within(t), one, mk.many(5)); err == nil {
		t.Error("the instance with fewer tables goes on beside the one with more")
	}
}

// Recheck sees what was changed since Open, says nothing of what only makes faults
// likelier, and does not take brokers that are away for a refusal.
func TestRecheck(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	brokers := cluster.Brokers()
	set := func(kind, name, value string) func(string) {
		return func(topic string) { alterTopic(t, brokers, topic+"."+kind, name, value) }
	}
	for name, tt := range map[string]struct {
		change func(name string)
		says   string // empty: nothing
	}{
		"compacted":    {set("events", "cleanup.policy", "compact"), "cleanup.policy is compact"},
		"both":         {set("events", "cleanup.policy", "compact,delete"), "cleanup.policy is compact,delete"},
		"retention":    {set("events", "retention.bytes", "1000000"), "retention.bytes is 1000000"},
		"tombstones":   {set("latest", "delete.retention.ms", "1000"), "delete.retention.ms is 1000"},
		"record times": {set("latest", "message.timestamp.type", "LogAppendTime"), "message.timestamp.type is LogAppendTime"},
		"too small":    {set("latest", "max.message.bytes", "100"), "max.message.bytes is 100"},
		"warned of":    {set("events", "compression.type", "gzip"), ""},
		"partitions": {func(name string) {
			admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
				if _, err := kadm.NewClient(cl).CreatePartitions(ctx, 2, name+".latest"); err != nil {
					t.Fatal(err)
				}
			})
		}, "it has 4 partitions, and had 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topics := cluster.Name("recheck")
			p := fenced(t, config(brokers), shop(topics, 2), topics)
			if err := p.Recheck(within(t)); err != nil {
				t.Fatalf("as they were made: %v", err)
			}
			tt.change(topics)
			if tt.says == "" {
				if err := p.Recheck(within(t)); err != nil {
					t.Errorf("got %v, want nothing", err)
				}
				return
			}
			testenv.Eventually(t, testLimit, func() error { // metadata are a few seconds old at times
				err := p.Recheck(within(t))
				if !isRefused(err) || !strings.Contains(err.Error(), tt.says) {
					return fmt.Errorf("got %v, want a refusal with %q", err, tt.says)
				}
				if strings.Contains(err.Error(), "set topics.partitions") {
					t.Errorf("the other number is recommended: %v", err)
				}
				return nil
			})
		})
	}
}

// A record of another source is noticed before the bridge writes the next one of its own,
// and whatever is under way. Another instance's records are not.
func TestRecheckFindsOtherSource(t *testing.T) {
	t.Parallel()
	brokers := testenv.KFake(t).ListenAddrs()
	m := shop("watched", 2)
	p := fenced(t, config(brokers), m, "slot")
	mk := newMaker(m)
	for range 20 {
		pub, err := p.Encode(mk.many(10))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(p.Recheck(within(t)), pub.Events(within(t)), p.Recheck(within(t)), pub.Latest(within(t)), p.Recheck(within(t))); err != nil {
			t.Fatal(err)
		}
		pub.Release()
	}
	if err := errors.Join(p.Renew(within(t)), p.Recheck(within(t))); err != nil {
		t.Fatal(err)
	}
	second := fenced(t, config(brokers), m, "slot")
	publish(t, second, mk.many(10))
	if err := p.Recheck(within(t)); err != nil {
		t.Errorf("after another instance has taken over: %v", err)
	}
	record := consume(t, brokers, "watched.events")[0]
	record.Headers = slices.Clone(record.Headers)
	for i := range record.Headers {
		if record.Headers[i].Key == sink.HeaderSource {
			record.Headers[i].Value = []byte("/postgres/42/legacy/public.products")
		}
	}
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: record.Topic, Key: record.Key, Value: record.Value, Headers: record.Headers}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	})
	refusedFor(t, "recheck", second.Recheck(within(t)), "/postgres/42/legacy/public.products", "/postgres/7301234567890/legacy/public.products")
}

// Brokers that are away are not Recheck's business.
func TestRecheckWithoutBrokers(t *testing.T) {
	t.Parallel()
	fake := testenv.KFake(t)
	p := fenced(t, config(fake.ListenAddrs()), shop("away", 2), "slot")
	fake.Close()
	if err := p.Recheck(within(t)); err == nil || isRefused(err) {
		t.Errorf("got %v, want an error that is no refusal", err)
	}
}

// A key outside of its partition tells that the topic had another number of them.
func TestFoldRefusesMovedKeys(t *testing.T) {
	t.Parallel()
	brokers := testenv.KFake(t).ListenAddrs()
	m := shop("grown", 2)
	p := fenced(t, config(brokers), m, "slot")
	publish(t, p, newMaker(m).many(20))
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		if _, err := kadm.NewClient(cl).CreatePartitions(ctx, 1, "grown.events", "grown.latest"); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := openAs(t, brokers, shop("grown", 2), identity, "slot"); err == nil || strings.Contains(err.Error(), "set topics.partitions") {
		t.Errorf("two of three partitions: got %v", err)
	}
	grown := shop("grown", 3)
	p, err := openAs(t, brokers, grown, identity, "slot")
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range []transform.Topic{transform.Events, transform.Latest} {
		_, err = p.Fold(within(t), grown.Tables[0], topic, []int64{0, 0, 0}, func(*transform.Stored) error { return nil })
		if !isRefused(err) || !strings.Contains(err.Error(), "another number of partitions") {
			t.Errorf("fold %s: got %v, want a refusal", topic, err)
		}
	}
}
