package sink

import (
	"context"
	"fmt"

	"backstory/transform"
)

// Publication is a set of encoded events on its way to Kafka. Events and Latest
// are called once each, in this order, and publications one after another. After
// an error of either the session is over; only Release may follow.
type Publication struct {
	producer *Producer
	session  uint64 // number of the session that planned the offsets
	arena    []byte // the bytes of all batches
	bytes    int64  // before compression
	parked   int    // dead letters

	// letters are the dead letters of events and of states, in the order in which
	// they were encoded, which is that of the offsets that stand-ins name. So they
	// go as one, before anything points to them.
	letters, events, latest phase
	marks                   []transform.Mark
	dirty                   bool // a request may still read the arena
}

// phase is what is sent at one time: for each partition its batches, in order.
// A partition's batches stand next to each other.
type phase struct {
	queues  []queue
	batches []batch
}

// queue is the batches of one partition.
type queue struct {
	part        *partition
	first, next int // in the phase's batches: the first one, and the next to send
	end         int
}

// begin starts the queue of a partition, unless it is the current one.
func (ph *phase) begin(part *partition) {
	if n := len(ph.queues); n > 0 && ph.queues[n-1].part == part {
		return
	}
	n := len(ph.batches)
	ph.queues = append(ph.queues, queue{part: part, first: n, next: n, end: n})
}

// add appends a batch to the current queue.
func (ph *phase) add(b batch) {
	ph.batches = append(ph.batches, b)
	ph.queues[len(ph.queues)-1].end = len(ph.batches)
}

func (ph *phase) reset() {
	ph.queues, ph.batches = ph.queues[:0], ph.batches[:0]
}

func (p *Publication) phaseOf(kind transform.Topic) *phase {
	if kind == transform.Latest {
		return &p.latest
	}
	return &p.events
}

// mark notes the end that a partition will have.
func (p *Publication) mark(part *partition) {
	p.marks = append(p.marks, transform.Mark{
		Table: part.topic.table, Topic: part.topic.kind, Partition: part.index,
		End: part.planned, Last: part.last, LastAt: part.planned - 1,
	})
}

// announce tells how far the partitions can reach from now on.
func (p *Publication) announce() {
	for i := range p.marks {
		m := &p.marks[i]
		p.producer.topicOf(m.Table, m.Topic).parts[m.Partition].reach.Store(m.End)
	}
}

// Events returns when every event is acknowledged by all in-sync replicas, the
// dead letters before. It waits for brokers that do not answer until
// ctx is done; it returns a *SessionError or *Refusal where waiting is of no use.
func (p *Publication) Events(ctx context.Context) error {
	return p.publish(ctx, "publish events", &p.letters, &p.events)
}

// Latest does the same for the newest states. Where Events was not called, as for
// states alone, the dead letters go here.
func (p *Publication) Latest(ctx context.Context) error {
	return p.publish(ctx, "publish latest", &p.letters, &p.latest)
}

func (p *Publication) publish(ctx context.Context, step string, phases ...*phase) error {
	for _, ph := range phases {
		if !ph.open() {
			continue
		}
		if err := p.producer.publish(ctx, p, ph); err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
	}
	return nil
}

// Marks are the ends that the written partitions will have, known from Encode
// on: the bridge is their only writer. Valid until Release.
func (p *Publication) Marks() []transform.Mark { return p.marks }

// Release gives the buffers back. Those of a publication that failed are left to
// the garbage collector, because a connection may still be sending them.
func (p *Publication) Release() {
	if p.producer == nil {
		return
	}
	p.producer.release(p)
}
