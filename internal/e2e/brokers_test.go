package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// partitions of each topic of the audit's mapping.
const partitions = 6

// killEvery is the time from one leader's death to the next one's.
const killEvery = 10 * time.Second

// The broker that leads most partitions of both topics dies again and again while
// writers write: every committed row version is told once, and in order. A broker
// that comes back is not waited for, so that a leader may be the last one that is in
// sync. The session is renewed meanwhile. BACKSTORY_TEST_LEADER_SECONDS makes it as long as wanted.
func TestLeadersKilled(t *testing.T) {
	t.Parallel()
	length := time.Duration(number(t, "BACKSTORY_TEST_LEADER_SECONDS", 20)) * time.Second
	kafka := testenv.Kafka(t, testenv.KafkaBrokers(3))
	r := newRig(t, testenv.Postgres(t), kafka.Brokers(), 1000)
	p := r.start("--kafka.request_timeout=5s", "--bridge.renew_interval=1m")
	p.streaming()
	client := r.kafka(kafka.Internal())
	begun := time.Now()
	written := r.writing(4, 1000, time.Millisecond, true)
	kills := 0
	wait(t, killEvery/2)
	for kills < 2 || time.Since(begun) < length {
		next := time.Now().Add(killEvery)
		leader := r.leader(client)
		kafka.Kill9(t, leader)
		kills++
		kafka.Restart(t, leader)
		if err := p.alive(); err != nil {
			t.Fatal(err)
		}
		wait(t, time.Until(next))
	}
	took := time.Since(begun)
	changes := written()
	p.drained(5 * time.Minute)
	drained := time.Since(begun)
	p.stop()
	r.compare()
	t.Logf("%d leaders killed in %s, %d changes, %.0f/s; all confirmed %s after the last one",
		kills, took.Round(time.Second), changes, float64(changes)/took.Seconds(), (drained - took).Round(time.Millisecond))
}

func wait(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(context.Cause(t.Context()))
	}
}

// kafka is a client of the brokers; it ends with the test.
func (r *rig) kafka(brokers []string) *kgo.Client {
	r.tb.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(client.Close)
	return client
}

// leader is the node that leads most partitions of the rig's topics.
func (r *rig) leader(client *kgo.Client) (node int) {
	r.tb.Helper()
	testenv.Eventually(r.tb, time.Minute, func() error {
		ctx, cancel := context.WithTimeout(r.tb.Context(), 10*time.Second)
		defer cancel()
		topics, err := kadm.NewClient(client).ListTopics(ctx, r.topics[:]...)
		if err != nil {
			return err
		}
		leads := map[int32]int{}
		topics.EachPartition(func(p kadm.PartitionDetail) {
			if p.Leader > 0 {
				leads[p.Leader]++
			}
		})
		node = -1
		for id, n := range leads {
			if node < 0 || n > leads[int32(node+1)] {
				node = int(id) - 1 // broker ids begin at 1
			}
		}
		if node < 0 {
			return errors.New("no partition has a leader")
		}
		return nil
	})
	return node
}

// What a killed instance had sent and no broker had acknowledged when another one
// took over. The brokers are patient, so that what is not replicated stays in doubt
// for as long as the test wants it.
func TestTakeOverOnThreeBrokers(t *testing.T) {
	t.Parallel()
	kafka := testenv.Kafka(t, testenv.KafkaBrokers(3), testenv.KafkaProxied(),
		testenv.KafkaProperty("broker.session.timeout.ms", "600000"),
		testenv.KafkaProperty("replica.lag.time.max.ms", "600000"),
		// Transactional ids are known without the follower that stands still.
		testenv.KafkaProperty("transaction.state.log.replication.factor", "1"),
		testenv.KafkaProperty("transaction.state.log.min.isr", "1"))
	pg := testenv.Postgres(t)
	t.Run("requests arrive late", func(t *testing.T) { lateRequests(t, pg, kafka) })
	t.Run("batches above the high watermark", func(t *testing.T) { aboveHighWatermark(t, pg, kafka) })
}

