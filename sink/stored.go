package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"backstory/transform"
)

// errStop ends a run early, without an error.
var errStop = errors.New("stop")

// newCursors makes one cursor for each partition of a topic; a table of nil
// means that the topic is read without a mapping, from of nil that records of any
// source are taken.
func newCursors(topic string, partitions int, table *transform.Table, kind transform.Topic, from *sources) []*cursor {
	parser := &parser{topic: topic, table: table, kind: kind, sources: from}
	cursors := make([]*cursor, partitions)
	for i := range cursors {
		cursors[i] = &cursor{topic: topic, partition: int32(i), index: i, parser: parser}
	}
	return cursors
}

// span returns where the cursors' logs begin and end.
func (r *reader) span(ctx context.Context, cursors []*cursor) (starts, ends []int64, err error) {
	if starts, err = r.offsets(ctx, cursors, atStart); err != nil {
		return nil, nil, err
	}
	if ends, err = r.offsets(ctx, cursors, atEnd); err != nil {
		return nil, nil, err
	}
	return starts, ends, nil
}

// records hands out the data records between the cursors' next and end. The
// record is valid during the call of fn.
func (r *reader) records(ctx context.Context, cursors []*cursor, fn func(*cursor, *record) error) error {
	var d decoder
	var rec record
	err := r.run(ctx, cursors, func(p *part) error {
		d.reset(p.records, p.from)
		for {
			ok, err := d.next(&rec)
			if err != nil {
				return p.cursor.failed(err)
			}
			if !ok || rec.offset >= p.cursor.end {
				return nil
			}
			if err := fn(p.cursor, &rec); err != nil {
				return err
			}
		}
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// stored is records for what the bridge has written. Stand-ins are handed out as
// they are.
func (r *reader) stored(ctx context.Context, cursors []*cursor, fn func(*cursor, *transform.Stored) error) error {
	var s transform.Stored
	return r.records(ctx, cursors, func(c *cursor, rec *record) error {
		ok, err := c.parser.parse(rec, c.partition, &s)
		if !ok {
			return err
		}
		return fn(c, &s)
	})
}

// complete is stored with the true values in place of the stand-ins.
func (r *reader) complete(ctx context.Context, cursors []*cursor, fn func(*cursor, *transform.Stored) error) error {
	return r.stored(ctx, cursors, func(c *cursor, s *transform.Stored) error {
		if c.parser.ref != nil {
			if err := r.resolve(ctx, c.topic, c.parser.ref, s); err != nil {
				return err
			}
		}
		return fn(c, s)
	})
}

// resolve replaces the value of a stand-in by that of the record in the
// dead-letter topic which it points to.
func (r *reader) resolve(ctx context.Context, topic string, ref []byte, s *transform.Stored) error {
	refuse := func(problem string) error {
		return &Refusal{
			Thing:   fmt.Sprintf("topic %s partition %d", topic, s.Partition),
			Problem: fmt.Sprintf("the value of the record at offset %d should be at %q, and %s", s.Offset, ref, problem),
			Cure:    "restore the dead-letter topic; it must keep its records as long as the topics that point to it",
		}
	}
	at, ok := parseRef(ref)
	if !ok {
		return refuse("that names no record")
	}
	one := &cursor{topic: at.topic, partition: at.partition, next: at.offset, end: at.offset + 1,
		parser: &parser{topic: at.topic}}
	inner := newReader(r.client, r.log)
	inner.eachBytes = minEachBytes
	starts, ends, err := inner.span(ctx, []*cursor{one})
	if err != nil {
		return fmt.Errorf("read the dead letter at %s: %w", ref, err)
	}
	if at.offset < starts[0] || at.offset >= ends[0] {
		return refuse(fmt.Sprintf("that partition has the offsets from %d to below %d", starts[0], ends[0]))
	}
	found := false
	err = inner.stored(ctx, []*cursor{one}, func(_ *cursor, full *transform.Stored) error {
		if found = full.ID == s.ID && full.Topic == s.Topic; found {
			// The run's buffers are not used again: the value stays valid.
			s.Data, s.State = full.Data, full.State
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the dead letter at %s: %w", ref, err)
	}
	if !found {
		return refuse("it is not there")
	}
	return nil
}

// clone returns a copy that shares nothing with the reader's buffers.
func clone(s *transform.Stored) *transform.Stored {
	out := *s
	out.Key = bytes.Clone(s.Key)
	out.Related = bytes.Clone(s.Related)
	out.Data = bytes.Clone(s.Data)
	out.State = bytes.Clone(s.State)
	if s.Context != nil {
		said := *s.Context
		out.Context = &said
	}
	return &out
}
