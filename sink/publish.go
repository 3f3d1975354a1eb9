package sink

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"

	"backstory/internal/failpoint"
)

// acksAll asks for the acknowledgement of all in-sync replicas.
const acksAll = -1

// publish sends the batches of one phase, for each partition one at a time, and
// returns when all are acknowledged. What is not acknowledged is sent again, with
// the same bytes, until it is, the session is over or ctx is done.
func (p *Producer) publish(ctx context.Context, pub *Publication, ph *phase) error {
	began := time.Now()
	again := p.outage("produce")
	defer again.leave()
	for ph.open() {
		err := p.round(ctx, pub, ph)
		if err == nil {
			again.over()
			continue
		}
		if err := again.wait(ctx, err); err != nil {
			p.over.Store(true)
			return err
		}
	}
	p.metrics.published(ph, time.Since(began))
	return nil
}

// open reports whether a batch is left to be sent.
func (ph *phase) open() bool {
	for i := range ph.queues {
		if ph.queues[i].next < ph.queues[i].end {
			return true
		}
	}
	return false
}

// produceCall is one request: the heads of some queues, all led by one broker.
type produceCall struct {
	queues []*queue
	leader int32
	bytes  int
	err    error // the worst of the request's outcomes
	dirty  bool  // the request may still be reading the arena
}

// round sends the next batch of every partition, to all leaders at a time. Nil
// means that each of them is acknowledged.
func (p *Producer) round(ctx context.Context, pub *Publication, ph *phase) error {
	if pub.session != p.session.number {
		return lasting{&SessionError{Step: "produce", Reason: "the offsets were planned in another session"}}
	}
	if err := p.session.usable("produce", p.over.Load()); err != nil {
		return lasting{err}
	}
	calls, missing, err := p.calls(ctx, ph)
	if err != nil {
		return err
	}
	if len(calls) == 1 {
		p.call(ctx, pub, ph, calls[0])
	} else {
		var all sync.WaitGroup
		for _, c := range calls {
			all.Go(func() { p.call(ctx, pub, ph, c) })
		}
		all.Wait()
	}
	for _, c := range calls {
		pub.dirty = pub.dirty || c.dirty
		missing = worse(missing, c.err)
	}
	return missing
}

// worse prefers an error that lasts to one that does not.
func worse(a, b error) error {
	if a == nil || b != nil && lasts(b) && !lasts(a) {
		return b
	}
	return a
}

// calls gathers the heads of the open queues by leader, up to the size of a
// request. missing says why a partition is in none, where it has no leader.
func (p *Producer) calls(ctx context.Context, ph *phase) (calls []*produceCall, missing, err error) {
	layouts, err := p.client.leaders(ctx, p.names...)
	if err != nil {
		return nil, nil, err
	}
	for i := range ph.queues {
		q := &ph.queues[i]
		if q.next == q.end {
			continue
		}
		b := &ph.batches[q.next]
		if b.doubtful && time.Now().UnixMilli()-b.maxTime > maxDoubt.Milliseconds() {
			return nil, nil, lasting{&SessionError{
				Step:   fmt.Sprintf("produce to %s", q.part),
				Reason: "it is not known whether a batch was written, and the broker may have forgotten it",
			}}
		}
		l := &layouts[q.part.topic.index]
		if int(q.part.index) >= len(l.leaders) || l.leaders[q.part.index] < 0 {
			missing = fmt.Errorf("%s: %w", q.part, l.reason())
			continue
		}
		calls = place(calls, q, l.leaders[q.part.index], b.size(), p.cfg.MaxRequest)
	}
	return calls, missing, nil
}

// place puts a queue into the first request to its leader that has room.
func place(calls []*produceCall, q *queue, leader int32, size, limit int) []*produceCall {
	for _, c := range calls {
		if c.leader == leader && c.bytes+size <= limit {
			c.queues, c.bytes = append(c.queues, q), c.bytes+size
			return calls
		}
	}
	return append(calls, &produceCall{queues: []*queue{q}, leader: leader, bytes: size})
}

// call sends one request and judges each partition's answer.
func (p *Producer) call(ctx context.Context, pub *Publication, ph *phase, c *produceCall) {
	req := &rawproduce.Request{Acks: acksAll, Timeout: int32(p.cfg.RequestTimeout.Milliseconds() * 4 / 5)}
	for _, q := range c.queues {
		b := &ph.batches[q.next]
		if !b.stamped {
			b.stamp(pub.arena, p.session)
		}
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != q.part.topic.name {
			req.Topics = append(req.Topics, rawproduce.RequestTopic{Topic: q.part.topic.name})
		}
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, rawproduce.RequestPartition{
			Partition: q.part.index,
			RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(pub.arena[b.from:b.to])},
		})
	}
	if failpoint.Armed("produce-partly") {
		req.Topics = req.Topics[:1]
		req.Topics[0].Partitions = req.Topics[0].Partitions[:1]
	}
	failpoint.Soon("produce-under-way")
	res, err := p.client.roundTrip(ctx, nil, req)
	failpoint.Hit("produce-partly")
	if err != nil {
		c.err, c.dirty = err, true
		for _, q := range c.queues {
			b := &ph.batches[q.next]
			b.doubtful = b.doubtful || maySent(err)
		}
		return
	}
	answer, _ := res.(*produce.Response)
	for _, q := range c.queues {
		c.err = worse(c.err, p.acknowledge(pub, ph, q, answerOf(answer, q.part)))
	}
}

