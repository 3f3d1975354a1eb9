package sink_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/internal/testenv"
	"backstory/sink"
	"backstory/transform"
)

// flow publishes change after change in the background.
type flow struct {
	published chan int // changes, as they are acknowledged; closed at the end
	stop      context.CancelFunc
	mk        *maker
	err       error // valid once published is closed
}

// flowKeys is how many aggregates take turns in a flow.
const flowKeys = 40

// startFlow publishes until end is called.
func startFlow(t *testing.T, p *sink.Producer, m *transform.Mapping) *flow {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f := &flow{published: make(chan int, 1<<20), stop: cancel, mk: newMaker(m).recent()}
	go func() { // ends with ctx, or with an error that lasts
		defer close(f.published)
		for n := 1; ctx.Err() == nil; n++ {
			var events []transform.Event
			for range 1 + rand.IntN(20) {
				events = append(events, f.mk.change(fmt.Sprint("key-", rand.IntN(flowKeys)), "PriceChanged", "StockAdjusted")...)
			}
			// The stop is between two publications, so that all is acknowledged.
			if _, f.err = tryPublish(context.WithoutCancel(ctx), p, events); f.err != nil {
				return
			}
			f.published <- n
		}
	}()
	t.Cleanup(cancel)
	return f
}

// goOn waits until n publications are acknowledged that were not before the call.
func (f *flow) goOn(t *testing.T, n int) {
	t.Helper()
	for len(f.published) > 0 {
		<-f.published
	}
	limit := time.After(testLimit)
	for range n {
		select {
		case _, ok := <-f.published:
			if !ok {
				t.Fatalf("publish: %v", f.err)
			}
		case <-limit:
			t.Fatal("nothing is published any more")
		}
	}
}

// end stops the flow and compares the topics with it.
func (f *flow) end(t *testing.T, brokers []string, m *transform.Mapping) {
	t.Helper()
	f.stop()
	for range f.published {
	}
	if f.err != nil {
		t.Fatalf("publish: %v", f.err)
	}
	table := m.Tables[0]
	seen := make(map[string]uint64)
	for _, r := range consume(t, brokers, table.Topics.Events) {
		key := string(r.Key)
		seen[key]++
		if v, _ := header(r, sink.HeaderAggregateVersion); v != fmt.Sprint(seen[key]) {
			t.Fatalf("partition %d offset %d: %s has version %s, want %d", r.Partition, r.Offset, key, v, seen[key])
		}
	}
	newest := make(map[string]string)
	for _, r := range consume(t, brokers, table.Topics.Latest) {
		newest[string(r.Key)], _ = header(r, sink.HeaderAggregateVersion)
	}
	total := uint64(0)
	for key, version := range f.mk.versions {
		total += version
		if seen[key] != version || newest[key] != fmt.Sprint(version) {
			t.Errorf("%s: %d events and the state of version %s, want %d", key, seen[key], newest[key], version)
		}
	}
	t.Logf("%d events of %d aggregates", total, len(f.mk.versions))
}

// TestFaultsOneBroker cuts, stalls and slows the connection, kills the broker in
// flight, freezes and restarts it. One session outlives all of it.
func TestFaultsOneBroker(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t, testenv.KafkaProxied())
	m := shop("product", 4)
	cfg := config(cluster.Brokers())
	cfg.RequestTimeout = time.Second
	p := fenced(t, cfg, m, "faults")
	f := startFlow(t, p, m)
	link := cluster.Proxy(0)
	f.goOn(t, 20)
	for range 20 {
		link.Reset()
		f.goOn(t, 2)
	}
	for range 3 { // longer than RequestTimeout: the abandoned request lands later
		link.Stall()
		<-time.After(1500 * time.Millisecond)
		link.Heal(t)
		f.goOn(t, 5)
	}
	link.Slow(20 * time.Millisecond)
	f.goOn(t, 3)
	link.Cut()
	<-time.After(500 * time.Millisecond)
	link.Heal(t)
	f.goOn(t, 5)
	for range 2 {
		cluster.Kill9(t, 0)
		cluster.Restart(t, 0)
		f.goOn(t, 5)
	}
	cluster.Stop(t, 0)
	<-time.After(1500 * time.Millisecond)
	cluster.Cont(t, 0)
	f.goOn(t, 5)
	cluster.Shutdown(t, 0)
	cluster.Restart(t, 0)
	f.goOn(t, 20)
	f.end(t, cluster.Internal(), m)
}

