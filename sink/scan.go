package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/segmentio/kafka-go"

	"backstory/transform"
)

// Scanner reads the two topics of a mapped table for somebody who checks them:
// from the start, and on to the ends as often as it is asked. A record that the
// bridge can't have written is handed out with what is wrong with it and ends
// nothing. Nothing is written, and no consumer group is made.
type Scanner struct {
	client *client
	reader *reader
	topics [2][]*cursor // by transform.Topic
	starts [2][]int64
}

// Scanned is a record of either topic.
type Scanned struct {
	transform.Stored
	// Problem says why the bridge can't have written the record; of Stored only
	// Topic, Partition, Offset and Key are there then. Empty: it may have.
	Problem string
	// Home is the partition that the key belongs to.
	Home int32
	// Timestamp is the record's own, milliseconds since 1970-01-01 UTC.
	Timestamp int64
}

// Span is a part of a partition: the offsets from Start on, below End.
type Span struct {
	Partition int32 `json:"partition"`
	Start     int64 `json:"start"`
	End       int64 `json:"end"`
}

// OpenScanner connects and finds the topics; one that is not there is a *Refusal.
func OpenScanner(ctx context.Context, cfg Config, table *transform.Table, log *slog.Logger) (*Scanner, error) {
	client, err := newClient(cfg, log)
	if err != nil {
		return nil, err
	}
	s := &Scanner{client: client, reader: newReader(client, log)}
	s.reader.patience = tailPatience
	if err := s.find(ctx, table); err != nil {
		client.close()
		return nil, err
	}
	s.reader.patience = unknownPatience
	return s, nil
}

func (s *Scanner) find(ctx context.Context, table *transform.Table) error {
	for topic, name := range [...]string{transform.Events: table.Topics.Events, transform.Latest: table.Topics.Latest} {
		found, err := s.reader.discover(ctx, []string{name})
		if err != nil {
			return fmt.Errorf("find topic %s: %w", name, err)
		}
		s.topics[topic] = newCursors(name, len(found), table, transform.Topic(topic), nil)
		starts, err := s.reader.offsets(ctx, s.topics[topic], atStart)
		if err != nil {
			return err
		}
		for i, c := range s.topics[topic] {
			c.next = starts[i]
		}
		s.starts[topic] = starts
	}
	return nil
}

// Advance reads one topic on, from where the last call ended to the ends as of
// this call: each partition in order, the partitions as they come. The record is
// valid during the call of fn, whose error ends the scanner's use.
func (s *Scanner) Advance(ctx context.Context, topic transform.Topic, fn func(*Scanned) error) error {
	cursors := s.topics[topic]
	ends, err := s.reader.offsets(ctx, cursors, atEnd)
	if err != nil {
		return err
	}
	for i, c := range cursors {
		if ends[i] < c.next {
			return c.lostEnd(ends[i], c.next)
		}
		c.end = ends[i]
	}
	var out Scanned
	err = s.reader.records(ctx, cursors, func(c *cursor, rec *record) error {
		out = Scanned{}
		there, err := s.scan(ctx, c, rec, &out)
		if err != nil || !there {
			return err
		}
		return fn(&out)
	})
	for _, c := range cursors {
		c.next = min(c.next, c.end) // an answer may reach beyond the end; what it had there was not handed out
	}
	return err
}

// scan reads one record; it reports false for one that carries nothing.
func (s *Scanner) scan(ctx context.Context, c *cursor, rec *record, out *Scanned) (bool, error) {
	there, err := c.parser.parse(rec, c.partition, &out.Stored)
	if err == nil && there && c.parser.ref != nil {
		err = s.reader.resolve(ctx, c.topic, c.parser.ref, &out.Stored)
	}
	var refusal *Refusal
	var code kafka.Error
	switch {
	case errors.As(err, &refusal) && !errors.As(err, &code):
		out.Problem = refusal.Problem
		out.Stored = transform.Stored{Topic: c.parser.kind, Partition: c.partition, Offset: rec.offset}
		out.Key = rec.key
	case err != nil:
		return false, err
	case !there:
		return false, nil
	}
	out.Timestamp = rec.time
	out.Home = partitionOf(murmur2(out.Key), len(s.topics[c.parser.kind]))
	return true, nil
}

// Spans returns what has been read of each partition of a topic. A span begins
// where the log did, or where it does since retention has overtaken the reading:
// what was below is gone.
func (s *Scanner) Spans(topic transform.Topic) []Span {
	spans := make([]Span, len(s.topics[topic]))
	for i, c := range s.topics[topic] {
		spans[i] = Span{Partition: c.partition, Start: max(s.starts[topic][i], c.overtaken.Load()), End: c.next}
	}
	return spans
}

// Close ends the connections.
func (s *Scanner) Close() error {
	s.client.close()
	return nil
}