// answerOf finds the answer for a partition; nil if there is none.
func answerOf(res *produce.Response, part *partition) *produce.ResponsePartition {
	if res == nil {
		return nil
	}
	for i := range res.Topics {
		if res.Topics[i].Topic != part.topic.name {
			continue
		}
		for j := range res.Topics[i].Partitions {
			if r := &res.Topics[i].Partitions[j]; r.Partition == part.index {
				return r
			}
		}
	}
	return nil
}

// acknowledge moves the queue on if its head stands where it was expected.
func (p *Producer) acknowledge(pub *Publication, ph *phase, q *queue, r *produce.ResponsePartition) error {
	b := &ph.batches[q.next]
	if r == nil {
		b.doubtful = true
		return fmt.Errorf("%s: %w", q.part, errNoAnswer)
	}
	switch outcomeOf(r.ErrorCode) {
	case done:
		if r.BaseOffset != b.base {
			return strayed(q.part, b.base, r.BaseOffset)
		}
		q.part.end = b.base + int64(b.count)
		q.next++
		return nil
	case unknown:
		b.doubtful = true
	case refused:
		return refuseBatch(pub, b, r)
	}
	return p.judge(q.part.String(), r.ErrorCode)
}

// strayed refuses an acknowledgement that is not at the predicted offset.
func strayed(part *partition, want, got int64) error {
	r := &Refusal{
		Thing:   part.String(),
		Problem: fmt.Sprintf("a batch was written at offset %d instead of %d: another program writes to the topic", got, want),
		Cure:    "stop the other writer and start again; the bridge then says whether topics and state still fit",
	}
	if got < want {
		r.Problem = fmt.Sprintf("a batch was written at offset %d instead of %d: the log has lost acknowledged records (an unclean leader election, or the topic was made anew)", got, want)
		r.Cure = restoreTopic
	}
	return r
}

// refuseBatch names the record that the broker refuses, or else the batch's first.
func refuseBatch(pub *Publication, b *batch, r *produce.ResponsePartition) error {
	index, detail := int32(0), r.ErrorMessage
	if len(r.RecordErrors) > 0 {
		index = r.RecordErrors[0].BatchIndex
		detail = cmp.Or(r.RecordErrors[0].BatchIndexErrorMessage, detail)
	}
	problem := fmt.Sprintf("the broker refuses a batch of %d records and %d bytes, record %d", b.count, b.size(), index)
	if key, ok := keyOf(pub.arena[b.from+frameSize:b.to], index); ok {
		problem += fmt.Sprintf(" with key %q", key)
	}
	if detail != "" {
		problem += " (" + detail + ")"
	}
	return &Refusal{Thing: b.part.String(), Problem: problem, Err: kafka.Error(r.ErrorCode), Cure: cureOf(r.ErrorCode)}
}

// keyOf reads the key of one record of a batch, for a message.
func keyOf(frame []byte, index int32) (string, bool) {
	var d decoder
	var r record
	d.reset(frame, 0)
	for {
		if more, err := d.next(&r); !more || err != nil {
			return "", false
		}
		if r.offset == int64(index) {
			return string(r.key), true
		}
	}
}

// maySent reports whether a request that failed with err may have reached the
// broker. It did not where no leader was known or no connection came about.
func maySent(err error) bool {
	for _, before := range []error{
		protocol.ErrNoTopic, protocol.ErrNoPartition, protocol.ErrNoLeader,
		kafka.BrokerNotAvailable, syscall.ECONNREFUSED,
	} {
		if errors.Is(err, before) {
			return false
		}
	}
	var op *net.OpError
	return !errors.As(err, &op) || op.Op != "dial"
}

// outage is the waiting between attempts, which also others are told of.
type outage struct {
	*attempts
	producer *Producer
	since    time.Time // of the first attempt that failed; zero: none has
}

func (p *Producer) outage(step string) *outage {
	return &outage{attempts: p.reader.attempts(step), producer: p}
}

func (o *outage) wait(ctx context.Context, err error) error {
	o.producer.metrics.retries.Inc()
	if o.since.IsZero() {
		o.since = time.Now()
		o.producer.metrics.waiting.Inc()
	}
	o.producer.heldUp.Store(&heldUp{step: o.step, since: o.since, err: err})
	return o.attempts.wait(ctx, err)
}

// over notes that an attempt was successful.
func (o *outage) over() {
	o.leave()
	o.attempts.over()
}

// leave ends the waiting, whatever came of it.
func (o *outage) leave() {
	if !o.since.IsZero() {
		o.since = time.Time{}
		o.producer.metrics.waiting.Dec()
		o.producer.heldUp.Store(nil)
	}
}

// heldUp is what a step waits for.
type heldUp struct {
	step  string
	since time.Time
	err   error
}

// HeldUp says what keeps the producer from writing: a step that is being tried
// again. Nil means that nothing does, or nothing that is known yet: the first
// attempt may take RequestTimeout to fail. It may be called at any time.
func (p *Producer) HeldUp() error {
	h := p.heldUp.Load()
	if h == nil {
		return nil
	}
	return fmt.Errorf("kafka does not answer since %s: %s: %w", h.since.UTC().Format(time.RFC3339), h.step, h.err)
}
