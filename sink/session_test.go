package sink_test

import (
	"errors"
	"fmt"
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
// has fenced: to partitions of both topics that it wrote before, and to others that
// nobody did.
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
		pub, err = former.EncodeState(mk.change(key, "PriceChanged"), make([]int64, 6))
		if err == nil {
			err = pub.Latest(within(t))
		}
		if !restarts(err) {
			t.Fatalf("publish the state of %s with a fenced session: got %v, want a SessionError", key, err)
		}
		former.Revive()
	}
	for _, topic := range []string{".events", ".latest"} {
		if got, want := story(consume(t, cluster.Brokers(), name+topic)), "a/1 "; got != want {
			t.Errorf("%s: got %q, want %q", topic, got, want)
		}
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

// TestOpenWrongTopics refuses topics that would lose what they are for, with the
// command that mends them, after which they are right.
func TestOpenWrongTopics(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	tests := []struct {
		name   string
		topic  string // "events", "latest" or "dead"
		wrong  [2]string
		mended string
	}{
		{"compacted events", "events", [2]string{"cleanup.policy", "compact"}, "delete"},
		{"events that expire", "events", [2]string{"retention.ms", "86400000"}, "-1"},
		{"events by size", "events", [2]string{"retention.bytes", "1000000"}, "-1"},
		{"log append time", "events", [2]string{"message.timestamp.type", "LogAppendTime"}, "CreateTime"},
		{"log append time of latest", "latest", [2]string{"message.timestamp.type", "LogAppendTime"}, "CreateTime"},
		{"latest that deletes", "latest", [2]string{"cleanup.policy", "compact,delete"}, "compact"},
		{"latest that keeps all", "latest", [2]string{"cleanup.policy", "delete"}, "compact"},
		{"tombstones that expire", "latest", [2]string{"delete.retention.ms", "86400000"}, "3155760000000"},
		{"too many in-sync replicas", "latest", [2]string{"min.insync.replicas", "2"}, "1"},
		{"no room for an event", "events", [2]string{"max.message.bytes", "100"}, "10485760"},
		{"dead letters that expire", "dead", [2]string{"retention.ms", "86400000"}, "-1"},
		{"compacted dead letters", "dead", [2]string{"cleanup.policy", "compact"}, "delete"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name := cluster.Name("wrong")
			settings := map[string]map[string]string{
				"events": {"retention.ms": "-1"}, "dead": {"retention.ms": "-1"},
				"latest": {"cleanup.policy": "compact", "delete.retention.ms": "3155760000000"},
			}
			settings[tt.topic][tt.wrong[0]] = tt.wrong[1]
			for topic, s := range settings {
				createTopic(t, cluster.Brokers(), name+"."+topic, 2, s)
			}
			cfg := config(cluster.Brokers())
			cfg.DeadLetterTopic = name + ".dead"
			_, err := sink.Open(within(t), cfg, shop(name, 2), identity, name, quiet(), registry())
			want := fmt.Sprintf("kafka-configs --alter --topic %s.%s --add-config %s=%s", name, tt.topic, tt.wrong[0], tt.mended)
			if !isRefused(err) || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "kafka-configs") != 1 {
				t.Fatalf("got %v, want a Refusal with the command %s alone", err, want)
			}
			alterTopic(t, cluster.Brokers(), name+"."+tt.topic, tt.wrong[0], tt.mended)
			open(t, cfg, shop(name, 2), name)
		})
	}
}

// TestOpenWrongPartitions refuses topics whose partitions do not fit.
func TestOpenWrongPartitions(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	compacted := map[string]string{"cleanup.policy": "compact", "delete.retention.ms": "3155760000000"}
	for _, tt := range []struct {
		name           string
		mapping        int32 // 0: says nothing
		events, latest int32
		want           string
	}{
		{"more in latest", 0, 2, 3, "has 3 partitions, and topic "},
		{"fewer in latest", 0, 3, 1, "has 1 partitions, and topic "},
		{"not as the mapping says", 4, 2, 2, "has 2 partitions, and the mapping of public.products says 4"},
		{"equal", 0, 5, 5, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name := cluster.Name("parts")
			createTopic(t, cluster.Brokers(), name+".events", tt.events, map[string]string{"retention.ms": "-1"})
			createTopic(t, cluster.Brokers(), name+".latest", tt.latest, compacted)
			p, err := sink.Open(within(t), config(cluster.Brokers()), shop(name, tt.mapping), identity, name, quiet(), registry())
			if err == nil {
				t.Cleanup(func() { _ = p.Close() })
			}
			if tt.want == "" && err != nil || tt.want != "" && (!isRefused(err) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestOpenTellsAll names every wrong topic at once.
func TestOpenTellsAll(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("all")
	createTopic(t, cluster.Brokers(), name+".events", 2, map[string]string{"cleanup.policy": "compact", "retention.ms": "1000"})
	createTopic(t, cluster.Brokers(), name+".latest", 3, map[string]string{"cleanup.policy": "delete"})
	_, err := sink.Open(within(t), config(cluster.Brokers()), shop(name, 2), identity, name, quiet(), registry())
	if !isRefused(err) {
		t.Fatalf("got %v, want a Refusal", err)
	}
	for _, part := range []string{"events --add-config cleanup.policy=delete", "events --add-config retention.ms=-1",
		"latest --add-config cleanup.policy=compact", "latest --add-config delete.retention.ms=", "3 partitions"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

// TestCreatedTopics have the settings that everything else relies on.
func TestCreatedTopics(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("made")
	m := shop(name, 3)
	cfg := config(cluster.Brokers())
	cfg.DeadLetterTopic = name + ".dead"
	open(t, cfg, m, name)
	open(t, cfg, m, name) // what it made is right for it
	common := map[string]string{
		"message.timestamp.type": "CreateTime", "message.timestamp.after.max.ms": "9223372036854775807",
		"unclean.leader.election.enable": "false", "min.insync.replicas": "1",
	}
	for topic, want := range map[string]map[string]string{
		"events": {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "max.message.bytes": "10485760"},
		"latest": {"cleanup.policy": "compact", "delete.retention.ms": "3155760000000", "segment.bytes": "134217728", "max.message.bytes": "10485760"},
		"dead":   {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "max.message.bytes": "100000000"},
	} {
		got := settingsOf(t, cluster.Brokers(), name+"."+topic)
		for _, s := range []map[string]string{common, want} {
			for k, v := range s {
				if got[k] != v {
					t.Errorf("topic %s: %s is %s, want %s", topic, k, got[k], v)
				}
			}
		}
	}
	collides := shop(name, 3)
	collides.Tables[0].Topics.Events = strings.ReplaceAll(name+".events", ".", "_")
	_, err := sink.Open(within(t), config(cluster.Brokers()), collides, identity, name, quiet(), registry())
	if !isRefused(err) || !strings.Contains(err.Error(), "choose another name") {
		t.Errorf("a name that collides: got %v, want a Refusal", err)
	}
	many := shop(cluster.Name("many"), 1)
	many.Tables[0].Topics.Replication = 7
	_, err = sink.Open(within(t), config(cluster.Brokers()), many, identity, name, quiet(), registry())
	if !isRefused(err) || !strings.Contains(err.Error(), "topics.replication") {
		t.Errorf("more replicas than brokers: got %v, want a Refusal", err)
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
