package sink

import (
	"context"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol/initproducerid"
)

// Revive makes a session writable that an error has ended, as that of an instance
// which does not know of it.
func (p *Producer) Revive() { p.over.Store(false) }

// Patience sets how long a topic may be unknown.
func (p *Producer) Patience(d time.Duration) { p.reader.patience = d }

// DeadLetters sends the dead letters alone.
func (p *Publication) DeadLetters(ctx context.Context) error {
	return p.publish(ctx, "publish dead letters", &p.letters)
}

// Stamp makes the events those of the present session, as if they were sent.
func (p *Publication) Stamp() {
	for i := range p.events.batches {
		p.events.batches[i].stamp(p.arena, p.producer.session)
	}
}

// Resend sends the events again, with the same bytes, whatever became of them.
func (p *Publication) Resend(ctx context.Context) error {
	for i := range p.events.queues {
		p.events.queues[i].next = p.events.queues[i].first
	}
	return p.Events(ctx)
}

// Forge gives the session a producer id that no partition knows, and sequences
// that begin at the given one.
func (p *Producer) Forge(tb testing.TB, sequence int32) {
	tb.Helper()
	res, err := p.client.roundTrip(tb.Context(), nil, &initproducerid.Request{ProducerID: -1, ProducerEpoch: -1})
	if err != nil {
		tb.Fatal(err)
	}
	answer := res.(*initproducerid.Response)
	p.session.id, p.session.epoch = answer.ProducerID, answer.ProducerEpoch
	for _, t := range p.topics {
		for i := range t.parts {
			t.parts[i].sequence = sequence
		}
	}
}
