package sink

import (
	"context"
	"fmt"

	"backstory/transform"
)

// Fold hands out the records of one topic of a table: each partition in order,
// the partitions interleaved, from the given offsets (one for each partition;
// below the log's start means its start) to the ends as they are at the call.
// Markers of transactions, and what compaction has left empty, are passed over.
// The record is valid during the call of fn, whose error ends the fold.
//
// It returns the ends, one mark for each partition. Last and LastAt are of the
// newest record in the range; LastAt is −1 if the range has none. A log that ends
// below from is a *Refusal; so is a record that the bridge has not written, one of
// another source, and one that stands in another partition than its key's.
func (p *Producer) Fold(ctx context.Context, table *transform.Table, topic transform.Topic,
	from []int64, fn func(*transform.Stored) error,
) ([]transform.Mark, error) {
	cursors, err := p.cursors(table, topic)
	if err != nil {
		return nil, err
	}
	if len(from) != len(cursors) {
		return nil, fmt.Errorf("fold topic %s: %d offsets for %d partitions",
			cursors[0].topic, len(from), len(cursors))
	}
	r := newReader(p.client, p.log)
	starts, ends, err := r.span(ctx, cursors)
	if err != nil {
		return nil, err
	}
	marks := make([]transform.Mark, len(cursors))
	for i, c := range cursors {
		c.next, c.end = max(from[i], starts[i]), ends[i]
		if from[i] > ends[i] {
			return nil, c.lostEnd(ends[i], from[i])
		}
		marks[i] = transform.Mark{Table: table, Topic: topic, Partition: c.partition, End: ends[i], LastAt: -1}
	}
	err = r.complete(ctx, cursors, func(c *cursor, s *transform.Stored) error {
		if home := partitionOf(murmur2(s.Key), len(cursors)); home != c.partition {
			return strange(c, s, len(cursors), home)
		}
		marks[c.index].Last, marks[c.index].LastAt = s.ID, s.Offset
		return fn(s)
	})
	if err != nil {
		return nil, err
	}
	return marks, nil
}

// strange refuses a record that stands in another partition than that of its key.
func strange(c *cursor, s *transform.Stored, partitions int, home int32) error {
	return &Refusal{
		Thing: fmt.Sprintf("topic %s partition %d", c.topic, c.partition),
		Problem: fmt.Sprintf("the record at offset %d has key %q, which with %d partitions belongs into partition %d: "+
			"the topic had another number of partitions when it was written", s.Offset, s.Key, partitions, home),
		Cure: countCure,
	}
}

// cursors makes the cursors of one topic of a mapped table.
func (p *Producer) cursors(table *transform.Table, topic transform.Topic) ([]*cursor, error) {
	if p.tables[table] == nil {
		return nil, fmt.Errorf("read topic %s: its table is not in the mapping", topic)
	}
	t := p.topicOf(table, topic)
	return newCursors(t.name, len(t.parts), table, topic, &p.tables[table].sources), nil
}

// How far Newest steps back from the end of a log, in offsets: a step reaches
// widerStep times as far as the one before.
const (
	firstStep = 16
	widerStep = 16
)

// Newest returns the newest record of each partition of a topic, nil where there
// is none: also where the log's end holds nothing but markers and what compaction
// has left empty. The records are the caller's.
func (p *Producer) Newest(ctx context.Context, table *transform.Table, topic transform.Topic) ([]*transform.Stored, error) {
	cursors, err := p.cursors(table, topic)
	if err != nil {
		return nil, err
	}
	return p.newestOf(ctx, cursors, newReader(p.client, p.log).complete)
}

// readStored is [reader.stored] or [reader.complete].
type readStored func(context.Context, []*cursor, func(*cursor, *transform.Stored) error) error

// newestOf is Newest for any cursors, whose index is their place among them.
func (p *Producer) newestOf(ctx context.Context, cursors []*cursor, read readStored) ([]*transform.Stored, error) {
	if len(cursors) == 0 {
		return nil, nil
	}
	starts, ends, err := newReader(p.client, p.log).span(ctx, cursors)
	if err != nil {
		return nil, err
	}
	newest := make([]*transform.Stored, len(cursors))
	for i, c := range cursors {
		c.next = ends[i]
	}
	for step := int64(firstStep); ; step *= widerStep {
		var open []*cursor
		for i, c := range cursors {
			if newest[i] == nil && ends[i] > starts[i] {
				// What lies at and above the last step's beginning held nothing.
				c.end, c.next = ends[i], max(ends[i]-step, starts[i])
				ends[i] = c.next
				open = append(open, c)
			}
		}
		if len(open) == 0 {
			return newest, nil
		}
		err := read(ctx, open, func(c *cursor, s *transform.Stored) error {
			newest[c.index] = clone(s)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
}
