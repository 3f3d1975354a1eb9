package sink

import (
	"context"
	"fmt"

	"github.com/segmentio/kafka-go"
)

// How many answers in a row may lack what is due before the reader concludes:
// that nothing is there (the broker holds nothing back, so a few do), or that
// the log has become shorter (a new leader may take a while to learn its end; at
// fetchMaxWait an answer, this is a minute).
const (
	hollowAnswers = 3
	shortAnswers  = 120
)

// accept moves the cursors on by what the answer has and notes it in the page.
// The error is that of the first partition that failed.
func (r *reader) accept(ctx context.Context, p *page, s *fetchResponse, cursors []*cursor) error {
	p.parts = p.parts[:0]
	var cause error
	for i := range s.partitions {
		f := &s.partitions[i]
		c := findCursor(cursors, f)
		if c == nil {
			continue
		}
		var err error
		if f.code != 0 {
			err = r.partitionFailed(ctx, c, f)
		} else if err = c.advance(p, f); err == nil && s.throttle == 0 && p.request.asksFirst(c) {
			err = c.hollowCheck(f)
		}
		if err != nil && cause == nil {
			cause = err
		}
	}
	return cause
}

func findCursor(cursors []*cursor, f *fetched) *cursor {
	for _, c := range cursors {
		if c.partition == f.partition && c.topic == string(f.topic) {
			return c
		}
	}
	return nil
}

// asksFirst reports whether the request names the cursor before all others, so
// that the broker must give it a whole batch if there is one.
func (q *fetchRequest) asksFirst(c *cursor) bool {
	return q.partitions[0].partition == c.partition && q.partitions[0].topic == c.topic
}

// advance moves the cursor behind the last complete batch and hands that on.
func (c *cursor) advance(p *page, f *fetched) error {
	next, err := nextOffset(f.records, c.next)
	if err != nil {
		return lasting{c.failed(err)}
	}
	if next > c.next {
		p.parts = append(p.parts, part{cursor: c, from: c.next, records: f.records})
		c.next, c.hollow = next, -1
	}
	return nil
}

// hollowCheck judges an answer in which the cursor stood first. Where compaction
// has taken all records from an offset on, a broker answers with nothing for
// ever: the cursor then goes on to the end. A log that ends before the cursor's
// end has lost records.
func (c *cursor) hollowCheck(f *fetched) error {
	c.hollow++
	switch {
	case c.hollow <= 0 || c.done():
	case f.high > c.next && len(f.records) > 0 && c.hollow >= hollowAnswers:
		return lasting{c.failed(fmt.Errorf("the broker cuts the record batch at offset %d off", c.next))}
	case f.high > c.next && len(f.records) == 0 && c.hollow >= hollowAnswers:
		c.next, c.hollow = min(f.high, c.end), 0
	case f.high <= c.next && c.end != forEver && c.hollow >= shortAnswers:
		return c.lostEnd(f.high, c.end)
	case c.end == forEver && f.high <= c.next:
		c.hollow = 0
	}
	return nil
}

// lostEnd refuses a partition that ends at end and was known to reach before.
func (c *cursor) lostEnd(end, before int64) error {
	return &Refusal{
		Thing: fmt.Sprintf("topic %s partition %d", c.topic, c.partition),
		Problem: fmt.Sprintf("the log ends at offset %d, and reached %d before: "+
			"it has lost its newest records, or the topic was made anew", end, before),
		Cure: restoreTopic,
	}
}

// partitionFailed judges the error code of one partition: nil if the cursor has
// moved to where it can go on.
func (r *reader) partitionFailed(ctx context.Context, c *cursor, f *fetched) error {
	switch kafka.Error(f.code) {
	case kafka.OffsetOutOfRange:
	case kafka.InvalidMessage:
		return lasting{c.failed(fmt.Errorf("the broker's log is damaged at offset %d: %w", c.next, kafka.InvalidMessage))}
	default:
		return c.failed(kafkaError(f.code))
	}
	one := []*cursor{c}
	start, err := r.offsets(ctx, one, atStart)
	if err != nil {
		return err
	}
	end, err := r.offsets(ctx, one, atEnd)
	if err != nil {
		return err
	}
	switch {
	case c.next < start[0]:
		r.log.Warn("records were removed before they were read",
			"topic", c.topic, "partition", c.partition, "offset", c.next, "log_start", start[0])
		c.next = start[0]
		c.overtaken.Store(start[0])
	case c.next > end[0]:
		return c.lostEnd(end[0], c.next)
	}
	return nil
}
