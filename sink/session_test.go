package sink_test

import (
	"errors"
	"strings"
	"testing"

	"backstory/internal/testenv"
	"backstory/sink"
)

// restarts reports whether err asks the bridge to take the slot again.
func restarts(err error) bool {
	var r interface{ Restart() bool }
	return errors.As(err, &r) && r.Restart()
}

func isRefused(err error) bool {
	var r interface{ Refused() bool }
	return errors.As(err, &r) && r.Refused()
}

// TestFenceEndsFormerSession has a former instance go on writing after a new one
// has fenced: to partitions that it wrote before, and to others that nobody did.
func TestFenceEndsFormerSession(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("zombie")
	m := shop(name, 6)
	former := fenced(t, config(cluster.Brokers()), m, name)
	mk := newMaker(m)
	publish(t, former, mk.change("a", "PriceChanged"))

	fenced(t, config(cluster.Brokers()), m, name)
	for _, key := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} { // all six partitions
		pub, err := former.Encode(mk.change(key, "PriceChanged"))
		if err == nil {
			err = pub.Events(within(t))
		}
		if !restarts(err) {
			t.Fatalf("publish %s with a fenced session: got %v, want a SessionError", key, err)
		}
		former.Revive()
	}
	if got, want := story(consume(t, cluster.Brokers(), name+".events")), "a/1 "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestRenew goes on in its own session, and ends when another has fenced.
func TestRenew(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("renew")
	m := shop(name, 2)
	one := fenced(t, config(cluster.Brokers()), m, name)
	mk := newMaker(m)
	for range 3 {
		publish(t, one, mk.many(10))
		if err := one.Renew(within(t)); err != nil {
			t.Fatalf("renew: %v", err)
		}
	}
	publish(t, one, mk.many(10))

	two := fenced(t, config(cluster.Brokers()), m, name)
	if err := one.Renew(within(t)); !restarts(err) {
		t.Errorf("renew of a fenced session: got %v, want a SessionError", err)
	}
	publish(t, two, mk.many(10))
	if n := len(consume(t, cluster.Brokers(), name+".events")); n != 50 {
		t.Errorf("got %d events, want 50", n)
	}
}

// TestBarrier ends a former session that had another producer id, as after the
// cluster has forgotten the transactional id.
func TestBarrier(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("barrier")
	m := shop(name, 2)
	cfg := config(cluster.Brokers())
	cfg.TransactionalID = name + "-old"
	former := fenced(t, cfg, m, name)
	mk := newMaker(m)
	publish(t, former, mk.change("a", "PriceChanged"))

	cfg.TransactionalID = name + "-new"
	latter := fenced(t, cfg, m, name)
	for _, key := range []string{"a", "b", "c", "d"} {
		if _, err := tryPublish(within(t), former, mk.change(key, "PriceChanged")); !restarts(err) {
			t.Fatalf("publish %s with the former id: got %v, want a SessionError", key, err)
		}
		former.Revive()
	}
	publish(t, latter, mk.change("z", "PriceChanged"))
	if got, want := len(consumeEvents(t, cluster.Brokers(), name+".events")), 2; got != want {
		t.Errorf("got %d events, want %d", got, want)
	}
}

// TestAnotherWriter notices a record that the session has not written.
func TestAnotherWriter(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("writer")
	m := shop(name, 1)
	p := fenced(t, config(cluster.Brokers()), m, name)
	mk := newMaker(m)
	publish(t, p, mk.many(3))
	intrude(t, cluster.Brokers(), name+".events")
	_, err := tryPublish(within(t), p, mk.many(3))
	if !isRefused(err) {
		t.Fatalf("publish behind another writer: got %v, want a Refusal", err)
	}
	if _, err := p.Encode(mk.many(1)); !restarts(err) {
		t.Errorf("encode after it: got %v, want a SessionError", err)
	}
}

// TestOpenWrongTopics refuses topics that would lose what they are for.
func TestOpenWrongTopics(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	tests := []struct {
		name   string
		events map[string]string
		latest map[string]string
		parts  int32 // of latest
		ok     bool
	}{
		{name: "right", parts: 2, ok: true},
		{name: "compacted events", events: map[string]string{"cleanup.policy": "compact"}, parts: 2},
		{name: "events that expire", events: map[string]string{"retention.ms": "86400000"}, parts: 2},
		{name: "events by size", events: map[string]string{"retention.bytes": "1000000"}, parts: 2},
		{name: "log append time", events: map[string]string{"message.timestamp.type": "LogAppendTime"}, parts: 2},
		{name: "latest that deletes", latest: map[string]string{"cleanup.policy": "compact,delete"}, parts: 2},
		{name: "tombstones that expire", latest: map[string]string{"delete.retention.ms": "86400000"}, parts: 2},
		{name: "too many in-sync replicas", latest: map[string]string{"min.insync.replicas": "2"}, parts: 2},
		{name: "different partitions", parts: 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name := cluster.Name("wrong")
			createTopic(t, cluster.Brokers(), name+".events", 2, map[string]string{"retention.ms": "-1"}, tt.events)
			createTopic(t, cluster.Brokers(), name+".latest", tt.parts,
				map[string]string{"cleanup.policy": "compact", "delete.retention.ms": "3155760000000"}, tt.latest)
			m := shop(name, 2)
			p, err := sink.Open(within(t), config(cluster.Brokers()), m, identity, name, quiet(), registry())
			if err == nil {
				t.Cleanup(func() { _ = p.Close() })
			}
			if tt.ok && err != nil || !tt.ok && !isRefused(err) {
				t.Errorf("got %v, want ok %v", err, tt.ok)
			}
		})
	}
}

// TestOpenMissingTopics says how to make them.
func TestOpenMissingTopics(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("missing")
	cfg := config(cluster.Brokers())
	cfg.CreateTopics = false
	_, err := sink.Open(within(t), cfg, shop(name, 2), identity, name, quiet(), registry())
	var refusal *sink.Refusal
	if !errors.As(err, &refusal) {
		t.Fatalf("got %v, want a Refusal", err)
	}
	if want := "kafka-topics --create --topic " + name + ".events --partitions 2"; !strings.Contains(refusal.Cure, want) {
		t.Errorf("got the cure %q, want %q in it", refusal.Cure, want)
	}
}