// patient are flags of an instance that has to wait for its brokers.
var patient = []string{"--kafka.request_timeout=2s", "--bridge.startup_timeout=3m"}

// The requests of an instance are held in front of the brokers, it is killed, and
// another one takes over, whose own requests are lost again and again: it has
// fenced, and no partition has a record of it. Then the former requests arrive, and
// each is refused.
func lateRequests(t *testing.T, pg *testenv.PG, kafka *testenv.Cluster) {
	r := newRig(t, pg, kafka.Brokers(), 100)
	former := r.start(patient...)
	former.drained(time.Minute)
	var fate atomic.Int64
	told := map[testenv.Fate]chan testenv.Produce{}
	for f := range testenv.Held + 1 {
		told[f] = make(chan testenv.Produce, 1000)
	}
	arrived := make(chan testenv.Produce, 100)
	for i := range 3 {
		kafka.Proxy(i).Judge(
			func(string, int32) testenv.Fate { return testenv.Fate(fate.Load()) },
			func(p testenv.Produce) {
				if p.Fate == testenv.Held && p.Code != testenv.NoAnswer {
					arrived <- p
				} else {
					told[p.Fate] <- p
				}
			})
	}
	fate.Store(int64(testenv.Held))
	r.exec(`UPDATE products SET price = price + 1`) // a request to each broker
	for range 3 {
		met(t, told[testenv.Held])
	}
	former.kill()

	fate.Store(int64(testenv.Lost))
	latter := r.second(kafka.Brokers())
	p := latter.start(patient...)
	for range 6 {
		met(t, told[testenv.Lost])
	}
	for i := range 3 {
		kafka.Proxy(i).Release()
	}
	for range 3 {
		if late := met(t, arrived); late.Code != 47 {
			t.Errorf("a request for %s, partition %d, after the take-over: code %d, want 47 (fenced)", late.Topic, late.Partition, late.Code)
		}
	}
	fate.Store(int64(testenv.Answered))
	r.exec(`UPDATE products SET price = price + 1`)
	p.drained(time.Minute)
	p.stop()
	if report := latter.compare(); report.Events != 300 {
		t.Errorf("%d events, want 300", report.Events)
	}
}

// met waits for a request to meet its fate.
func met(t *testing.T, requests <-chan testenv.Produce) testenv.Produce {
	t.Helper()
	select {
	case p := <-requests:
		return p
	case <-time.After(time.Minute):
		t.Fatal("the request has not met its fate within a minute")
		return testenv.Produce{}
	}
}

// A follower stands still, so batches lie in the leaders' logs above what any reader
// sees when their instance is killed. The one that takes over writes its markers
// above them, and must wait until all of it is seen, and take it for published.
func aboveHighWatermark(t *testing.T, pg *testenv.PG, kafka *testenv.Cluster) {
	r := newRig(t, pg, kafka.Internal(), 100)
	flags := append(patient[:len(patient):len(patient)], "--kafka.transactional_id="+r.slot())
	former := r.start(flags...)
	former.drained(time.Minute)
	client := r.kafka(kafka.Internal())
	follower := (r.coordinator(client) + 1) % 3
	r.onlyFollows(client, follower)

	kafka.Stop(t, follower)
	var once sync.Once
	goOn := func() { once.Do(func() { kafka.Cont(t, follower) }) }
	t.Cleanup(goOn)
	r.exec(`UPDATE products SET price = price + 1`)
	var doubtful, visible map[int32]int64
	testenv.Eventually(t, time.Minute, func() error {
		doubtful, visible = r.ends(client, logEnd), r.ends(client, visibleEnd)
		for p, end := range doubtful {
			if end <= visible[p] {
				return fmt.Errorf("partition %d: nothing above the high watermark %d", p, end)
			}
		}
		return nil
	})
	former.kill()

	latter := r.second(kafka.Internal())
	p := latter.start(flags...)
	testenv.Eventually(t, time.Minute, func() error {
		for p, end := range r.ends(client, logEnd) {
			if end != doubtful[p]+1 {
				return fmt.Errorf("partition %d ends at %d, want one marker above %d", p, end, doubtful[p])
			}
		}
		return nil
	})
	if now := r.ends(client, visibleEnd); !maps.Equal(now, visible) {
		t.Fatalf("the visible ends are %v, want %v as before: the test proves nothing", now, visible)
	}
	if s, err := p.status(); err != nil || s.Phase != "recovering" {
		t.Errorf("phase %q, %v while the follower stands still, want recovering", s.Phase, err)
	}
	goOn()
	p.streaming()
	p.drained(time.Minute)
	p.stop()
	if report := latter.compare(); report.Events != 200 {
		t.Errorf("%d events, want 200", report.Events)
	}
	latter.kept(doubtful)
}

