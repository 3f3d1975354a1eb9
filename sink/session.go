package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/addpartitionstotxn"
	"github.com/segmentio/kafka-go/protocol/endtxn"
	"github.com/segmentio/kafka-go/protocol/initproducerid"

	"backstory/internal/failpoint"
)

// Limits that follow from what brokers remember. They forget a producer id in a
// partition producer.id.expiration.ms (a day, by default) after the time of the
// newest record that it wrote there; from then on they neither fence an older
// epoch nor recognise a batch that they have.
const (
	// maxSession is how long after its fence a session may write. One that was
	// frozen for longer must not: the fence of its successor may be forgotten.
	maxSession = 23 * time.Hour
	// maxDoubt is how old the newest record of a batch may be for the batch to be
	// sent again when it is not known whether it was written: what is older may be
	// forgotten at once, and would be written twice.
	maxDoubt = 12 * time.Hour
)

// fenceTimeout is how long the coordinator lets the empty transaction live if the
// bridge dies within Fence, in milliseconds.
const fenceTimeout = 60_000

// noProducer asks for the id that the coordinator knows, at any epoch.
var noProducer = session{id: -1, epoch: -1}

// session is a producer id at one epoch.
type session struct {
	id     int64
	epoch  int16
	number uint64    // counts the sessions of this process, from 1
	opened time.Time // wall clock: a suspended machine must notice
}

// usable returns an error if the session must not write any more.
func (s *session) usable(step string, over bool) error {
	switch {
	case s.number == 0 || over:
		return &SessionError{Step: step, Reason: "there is no session, the topics must be fenced first"}
	case time.Since(s.opened) > maxSession:
		return &SessionError{Step: step, Reason: fmt.Sprintf("the session is older than %s", maxSession)}
	}
	return nil
}

// Fence ends every former session, whoever holds it, and opens a new one. When it
// returns, no record of a former session can appear in any topic any more, and
// those that did are visible; the ends of all partitions are known. Nothing may
// be encoded or in flight. It waits for brokers until ctx is done.
//
// Topics that another source has taken over meanwhile are a *Refusal, and nothing of
// it is fenced.
//
// It is an empty transaction over all partitions, then aborted: its markers carry
// the transactional id's newest epoch into every partition, and brokers refuse
// what comes there with an older one. See DESIGN.md for why nothing less will do.
func (p *Producer) Fence(ctx context.Context) error {
	if err := p.lookAgain(ctx); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if err := p.fence(ctx, noProducer); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	for _, t := range p.topics {
		t.looked = false
	}
	return nil
}

// Renew fences with the session's own id and epoch, so that the brokers keep
// remembering it. A session that somebody else has fenced gets a *SessionError
// and fences nobody. Nothing may be encoded or in flight. To be called every few
// hours: batches outside of transactions do not keep a transactional id alive.
func (p *Producer) Renew(ctx context.Context) error {
	if err := p.session.usable("renew the session", p.over.Load()); err != nil {
		return err
	}
	if err := p.fence(ctx, p.session); err != nil {
		return fmt.Errorf("renew the session: %w", err)
	}
	return nil
}

func (p *Producer) fence(ctx context.Context, own session) error {
	p.over.Store(true)
	began := time.Now()
	s, err := p.initProducer(ctx, own)
	if err != nil {
		return err
	}
	failpoint.Hit("fence-begun")
	if err := p.joinAll(ctx, s); err != nil {
		return err
	}
	failpoint.Hit("fence-joined")
	// From here on with the own id and epoch, so that an instance which fences at
	// the same time ends this one, or is ended, but never both go on.
	if err := p.abort(ctx, s); err != nil {
		return err
	}
	failpoint.Hit("fence-aborted")
	opened := time.Now().Round(0)
	if s, err = p.initProducer(ctx, s); err != nil {
		return err
	}
	failpoint.Hit("fence-ended")
	if err := p.barriers(ctx, s); err != nil {
		return err
	}
	if err := p.learnEnds(ctx); err != nil {
		return err
	}
	s.number, s.opened = p.session.number+1, opened
	p.session, p.planned = s, s.number
	p.over.Store(false)
	p.metrics.fence.Observe(time.Since(began).Seconds())
	p.log.Info("session opened", "transactional_id", p.transactionalID, "producer_id", s.id, "epoch", s.epoch)
	return nil
}

