package sink_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"backstory/internal/testenv"
	"backstory/sink"
)

// The keys of the requests that are answered with errors here.
const (
	produceKey      = 0
	initProducerKey = 22
	addToTxnKey     = 24
	endTxnKey       = 26
)

// ending is what an error comes to.
type ending string

const (
	goesOn  ending = "goes on"
	restart ending = "restart"
	refused ending = "refused"
	givesUp ending = "gives up" // neither: a broker that breaks the protocol
	waiting ending = "waits"    // until ctx is done
)

func endingOf(err error) ending {
	switch {
	case err == nil:
		return goesOn
	case restarts(err):
		return restart
	case isRefused(err):
		return refused
	case errors.Is(err, context.DeadlineExceeded):
		return waiting
	}
	return givesUp
}

// answers makes a fake broker answer the first times requests of a key with a
// code, without doing what they ask for. It returns the record batches of all
// produce requests, as they came.
func answers(fake *kfake.Cluster, key, code int16, times int) func() [][]byte {
	var mu sync.Mutex
	var batches [][]byte
	fake.ControlKey(key, func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		if p, ok := req.(*kmsg.ProduceRequest); ok {
			for _, t := range p.Topics {
				for _, part := range t.Partitions {
					batches = append(batches, bytes.Clone(part.Records))
				}
			}
		}
		if times--; times < 0 {
			return nil, nil, false
		}
		return answerWith(req, code), nil, true
	})
	return func() [][]byte {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(batches)
	}
}

// answerWith is the answer to a request with the code in every place that has one.
func answerWith(req kmsg.Request, code int16) kmsg.Response {
	res := req.ResponseKind()
	switch q := req.(type) {
	case *kmsg.ProduceRequest:
		r := res.(*kmsg.ProduceResponse)
		for _, t := range q.Topics {
			topic := kmsg.NewProduceResponseTopic()
			topic.Topic = t.Topic
			for _, p := range t.Partitions {
				part := kmsg.NewProduceResponseTopicPartition()
				part.Partition, part.ErrorCode, part.BaseOffset = p.Partition, code, -1
				topic.Partitions = append(topic.Partitions, part)
			}
			r.Topics = append(r.Topics, topic)
		}
	case *kmsg.InitProducerIDRequest:
		r := res.(*kmsg.InitProducerIDResponse)
		r.ErrorCode, r.ProducerID, r.ProducerEpoch = code, -1, -1
	case *kmsg.AddPartitionsToTxnRequest:
		r := res.(*kmsg.AddPartitionsToTxnResponse)
		for _, t := range q.Topics {
			topic := kmsg.NewAddPartitionsToTxnResponseTopic()
			topic.Topic = t.Topic
			for _, p := range t.Partitions {
				part := kmsg.NewAddPartitionsToTxnResponseTopicPartition()
				part.Partition, part.ErrorCode = p, code
				topic.Partitions = append(topic.Partitions, part)
			}
			r.Topics = append(r.Topics, topic)
		}
	case *kmsg.EndTxnRequest:
		res.(*kmsg.EndTxnResponse).ErrorCode = code
	}
	return res
}

// codes returns the named codes; a name is that of the Kafka protocol.
func codes(errs ...*kerr.Error) []int16 {
	var out []int16
	for _, e := range errs {
		out = append(out, e.Code)
	}
	return out
}

