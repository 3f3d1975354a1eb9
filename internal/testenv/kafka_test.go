package testenv_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"backstory/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// client closes its connections when the test ends.
func client(t *testing.T, brokers []string, tlsConfig *tls.Config, mechanism sasl.Mechanism) *kafka.Client {
	t.Helper()
	transport := &kafka.Transport{TLS: tlsConfig, SASL: mechanism, DialTimeout: 2 * time.Second}
	t.Cleanup(transport.CloseIdleConnections)
	return &kafka.Client{Addr: kafka.TCP(brokers...), Transport: transport, Timeout: 5 * time.Second}
}

func createTopic(t *testing.T, c *kafka.Client, name string, replicas int) {
	t.Helper()
	resp, err := c.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: name, NumPartitions: 1, ReplicationFactor: replicas}},
	})
	if err == nil {
		err = resp.Errors[name]
	}
	if err != nil {
		t.Fatalf("create topic: %v", err)
	}
}

// produce appends a record and returns its offset.
func produce(ctx context.Context, c *kafka.Client, topic, value string) (int64, error) {
	resp, err := c.Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte(value))}),
	})
	if err != nil {
		return 0, err
	}
	return resp.BaseOffset, resp.Error
}

func produceEventually(t *testing.T, c *kafka.Client, topic, value string) {
	t.Helper()
	testenv.Eventually(t, 60*time.Second, func() error {
		_, err := produce(t.Context(), c, topic, value)
		return err
	})
}

func TestKafkaShared(t *testing.T) {
	t.Parallel()
	a, b := testenv.Kafka(t), testenv.Kafka(t)
	if a != b {
		t.Error("got two clusters, want one that the tests share")
	}
	c := client(t, a.Brokers(), nil, nil)
	topic := a.Name("events")
	createTopic(t, c, topic, 1)
	produceEventually(t, c, topic, "first")
	resp, err := c.Fetch(t.Context(), &kafka.FetchRequest{Topic: topic, MaxBytes: 1 << 20, MaxWait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := resp.Records.ReadRecord()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(rec.Value); string(got) != "first" || err != nil {
		t.Errorf("got %q, %v, want first", got, err)
	}
}

func TestKafkaKill9AndRestart(t *testing.T) {
	t.Parallel()
	k := testenv.Kafka(t, testenv.KafkaPrivate())
	c := client(t, k.Brokers(), nil, nil)
	topic := k.Name("events")
	createTopic(t, c, topic, 1)
	produceEventually(t, c, topic, "before")
	k.Kill9(t, 0)
	if _, err := produce(t.Context(), c, topic, "nobody"); err == nil {
		t.Error("a killed broker acknowledged a record")
	}
	k.Restart(t, 0)
	testenv.Eventually(t, 60*time.Second, func() error {
		resp, err := c.ListOffsets(t.Context(), &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: {kafka.LastOffsetOf(0)}}})
		if err != nil {
			return err
		}
		if p := resp.Topics[topic][0]; p.Error != nil || p.LastOffset < 1 {
			return fmt.Errorf("end %d, %w", p.LastOffset, p.Error)
		}
		return nil
	})
}

func TestKafkaStopAndCont(t *testing.T) {
	t.Parallel()
	k := testenv.Kafka(t, testenv.KafkaPrivate())
	c := client(t, k.Brokers(), nil, nil)
	topic := k.Name("events")
	createTopic(t, c, topic, 1)
	produceEventually(t, c, topic, "before")
	k.Stop(t, 0)
	testenv.Eventually(t, 60*time.Second, func() error { // on a busy machine its threads take a moment to stop
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := produce(ctx, c, topic, "nobody")
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("got %w of a frozen broker, want the deadline, be it of the context or of its connection", err)
		}
		return nil
	})
	k.Cont(t, 0)
	produceEventually(t, c, topic, "after")
}

func TestKafkaThreeBrokers(t *testing.T) {
	t.Parallel()
	k := testenv.Kafka(t, testenv.KafkaBrokers(3))
	c := client(t, k.Brokers(), nil, nil)
	topic := k.Name("events")
	createTopic(t, c, topic, 3)
	produceEventually(t, c, topic, "three")
	k.Kill9(t, 2)
	produceEventually(t, c, topic, "two")
	k.Restart(t, 2)
}

func TestKafkaProxied(t *testing.T) {
	t.Parallel()
	k := testenv.Kafka(t, testenv.KafkaProxied())
	c := client(t, k.Brokers(), nil, nil)
	topic := k.Name("events")
	createTopic(t, c, topic, 1)
	produceEventually(t, c, topic, "before")
	k.Proxy(0).Cut()
	if _, err := produce(t.Context(), c, topic, "nobody"); err == nil {
		t.Error("a record went through a cut proxy")
	}
	inside := client(t, k.Internal(), nil, nil)
	if _, err := inside.Metadata(t.Context(), &kafka.MetadataRequest{}); err != nil {
		t.Errorf("the internal listener was cut too: %v", err)
	}
	k.Proxy(0).Heal(t)
	produceEventually(t, c, topic, "after")
}

func TestKafkaSecured(t *testing.T) {
	t.Parallel()
	k := testenv.Kafka(t, testenv.KafkaTLS(true), testenv.KafkaACLs(),
		testenv.KafkaSASL("PLAIN", "ann", "secret1"), testenv.KafkaSASL("SCRAM-SHA-256", "bob", "secret2"),
		testenv.KafkaSASL("SCRAM-SHA-512", "eve", "secret3"))
	config, err := k.Security().TLS()
	if err != nil {
		t.Fatal(err)
	}
	mechanism := func(algorithm scram.Algorithm, user, password string) sasl.Mechanism {
		m, err := scram.Mechanism(algorithm, user, password)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	anonymous := config.Clone()
	anonymous.Certificates = nil
	tests := []struct {
		name string
		tls  *tls.Config
		sasl sasl.Mechanism
		ok   bool
	}{
		{name: "plain", tls: config, sasl: plain.Mechanism{Username: "ann", Password: "secret1"}, ok: true},
		{name: "scram 256", tls: config, sasl: mechanism(scram.SHA256, "bob", "secret2"), ok: true},
		{name: "scram 512", tls: config, sasl: mechanism(scram.SHA512, "eve", "secret3"), ok: true},
		{name: "wrong password", tls: config, sasl: mechanism(scram.SHA512, "eve", "wrong")},
		{name: "no client certificate", tls: anonymous, sasl: plain.Mechanism{Username: "ann", Password: "secret1"}},
		{name: "no TLS", sasl: plain.Mechanism{Username: "ann", Password: "secret1"}},
	}
	createTopic(t, client(t, k.Internal(), nil, nil), k.Name("events"), 1) // the superuser may
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := client(t, k.SecuredBrokers(), tt.tls, tt.sasl)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if _, err := c.Metadata(ctx, &kafka.MetadataRequest{}); (err == nil) != tt.ok {
				t.Fatalf("got error %v, want success %t", err, tt.ok)
			}
			if !tt.ok {
				return
			}
			name := k.Name("forbidden")
			resp, err := c.CreateTopics(ctx, &kafka.CreateTopicsRequest{
				Topics: []kafka.TopicConfig{{Topic: name, NumPartitions: 1, ReplicationFactor: 1}},
			})
			if err != nil || !errors.Is(resp.Errors[name], kafka.TopicAuthorizationFailed) {
				t.Errorf("got %v, %v of a topic that no ACL allows, want TopicAuthorizationFailed", resp, err)
			}
		})
	}
}