// initProducer asks for the next epoch. It returns when no transaction of the
// transactional id is open, so when all markers are written and replicated.
func (p *Producer) initProducer(ctx context.Context, own session) (session, error) {
	var s session
	err := p.insist(ctx, "init producer", func(ctx context.Context) error {
		res, err := p.client.roundTrip(ctx, nil, &initproducerid.Request{
			TransactionalID:      p.transactionalID,
			TransactionTimeoutMs: fenceTimeout,
			ProducerID:           own.id,
			ProducerEpoch:        own.epoch,
		})
		if err != nil {
			return err
		}
		answer := res.(*initproducerid.Response)
		s = session{id: answer.ProducerID, epoch: answer.ProducerEpoch}
		return p.judge("transactional id "+p.transactionalID, answer.ErrorCode)
	})
	return s, err
}

// joinAll adds every partition to the transaction.
func (p *Producer) joinAll(ctx context.Context, s session) error {
	req := p.joinRequest(s)
	return p.insist(ctx, "add the partitions to the fence", func(ctx context.Context) error {
		res, err := p.client.roundTrip(ctx, nil, req)
		if err != nil {
			return err
		}
		return p.judgeJoin(res.(*addpartitionstotxn.Response))
	})
}

// joinRequest asks to add every partition to the session's transaction.
func (p *Producer) joinRequest(s session) *addpartitionstotxn.Request {
	req := &addpartitionstotxn.Request{TransactionalID: p.transactionalID, ProducerID: s.id, ProducerEpoch: s.epoch}
	for _, t := range p.topics {
		topic := addpartitionstotxn.RequestTopic{Name: t.name}
		for i := range t.parts {
			topic.Partitions = append(topic.Partitions, int32(i))
		}
		req.Topics = append(req.Topics, topic)
	}
	return req
}

// judgeJoin returns the worst answer, so that a refusal is not hidden behind a
// partition that was not attempted for its sake.
func (p *Producer) judgeJoin(res *addpartitionstotxn.Response) error {
	var worst error
	rank, named := done, 0
	for _, t := range res.Results {
		for _, r := range t.Results {
			named++
			if o := outcomeOf(r.ErrorCode); o > rank {
				rank = o
				worst = p.judge(fmt.Sprintf("topic %s partition %d", t.Name, r.PartitionIndex), r.ErrorCode)
			}
		}
	}
	if want := p.partitions(); worst == nil && named < want {
		return fmt.Errorf("the answer has %d partitions of %d", named, want)
	}
	return worst
}

// abort ends the empty transaction; its markers may not be written yet.
func (p *Producer) abort(ctx context.Context, s session) error {
	return p.insist(ctx, "end the fence", func(ctx context.Context) error {
		res, err := p.client.roundTrip(ctx, nil, &endtxn.Request{
			TransactionalID: p.transactionalID, ProducerID: s.id, ProducerEpoch: s.epoch,
		})
		if err != nil {
			return err
		}
		return p.judge("transactional id "+p.transactionalID, res.(*endtxn.Response).ErrorCode)
	})
}

// judge turns an answer's code for a thing into an error: one that lasts, or
// kafka.Error where asking again is right. The step is added by whoever asked.
func (p *Producer) judge(thing string, code int16) error {
	switch outcomeOf(code) {
	case done:
		return nil
	case retriable, unknown:
		return kafka.Error(code)
	case ended:
		return lasting{&SessionError{Step: thing, Reason: reasonOf(code), Err: kafka.Error(code)}}
	case refused:
		return &Refusal{Thing: thing, Problem: "the broker refuses", Err: kafka.Error(code), Cure: cureOf(code)}
	}
	return lasting{fmt.Errorf("%s: %w", thing, kafka.Error(code))}
}

// insist repeats a request whose repetition does no harm until it is answered.
func (p *Producer) insist(ctx context.Context, step string, ask func(context.Context) error) error {
	again := p.outage(step)
	defer again.leave()
	for {
		err := ask(ctx)
		if err == nil {
			again.over()
			return nil
		}
		if err := again.wait(ctx, err); err != nil {
			return err
		}
	}
}

// learnEnds asks for the end of every partition and predicts from there.
func (p *Producer) learnEnds(ctx context.Context) error {
	var cursors []*cursor
	var parts []*partition
	for _, t := range p.topics {
		for i := range t.parts {
			cursors = append(cursors, &cursor{topic: t.name, partition: int32(i), index: len(cursors)})
			parts = append(parts, &t.parts[i])
		}
	}
	ends, err := p.reader.offsets(ctx, cursors, atEnd)
	if err != nil {
		return err
	}
	for i, part := range parts {
		part.end, part.planned, part.sequence = ends[i], ends[i], 0
		part.reach.Store(ends[i])
	}
	return nil
}