// TestProduceAnswers has a produce request answered with each error of the
// protocol that matters. What is sent again are the same bytes.
func TestProduceAnswers(t *testing.T) {
	t.Parallel()
	tests := map[ending][]int16{
		goesOn: codes(kerr.UnknownTopicOrPartition, kerr.LeaderNotAvailable, kerr.NotLeaderForPartition,
			kerr.RequestTimedOut, kerr.BrokerNotAvailable, kerr.ReplicaNotAvailable, kerr.NetworkException,
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator,
			kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.KafkaStorageError,
			kerr.FencedLeaderEpoch, kerr.UnknownLeaderEpoch, kerr.ThrottlingQuotaExceeded),
		restart: codes(kerr.OutOfOrderSequenceNumber, kerr.InvalidProducerEpoch, kerr.UnknownProducerID,
			kerr.ProducerFenced, kerr.InvalidProducerIDMapping),
		refused: codes(kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.TopicAuthorizationFailed,
			kerr.ClusterAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed, kerr.InvalidTimestamp,
			kerr.InvalidRecord, kerr.UnsupportedCompressionType, kerr.PolicyViolation),
		givesUp: codes(kerr.UnknownServerError, kerr.CorruptMessage, kerr.UnsupportedVersion, kerr.InvalidRequiredAcks),
	}
	for want, list := range tests {
		for _, code := range list {
			t.Run(kerr.TypedErrorForCode(code).Message, func(t *testing.T) {
				t.Parallel()
				fake := testenv.KFake(t)
				m := shop("produce", 1)
				p := fenced(t, config(fake.ListenAddrs()), m, "produce")
				mk := newMaker(m).recent()
				publish(t, p, mk.change("before", "PriceChanged"))
				sent := answers(fake, produceKey, code, 2)
				_, err := tryPublish(within(t), p, mk.change("the-key", "PriceChanged"))
				if got := endingOf(err); got != want {
					t.Fatalf("code %d: got %q (%v), want %q", code, got, err, want)
				}
				batches := sent()
				if want != goesOn {
					if len(batches) != 1 {
						t.Errorf("it was sent %d times, want once", len(batches))
					}
					if want == refused && (!strings.Contains(err.Error(), "the-key") || !strings.Contains(err.Error(), "; ")) {
						t.Errorf("%q names no key or no cure", err)
					}
					if got, want := story(consume(t, fake.ListenAddrs(), "produce.events")), "before/1 "; got != want {
						t.Errorf("got %q, want %q", got, want)
					}
					return
				}
				if len(batches) != 4 || !bytes.Equal(batches[0], batches[1]) || !bytes.Equal(batches[0], batches[2]) {
					t.Errorf("it was sent %d times, want thrice with the same bytes, and latest once", len(batches))
				}
				if got, want := story(consume(t, fake.ListenAddrs(), "produce.events")), "before/1 the-key/1 "; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

// TestDoubtfulAndOld ends the session where a batch may or may not stand in the
// log, and is so old that the broker may have forgotten its producer.
func TestDoubtfulAndOld(t *testing.T) {
	t.Parallel()
	for _, code := range codes(kerr.RequestTimedOut, kerr.NetworkException, kerr.NotEnoughReplicasAfterAppend) {
		fake := testenv.KFake(t)
		m := shop("old", 1)
		p := fenced(t, config(fake.ListenAddrs()), m, "old")
		sent := answers(fake, produceKey, code, 1)
		mk := newMaker(m)
		mk.clock = time.Now().Add(-13 * time.Hour).UnixMicro()
		if _, err := tryPublish(within(t), p, mk.many(1)); !restarts(err) || len(sent()) != 1 {
			t.Errorf("code %d: got %v after %d requests, want a SessionError after one", code, err, len(sent()))
		}
	}
}

// TestFenceAnswers has each request of the fence answered with errors.
func TestFenceAnswers(t *testing.T) {
	t.Parallel()
	again := codes(kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.ConcurrentTransactions, kerr.RequestTimedOut)
	over := codes(kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidProducerIDMapping, kerr.TransactionCoordinatorFenced)
	denied := codes(kerr.TransactionalIDAuthorizationFailed, kerr.ClusterAuthorizationFailed)
	tests := []struct {
		name  string
		key   int16
		codes map[ending][]int16
	}{
		{"init producer id", initProducerKey, map[ending][]int16{goesOn: again, restart: over, refused: denied, givesUp: codes(kerr.InvalidRequest)}},
		{"add partitions", addToTxnKey, map[ending][]int16{
			goesOn: append(codes(kerr.UnknownTopicOrPartition, kerr.OperationNotAttempted), again...), restart: append(codes(kerr.InvalidTxnState), over...),
			refused: append(codes(kerr.TopicAuthorizationFailed), denied...), givesUp: codes(kerr.InvalidRequest),
		}},
		{"end transaction", endTxnKey, map[ending][]int16{goesOn: again, restart: append(codes(kerr.InvalidTxnState), over...), refused: denied}},
	}
	for _, tt := range tests {
		for want, list := range tt.codes {
			for _, code := range list {
				t.Run(fmt.Sprintf("%s/%s", tt.name, kerr.TypedErrorForCode(code).Message), func(t *testing.T) {
					t.Parallel()
					fake := testenv.KFake(t)
					m := shop("fence", 2)
					p := open(t, config(fake.ListenAddrs()), m, "fence")
					answers(fake, tt.key, code, 2)
					err := p.Fence(within(t))
					if got := endingOf(err); got != want {
						t.Fatalf("code %d: got %q (%v), want %q", code, got, err, want)
					}
					mk := newMaker(m)
					if want == goesOn {
						publish(t, p, mk.many(10))
					} else if _, err := p.Encode(mk.many(1)); !restarts(err) {
						t.Errorf("encode without a fence: got %v, want a SessionError", err)
					}
				})
			}
		}
	}
}

// TestTopicMadeAnew deletes the topic of a session and makes it anew: the session's
// sequence is accepted there, and only the offset tells.
func TestTopicMadeAnew(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("anew")
	m := shop(name, 1)
	p := fenced(t, config(cluster.Brokers()), m, name)
	mk := newMaker(m)
	publish(t, p, mk.many(3))
	deleteTopic(t, cluster.Brokers(), name+".events")
	createTopic(t, cluster.Brokers(), name+".events", 1, map[string]string{"retention.ms": "-1"})
	_, err := tryPublish(within(t), p, mk.many(3))
	if !isRefused(err) || !strings.Contains(err.Error(), "at offset 0 instead of ") {
		t.Errorf("got %v, want a Refusal that names the offsets", err)
	}
}

// TestTopicDeleted waits for a topic that is unknown for a while, and refuses one
// that does not come back.
func TestTopicDeleted(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("deleted")
	m := shop(name, 1)
	p := fenced(t, config(cluster.Brokers()), m, name)
	p.Patience(2 * time.Second)
	mk := newMaker(m)
	publish(t, p, mk.many(3))
	deleteTopic(t, cluster.Brokers(), name+".events")
	if _, err := tryPublish(within(t), p, mk.many(3)); !isRefused(err) || !strings.Contains(err.Error(), name+".events") {
		t.Errorf("got %v, want a Refusal that names the topic", err)
	}
}

// TestInspect finds what Open would, and makes nothing.
func TestInspect(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("inspect")
	m := shop(name, 2)
	cfg := config(cluster.Brokers())
	for range 2 { // the first look makes nothing
		missing, err := sink.Inspect(within(t), cfg, m, identity, name, quiet())
		if err != nil || len(missing) != 2 {
			t.Errorf("got %v, %v, want both topics missing", missing, err)
		}
	}
	createTopic(t, cluster.Brokers(), name+".events", 2, map[string]string{"cleanup.policy": "compact", "retention.ms": "-1"})
	missing, err := sink.Inspect(within(t), cfg, m, identity, name, quiet())
	if !isRefused(err) || !strings.Contains(err.Error(), "cleanup.policy=delete") || len(missing) != 1 {
		t.Errorf("got %v, %v, want latest missing and a Refusal of events", missing, err)
	}
	alterTopic(t, cluster.Brokers(), name+".events", "cleanup.policy", "delete")
	open(t, cfg, m, name)
	if missing, err := sink.Inspect(within(t), cfg, m, identity, name, quiet()); err != nil || len(missing) != 0 {
		t.Errorf("got %v, %v, want all well", missing, err)
	}
}

// TestOpenUnreachable says what held it up.
func TestOpenUnreachable(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := sink.Open(ctx, config([]string{"127.0.0.1:1"}), shop("none", 1), identity, "none", quiet(), registry())
	if got := endingOf(err); got != waiting || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("got %v, want the deadline and the broker in it", err)
	}
}