// TestFaultsThreeBrokers moves leaders under a session: a broker is killed, one
// is stopped in order, and the followers fall so far behind that the leader
// answers with an error for what it has appended.
func TestFaultsThreeBrokers(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t, testenv.KafkaBrokers(3), testenv.KafkaProperty("replica.lag.time.max.ms", "2000"))
	m := shop("product", 6)
	m.Tables[0].Topics.Replication = 3
	cfg := config(cluster.Brokers())
	cfg.RequestTimeout = 2 * time.Second
	p := fenced(t, cfg, m, "faults")
	f := startFlow(t, p, m)
	f.goOn(t, 20)
	for i := range 3 {
		before := leaders(t, cluster, m.Tables[0].Topics.Events)
		if i == 1 {
			cluster.Shutdown(t, i)
		} else {
			cluster.Kill9(t, i)
		}
		testenv.Eventually(t, testLimit, func() error {
			if moved := leaders(t, cluster, m.Tables[0].Topics.Events); moved == before {
				return fmt.Errorf("the leaders are %s as before", moved)
			}
			return nil
		})
		f.goOn(t, 10)
		cluster.Restart(t, i)
		f.goOn(t, 10)
	}
	cluster.Stop(t, 1)
	cluster.Stop(t, 2)
	<-time.After(4 * time.Second)
	cluster.Cont(t, 1)
	cluster.Cont(t, 2)
	f.goOn(t, 20)
	f.end(t, cluster.Internal(), m)
}

// leaders is who leads the partitions of a topic.
func leaders(t *testing.T, cluster *testenv.Cluster, topic string) string {
	t.Helper()
	var out strings.Builder
	admin(t, cluster.Internal(), func(ctx context.Context, cl *kgo.Client) {
		found, err := kadm.NewClient(cl).ListTopics(ctx, topic)
		if err != nil {
			t.Fatalf("list topics: %v", err)
		}
		for _, part := range found[topic].Partitions.Sorted() {
			fmt.Fprint(&out, part.Leader, " ")
		}
	})
	return out.String()
}

// TestTakeOverFrozen has an instance whose request is held up on its way, and
// that goes on when another has taken over.
func TestTakeOverFrozen(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t, testenv.KafkaProxied())
	m := shop("product", 3)
	mk := newMaker(m).recent()
	cfg := config(cluster.Brokers())
	former := fenced(t, cfg, m, "slot")
	publish(t, former, mk.many(20))

	cluster.Proxy(0).Stall()
	held, err := former.Encode(mk.many(20))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- held.Events(within(t)) }()

	latter := fenced(t, config(cluster.Internal()), m, "slot")
	again := newMaker(m).recent()
	again.many(20)
	publish(t, latter, again.many(20))
	cluster.Proxy(0).Heal(t)
	if err := <-ended; !restarts(err) {
		t.Errorf("the former instance: got %v, want a SessionError", err)
	}
	publish(t, latter, again.many(20))
	versions := make(map[string]int)
	for _, r := range consume(t, cluster.Internal(), "product.events") {
		versions[string(r.Key)]++
		if v, _ := header(r, sink.HeaderAggregateVersion); v != fmt.Sprint(versions[string(r.Key)]) {
			t.Errorf("%s: version %s stands where %d should", r.Key, v, versions[string(r.Key)])
		}
	}
	for key, n := range versions {
		if n != 3 {
			t.Errorf("%s: got %d events, want 3", key, n)
		}
	}
}
