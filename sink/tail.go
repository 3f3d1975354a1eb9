package sink

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"backstory/transform"
)

// tailPatience is how long a topic that a person names may be unknown.
const tailPatience = 5 * time.Second

// TailFrom says where Tail begins in each partition. The zero value is the start.
type TailFrom struct {
	where tailWhere
	value int64
}

type tailWhere uint8

const (
	tailStart tailWhere = iota
	tailEnd
	tailOffset
	tailTime
)

// FromStart begins with the oldest record that is still there.
func FromStart() TailFrom { return TailFrom{} }

// FromEnd begins behind the newest record as of the call.
func FromEnd() TailFrom { return TailFrom{where: tailEnd} }

// FromOffset begins with the given offset in each partition, or at the start or
// the end where the log does not have it.
func FromOffset(offset int64) TailFrom { return TailFrom{tailOffset, offset} }

// FromTime begins with the first record that was committed at t or later.
func FromTime(t time.Time) TailFrom { return TailFrom{tailTime, t.UnixMilli()} }

// Tail hands out the records of topics that a bridge writes: each partition in
// order, the partitions as they come. It ends at the ends as of the call or, with
// follow, when ctx is done or fn returns an error. Brokers that go away are waited
// for. The record is valid during the call of fn.
//
// No mapping is needed: the records tell which topic they are of, and Table says
// only the aggregate type and, as both of its topics, the topic's name. Of cfg
// the brokers, client id, time limit and security are used. Nothing is written,
// and no consumer group is made.
func Tail(ctx context.Context, cfg Config, topics []string, from TailFrom, follow bool,
	log *slog.Logger, fn func(*transform.Stored) error,
) error {
	client, err := newClient(cfg, log)
	if err != nil {
		return err
	}
	defer client.close()
	r := newReader(client, log)
	r.patience = tailPatience
	cursors, err := r.discover(ctx, topics)
	if err != nil {
		return err
	}
	if err := r.place(ctx, cursors, from, follow); err != nil {
		return err
	}
	r.patience = unknownPatience
	return r.complete(ctx, cursors, func(_ *cursor, s *transform.Stored) error { return fn(s) })
}

// discover makes a cursor for each partition of the topics.
func (r *reader) discover(ctx context.Context, topics []string) ([]*cursor, error) {
	again := r.attempts("look up the topics")
	for {
		cursors, err := r.discoverOnce(ctx, topics)
		if err == nil {
			again.over()
			return cursors, nil
		}
		if err := again.wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

func (r *reader) discoverOnce(ctx context.Context, topics []string) ([]*cursor, error) {
	layouts, err := r.client.leaders(ctx, topics...)
	if err != nil {
		return nil, err
	}
	var cursors []*cursor
	for _, l := range layouts {
		if l.err != nil {
			return nil, fmt.Errorf("topic %s: %w", l.topic, l.err)
		}
		cursors = append(cursors, newCursors(l.topic, len(l.leaders), nil, transform.Events, nil)...)
	}
	for i, c := range cursors {
		c.index = i
	}
	return cursors, nil
}

// place sets where the cursors begin and end.
func (r *reader) place(ctx context.Context, cursors []*cursor, from TailFrom, follow bool) error {
	starts, ends, err := r.span(ctx, cursors)
	if err != nil {
		return err
	}
	var since []int64
	if from.where == tailTime {
		if since, err = r.offsets(ctx, cursors, max(from.value, 0)); err != nil {
			return err
		}
	}
	for i, c := range cursors {
		c.next, c.end = starts[i], ends[i]
		switch from.where {
		case tailEnd:
			c.next = ends[i]
		case tailOffset:
			c.next = min(max(from.value, starts[i]), ends[i])
		case tailTime:
			if c.next = since[i]; c.next < 0 {
				c.next = ends[i]
			}
		}
		if follow {
			c.end = forEver
		}
	}
	return nil
}
