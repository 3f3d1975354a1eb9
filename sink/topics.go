package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/createtopics"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"

	"backstory/transform"
)

// Settings of topics that are made here.
const (
	forEverMillis = "9223372036854775807"
	// keepTombstones, in milliseconds, is 100 years: the version of a deleted
	// aggregate stands only in its tombstone.
	keepTombstones = 3_155_760_000_000
	latestSegment  = 128 << 20
	// createdLimit is max.message.bytes: ten times Kafka's default, because rows
	// with large columns are usual in the databases that the bridge is for.
	createdLimit = 10 << 20
	// createdDeadLimit is that of the dead-letter topic: what a request can carry.
	createdDeadLimit = maxRequest
)

const fewerReplicas = "set topics.replication in the mapping to at most the number of brokers"

// setting is one configuration entry of a topic.
type setting struct{ name, value string }

// settings are those that the topic is made with.
func (t *topicLog) settings(replication int16) []setting {
	limit := createdLimit
	if t.table == nil {
		limit = createdDeadLimit
	}
	insync := 1
	if replication >= 3 {
		insync = 2
	}
	s := []setting{
		{"message.timestamp.type", "CreateTime"},
		{"message.timestamp.after.max.ms", forEverMillis},
		{"unclean.leader.election.enable", "false"},
		{"max.message.bytes", strconv.Itoa(limit)},
		{"min.insync.replicas", strconv.Itoa(insync)},
	}
	if t.kind == transform.Latest {
		return append(s,
			setting{"cleanup.policy", "compact"},
			setting{"delete.retention.ms", strconv.Itoa(keepTombstones)},
			setting{"segment.bytes", strconv.Itoa(latestSegment)})
	}
	return append(s,
		setting{"cleanup.policy", "delete"},
		setting{"retention.ms", strconv.FormatInt(t.retention(), 10)},
		setting{"retention.bytes", "-1"})
}

// retention is how long the topic is to keep a record, in milliseconds; -1: for ever.
func (t *topicLog) retention() int64 {
	if t.table == nil || t.table.Topics.Retention == 0 {
		return -1
	}
	return t.table.Topics.Retention.Milliseconds()
}

// shape is how many partitions and replicas the mapping asks for, -1: what the
// brokers have as their default.
func (t *topicLog) shape() (partitions int32, replication int16) {
	partitions, replication = -1, -1
	if t.table == nil {
		return 1, -1
	}
	if n := t.table.Topics.Partitions; n > 0 {
		partitions = n
	}
	if n := t.table.Topics.Replication; n > 0 {
		replication = n
	}
	return partitions, replication
}

// prepareTopics makes the topics that are missing, learns their partitions and
// limits, and refuses those that would lose what they are for.
func (p *Producer) prepareTopics(ctx context.Context) error {
	layouts, err := p.findTopics(ctx)
	if err != nil {
		return err
	}
	for i, t := range p.topics {
		t.parts = make([]partition, len(layouts[i].leaders))
		for j := range t.parts {
			t.parts[j] = partition{topic: t, index: int32(j)}
		}
	}
	var wrong []error
	for _, t := range p.topics {
		wrong = append(wrong, p.checkPartitions(ctx, t))
	}
	return p.checkConfigs(ctx, layouts, wrong)
}