// kept wants a record just below each of ends: what was in doubt stands.
func (r *rig) kept(ends map[int32]int64) {
	r.tb.Helper()
	events, _, err := audit.ReadTopic(r.tb.Context(), r.brokers, r.topics[0])
	if err != nil {
		r.tb.Fatal(err)
	}
	at := map[[2]int64]bool{}
	for i := range events {
		at[[2]int64{int64(events[i].Partition), events[i].Offset}] = true
	}
	for p, end := range ends {
		if !at[[2]int64{int64(p), end - 1}] {
			r.tb.Errorf("partition %d: no event at offset %d, where one was in doubt", p, end-1)
		}
	}
}

// What a broker is asked for as the end of a partition.
const (
	visibleEnd = -1 // a consumer's: the high watermark
	logEnd     = -2 // that of a replica for debugging: all that the leader has
)

// ends are those of all partitions of the events topic.
func (r *rig) ends(client *kgo.Client, which int32) map[int32]int64 {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(r.tb.Context(), time.Minute)
	defer cancel()
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = which
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic = r.topics[0]
	for i := range int32(partitions) {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = i, -1
		topic.Partitions = append(topic.Partitions, p)
	}
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(ctx, client)
	if err != nil {
		r.tb.Fatal(err)
	}
	ends := map[int32]int64{}
	for _, p := range res.Topics[0].Partitions {
		if p.ErrorCode != 0 {
			r.tb.Fatalf("end of partition %d: code %d", p.Partition, p.ErrorCode)
		}
		ends[p.Partition] = p.Offset
	}
	return ends
}

// coordinator is the node that has the transactional id of the slot's name.
func (r *rig) coordinator(client *kgo.Client) int {
	r.tb.Helper()
	found := kadm.NewClient(client).FindTxnCoordinators(r.tb.Context(), r.slot())
	if err := found.Error(); err != nil {
		r.tb.Fatal(err)
	}
	return int(found[r.slot()].NodeID) - 1
}

// onlyFollows takes the lead of every partition of both topics from a node.
func (r *rig) onlyFollows(client *kgo.Client, node int) {
	r.tb.Helper()
	ctx, admin := r.tb.Context(), kadm.NewClient(client)
	id := int32(node + 1)
	others := slices.DeleteFunc([]int32{1, 2, 3}, func(b int32) bool { return b == id })
	var order kadm.AlterPartitionAssignmentsReq
	for _, topic := range r.topics {
		for p := range int32(partitions) {
			order.Assign(topic, p, []int32{others[p%2], others[1-p%2], id})
		}
	}
	done, err := admin.AlterPartitionAssignments(ctx, order)
	if err == nil {
		err = done.Error()
	}
	if err != nil {
		r.tb.Fatal(err)
	}
	testenv.Eventually(r.tb, time.Minute, func() error {
		if _, err := admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, nil); err != nil {
			return err
		}
		topics, err := admin.ListTopics(ctx, r.topics[:]...)
		if err != nil {
			return err
		}
		topics.EachPartition(func(p kadm.PartitionDetail) {
			if p.Leader == id {
				err = fmt.Errorf("node %d leads partition %d of %s", node, p.Partition, p.Topic)
			}
		})
		return err
	})
}
