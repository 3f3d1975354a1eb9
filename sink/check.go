package sink

import (
	"context"
	"fmt"

	"backstory/transform"
)

// Check compares the topics with what is remembered of them. A log that ends
// below a mark's End, and a record at LastAt with another id than Last, are each
// a *Refusal: the topic lost its newest records, was made anew, or has another
// writer. A record that compaction took from a latest topic, or that lies below
// the log's start, is no difference.
func (p *Producer) Check(ctx context.Context, marks []transform.Mark) error {
	cursors, err := p.markCursors(marks)
	if err != nil || len(cursors) == 0 {
		return err
	}
	r := newReader(p.client, p.log)
	r.eachBytes = minEachBytes
	starts, ends, err := r.span(ctx, cursors)
	if err != nil {
		return err
	}
	var open []*cursor
	for i, c := range cursors {
		m := &marks[i]
		if ends[i] < m.End {
			return c.lostEnd(ends[i], m.End)
		}
		if m.LastAt >= starts[i] && m.LastAt >= 0 {
			c.next, c.end = m.LastAt, m.LastAt+1
			open = append(open, c)
		}
	}
	found := make([]bool, len(marks))
	err = r.stored(ctx, open, func(c *cursor, s *transform.Stored) error {
		found[c.index] = true
		if m := &marks[c.index]; s.ID != m.Last {
			return otherRecord(c, m, "has the id "+idText(s.ID))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.missing(ctx, open, marks, found)
}

// markCursors makes a cursor for each mark.
func (p *Producer) markCursors(marks []transform.Mark) ([]*cursor, error) {
	cursors := make([]*cursor, len(marks))
	for i, m := range marks {
		all, err := p.cursors(m.Table, m.Topic)
		if err != nil {
			return nil, err
		}
		if m.Partition < 0 || int(m.Partition) >= len(all) {
			return nil, &Refusal{
				Thing:   "topic " + p.topicOf(m.Table, m.Topic).name,
				Problem: fmt.Sprintf("it has %d partitions, and the state remembers a partition %d", len(all), m.Partition),
				Cure:    restoreTopic,
			}
		}
		cursors[i] = all[m.Partition]
		cursors[i].index = i
	}
	return cursors, nil
}

// missing judges the records of an events topic that are not at their offset:
// retention may have taken them since, and nothing else may.
func (r *reader) missing(ctx context.Context, open []*cursor, marks []transform.Mark, found []bool) error {
	var gone []*cursor
	for _, c := range open {
		if !found[c.index] && marks[c.index].Topic == transform.Events {
			gone = append(gone, c)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	starts, err := r.offsets(ctx, gone, atStart)
	if err != nil {
		return err
	}
	for i, c := range gone {
		if m := &marks[c.index]; m.LastAt >= starts[i] {
			return otherRecord(c, m, "is no event")
		}
	}
	return nil
}

// otherRecord refuses a partition whose record at m.LastAt is not m.Last.
func otherRecord(c *cursor, m *transform.Mark, what string) error {
	return &Refusal{
		Thing: fmt.Sprintf("topic %s partition %d", c.topic, c.partition),
		Problem: fmt.Sprintf("the record at offset %d %s, and the state remembers %s there: the topic was made anew, "+
			"went back to an older copy, or has another writer", m.LastAt, what, idText(m.Last)),
		Cure: restoreTopic,
	}
}

// Orphans looks for states without their event: for each partition of the latest
// topic whose newest record lies at or above latestFrom, the event with that
// record's id must stand in the events topic, at or above the record's
// ce_eventsoffset. A missing one is a *Refusal: the events topic lost its newest
// records. An event that retention has taken is no difference. latestFrom has an
// offset for each partition; nil means all from 0.
func (p *Producer) Orphans(ctx context.Context, table *transform.Table, latestFrom []int64) error {
	newest, err := p.Newest(ctx, table, transform.Latest)
	if err != nil {
		return err
	}
	events, err := p.cursors(table, transform.Events)
	if err != nil {
		return err
	}
	if len(events) != len(newest) || (latestFrom != nil && len(latestFrom) != len(newest)) {
		return fmt.Errorf("orphans of topic %s: %d partitions of events, %d of states, %d offsets",
			events[0].topic, len(events), len(newest), len(latestFrom))
	}
	r := newReader(p.client, p.log)
	starts, ends, err := r.span(ctx, events)
	if err != nil {
		return err
	}
	var open []*cursor
	for i, c := range events {
		if n := newest[i]; n != nil && (latestFrom == nil || n.Offset >= latestFrom[i]) && starts[i] <= n.EventsOffset {
			c.next, c.end = min(n.EventsOffset, ends[i]), ends[i]
			open = append(open, c)
		}
	}
	return r.findEvents(ctx, open, newest)
}

// findEvents looks for the event of newest[cursor.index] between each cursor's
// next and end.
func (r *reader) findEvents(ctx context.Context, open []*cursor, newest []*transform.Stored) error {
	found := make([]bool, len(newest))
	left := len(open)
	err := r.stored(ctx, open, func(c *cursor, s *transform.Stored) error {
		if !found[c.index] && s.ID == newest[c.index].ID {
			found[c.index] = true
			left--
		}
		if left == 0 {
			return errStop
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range open {
		if n := newest[c.index]; !found[c.index] {
			return &Refusal{
				Thing: fmt.Sprintf("topic %s partition %d", c.topic, c.partition),
				Problem: fmt.Sprintf("the event %s is not there at or above offset %d (the log ends at %d), "+
					"and the latest topic tells of it at offset %d: the events topic lost its newest records",
					idText(n.ID), n.EventsOffset, c.end, n.Offset),
				Cure: restoreTopic,
			}
		}
	}
	return nil
}