// checkConfigs asks for the topics' settings, and adds what they have of wrong to
// what is already known.
func (p *Producer) checkConfigs(ctx context.Context, layouts []layout, wrong []error) error {
	err := p.insist(ctx, "describe the topics", func(ctx context.Context) error {
		res, err := p.client.roundTrip(ctx, nil, p.describeRequest())
		if err != nil {
			return err
		}
		configs, err := p.readConfigs(res.(*describeconfigs.Response))
		for i, t := range p.topics {
			if err != nil {
				break
			}
			t.limit = configs[i].limit
			wrong = append(wrong, t.checkSettings(configs[i], layouts[i].replicas)...)
			p.warnSettings(t, configs[i].values)
		}
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(wrong...)
}

// findTopics returns when every topic is there, of the bridge's own source, and every
// partition has a leader.
func (p *Producer) findTopics(ctx context.Context) ([]layout, error) {
	var layouts []layout
	err := p.insist(ctx, "find the topics", func(ctx context.Context) error {
		var err error
		if layouts, err = p.client.leaders(ctx, p.names...); err != nil {
			return err
		}
		var missing []*topicLog
		for i, t := range p.topics {
			switch l := &layouts[i]; {
			case errors.Is(l.err, kafka.UnknownTopicOrPartition):
				missing = append(missing, t)
			case l.err != nil:
				return t.judge(l.err, "")
			case len(l.leaders) == 0:
				return fmt.Errorf("topic %s: %w", t.name, kafka.LeaderNotAvailable)
			}
			for part, leader := range layouts[i].leaders {
				if leader < 0 {
					return fmt.Errorf("%s: %w", &partition{topic: t, index: int32(part)}, kafka.LeaderNotAvailable)
				}
			}
		}
		if err := p.checkSources(ctx, layouts); err != nil {
			return err // before anything is made
		}
		if len(missing) == 0 {
			return nil
		}
		return p.create(ctx, missing)
	})
	return layouts, err
}

// errCreated asks to look again.
var errCreated = errors.New("the topics were just made")

// create makes topics. Its result is errCreated, or why there are none.
func (p *Producer) create(ctx context.Context, missing []*topicLog) error {
	if !p.cfg.CreateTopics {
		t := missing[0]
		return &Refusal{
			Thing: "topic " + t.name, Problem: fmt.Sprintf("it does not exist (%d of %d are missing), and create_topics is false", len(missing), len(p.topics)),
			Cure: "make it: " + t.createCommand(),
		}
	}
	req := &createtopics.Request{TimeoutMs: int32(p.cfg.RequestTimeout.Milliseconds())}
	for _, t := range missing {
		partitions, replication := t.shape()
		topic := createtopics.RequestTopic{Name: t.name, NumPartitions: partitions, ReplicationFactor: replication}
		for _, s := range t.settings(replication) {
			topic.Configs = append(topic.Configs, createtopics.RequestConfig{Name: s.name, Value: s.value})
		}
		req.Topics = append(req.Topics, topic)
	}
	res, err := p.client.roundTrip(ctx, nil, req)
	if err != nil {
		return fmt.Errorf("create topics: %w", err)
	}
	for _, r := range res.(*createtopics.Response).Topics {
		t := p.byName(r.Name)
		switch code := kafka.Error(r.ErrorCode); {
		case t == nil || code == kafka.TopicAlreadyExists:
		case code == 0:
			p.log.Info("topic created", "topic", r.Name)
		default:
			if err := t.judge(code, r.ErrorMessage); err != nil {
				return err
			}
		}
	}
	return errCreated
}

func (p *Producer) byName(name string) *topicLog {
	for _, t := range p.topics {
		if t.name == name {
			return t
		}
	}
	return nil
}

// judge turns an answer about a topic into an error that lasts, or one to be
// asked again.
func (t *topicLog) judge(err error, detail string) error {
	var code kafka.Error
	if !errors.As(err, &code) {
		return fmt.Errorf("topic %s: %w", t.name, err)
	}
	r := &Refusal{Thing: "topic " + t.name, Problem: "the broker refuses it", Cure: cureOf(int16(code)), Err: err}
	if detail != "" {
		r.Problem += " (" + detail + ")"
	}
	switch code {
	case kafka.InvalidTopic:
		r.Cure = "choose another name: '.' and '_' count as the same in topic names, so a.b and a_b collide"
	case kafka.InvalidReplicationFactor:
		r.Cure = fewerReplicas
	case kafka.InvalidPartitionNumber:
		r.Cure = "set topics.partitions in the mapping to 1 or more"
	case kafka.InvalidConfiguration, kafka.PolicyViolation:
		r.Cure = "make the topic yourself, with the settings that the brokers' policy allows: " + t.createCommand()
	case kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed:
		r.Cure += ", and Create if the topic is not there; or make it: " + t.createCommand()
	default:
		if outcomeOf(int16(code)) != refused {
			return fmt.Errorf("topic %s: %w", t.name, err)
		}
	}
	return r
}

// createCommand is what an operator runs where the bridge may not.
func (t *topicLog) createCommand() string {
	partitions, replication := t.shape()
	cmd := "kafka-topics --create --topic " + t.name
	if partitions > 0 {
		cmd += fmt.Sprintf(" --partitions %d", partitions)
	}
	if replication > 0 {
		cmd += fmt.Sprintf(" --replication-factor %d", replication)
	}
	for _, s := range t.settings(replication) {
		cmd += " --config " + s.name + "=" + s.value
	}
	return cmd
}

// countCure is the way out where a topic has not the partitions that its records
// were written with.
const countCure = "the partitions of a topic in use must stay as many, since its keys would move: restore the topics with the number that they had; " +
	"or give the table new topics in the mapping, move the state directory away and start again, which publishes every row anew"

// checkPartitions compares the number of partitions with the mapping and, for a
// latest topic, with the events topic: a key must have one partition in both.
func (p *Producer) checkPartitions(ctx context.Context, t *topicLog) error {
	if t.table == nil {
		return nil
	}
	have := len(t.parts)
	if want, _ := t.shape(); want > 0 && have != int(want) {
		return p.wrongCount(ctx, t, fmt.Sprintf("the mapping of %s says %d", t.table, want))
	}
	if events := p.topicOf(t.table, transform.Events); have != len(events.parts) {
		return p.wrongCount(ctx, t, fmt.Sprintf("topic %s has %d", events.name, len(events.parts)))
	}
	return nil
}

// wrongCount refuses a topic with a number of partitions that does not fit. Only
// where nothing was ever written to it is the number one that can be chosen.
func (p *Producer) wrongCount(ctx context.Context, t *topicLog, other string) error {
	r := &Refusal{
		Thing:   "topic " + t.name,
		Problem: fmt.Sprintf("it has %d partitions, and %s", len(t.parts), other),
		Cure:    "put topics.partitions of the mapping back if it was changed; otherwise " + countCure,
	}
	ends, err := p.reader.offsets(ctx, newCursors(t.name, len(t.parts), t.table, t.kind, nil), atEnd)
	switch {
	case err != nil:
		return errors.Join(r, err)
	case slices.Max(ends) == 0:
		r.Cure = "nothing was ever written to it: delete it and make it with as many partitions as the mapping says; " +
			"if the other topic of the table is unused as well, topics.partitions of the mapping can be set to the number that both have"
	}
	return r
}

const resourceTopic = 2

func (p *Producer) describeRequest() *describeconfigs.Request {
	req := &describeconfigs.Request{}
	for _, name := range p.names {
		req.Resources = append(req.Resources, describeconfigs.RequestResource{ResourceType: resourceTopic, ResourceName: name})
	}
	return req
}

// topicConfig are the settings of a topic as the brokers have them.
type topicConfig struct {
	values map[string]string
	limit  int // max.message.bytes
}

// readConfigs returns the settings of every topic, in their order. The error is that
// of an answer which is none.
func (p *Producer) readConfigs(res *describeconfigs.Response) ([]topicConfig, error) {
	configs := make([]topicConfig, len(p.topics))
	seen := 0
	for _, r := range res.Resources {
		t := p.byName(r.ResourceName)
		if t == nil {
			continue
		}
		if r.ErrorCode != 0 {
			return nil, t.judge(kafka.Error(r.ErrorCode), r.ErrorMessage)
		}
		seen++
		c := topicConfig{values: make(map[string]string, len(r.ConfigEntries))}
		for _, e := range r.ConfigEntries {
			c.values[e.ConfigName] = e.ConfigValue
		}
		var err error
		if c.limit, err = strconv.Atoi(c.values["max.message.bytes"]); err != nil {
			return nil, lasting{fmt.Errorf("topic %s: max.message.bytes: %w", t.name, err)}
		}
		configs[t.index] = c
	}
	if seen < len(p.topics) {
		return nil, fmt.Errorf("the answer has %d topics of %d", seen, len(p.topics))
	}
	return configs, nil
}

// checkSettings refuses settings under which the topic loses what it is for.
func (t *topicLog) checkSettings(c topicConfig, replicas int) []error {
	var wrong []error
	have := c.values
	must := func(ok bool, name, want, why string) {
		if !ok {
			wrong = append(wrong, t.wrongSetting(name, have[name], want, why))
		}
	}
	must(have["message.timestamp.type"] == "CreateTime", "message.timestamp.type", "CreateTime",
		"the time of a record is that of its event")
	if n, err := strconv.Atoi(have["min.insync.replicas"]); err == nil && replicas > 0 {
		must(n <= replicas, "min.insync.replicas", strconv.Itoa(replicas), "more replicas than the topic has can never acknowledge")
	}
	must(c.limit >= minMessage, "max.message.bytes", strconv.Itoa(createdLimit), "no event would fit")
	if t.kind == transform.Latest {
		must(have["cleanup.policy"] == "compact", "cleanup.policy", "compact", "the newest state of every aggregate must stay")
		n, err := strconv.ParseInt(have["delete.retention.ms"], 10, 64)
		must(err == nil && n >= keepTombstones, "delete.retention.ms", strconv.Itoa(keepTombstones),
			"the version of a deleted aggregate stands only in its tombstone")
	} else {
		must(have["cleanup.policy"] == "delete", "cleanup.policy", "delete", "compaction removes events")
		keep := time.Duration(0)
		if t.table != nil {
			keep = t.table.Topics.Retention
		}
		must(keep > 0 || have["retention.ms"] == "-1", "retention.ms", "-1", "events would be forgotten, and topics.retention of the mapping does not ask for that")
		must(keep > 0 || have["retention.bytes"] == "-1", "retention.bytes", "-1", "events would be forgotten, and topics.retention of the mapping does not ask for that")
	}
	return wrong
}

// minMessage is the least max.message.bytes: below it no event fits, headers included.
const minMessage = 4 << 10

// warnSettings warns of settings that make a fault likelier.
func (p *Producer) warnSettings(t *topicLog, have map[string]string) {
	for _, s := range []setting{
		{"unclean.leader.election.enable", "false"},
		{"message.timestamp.after.max.ms", forEverMillis},
		{"message.timestamp.before.max.ms", forEverMillis},
		{"compression.type", "producer"},
	} {
		if v, ok := have[s.name]; ok && v != s.value {
			p.log.Warn("topic setting should be changed", "topic", t.name, "setting", s.name, "value", v, "want", s.value)
		}
	}
}

func (t *topicLog) wrongSetting(name, value, want, why string) error {
	return &Refusal{
		Thing:   "topic " + t.name,
		Problem: fmt.Sprintf("%s is %s, and must be %s: %s", name, value, want, why),
		Cure:    fmt.Sprintf("kafka-configs --alter --topic %s --add-config %s=%s", t.name, name, want),
	}
}
