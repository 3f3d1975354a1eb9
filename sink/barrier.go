package sink

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"
)

// stranger is a producer id, not the session's, that a partition still knows. It
// is that of a former session if the cluster has forgotten the transactional id,
// has used up its epochs, or if the configured id was changed: the fence does not
// reach it, because brokers compare epochs of one producer id.
type stranger struct {
	part  *partition
	id    int64
	epoch int16 // the newest that its session can have
}

// barriers ends the strangers: a record with the stranger's id and its next epoch
// goes into the partition, and what comes with the former epoch is refused from
// then on. Readers skip the record. Brokers without DescribeProducers (before
// Kafka 2.8) cannot be asked, and there the transactional id alone must do.
func (p *Producer) barriers(ctx context.Context, s session) error {
	return p.insist(ctx, "end former producers", func(ctx context.Context) error {
		found, err := p.strangers(ctx, s)
		if errors.Is(err, errNoDescribe) {
			p.log.Debug("brokers do not describe producers: kafka 2.8 or later does")
			return nil
		}
		if err != nil {
			return err
		}
		for _, f := range found {
			if p.ended[f] {
				continue
			}
			next, err := p.barrier(ctx, f)
			if err != nil {
				return err
			}
			p.ended[next] = true
			p.log.Warn("a former producer was ended", "topic", f.part.topic.name,
				"partition", f.part.index, "producer_id", f.id, "epoch", f.epoch)
		}
		return nil
	})
}

// strangers asks the leaders of all partitions.
func (p *Producer) strangers(ctx context.Context, s session) ([]stranger, error) {
	var cursors []*cursor
	for _, t := range p.topics {
		for i := range t.parts {
			cursors = append(cursors, &cursor{topic: t.name, partition: int32(i), index: t.index})
		}
	}
	groups, err := p.reader.byLeader(ctx, cursors)
	if err != nil {
		return nil, err
	}
	var out []stranger
	for _, g := range groups {
		q := &producersRequest{broker: g.leader, clientID: p.cfg.ClientID}
		for _, c := range g.cursors {
			q.partitions = append(q.partitions, wanted{topic: c.topic, partition: c.partition})
		}
		res, err := p.client.roundTrip(ctx, nil, q)
		if err != nil {
			return nil, err
		}
		for _, f := range res.(*producersResponse).found {
			t := p.byName(f.topic)
			if f.code != 0 {
				return nil, p.judge(fmt.Sprintf("topic %s partition %d", f.topic, f.partition), f.code)
			}
			if t == nil || f.partition < 0 || int(f.partition) >= len(t.parts) || f.id == s.id {
				continue
			}
			out = append(out, stranger{&t.parts[f.partition], f.id, f.newest()})
		}
	}
	return out, nil
}

// barrier writes the record and returns the stranger as it then is.
func (p *Producer) barrier(ctx context.Context, f stranger) (stranger, error) {
	if f.epoch == math.MaxInt16 {
		return f, nil // brokers never give the last epoch away
	}
	next := stranger{f.part, f.id, f.epoch + 1}
	res, err := p.client.roundTrip(ctx, nil, &rawproduce.Request{
		Acks: acksAll, Timeout: int32(p.cfg.RequestTimeout.Milliseconds() * 4 / 5),
		Topics: []rawproduce.RequestTopic{{Topic: f.part.topic.name, Partitions: []rawproduce.RequestPartition{{
			Partition: f.part.index,
			RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(barrierBatch(next, time.Now().UnixMilli()))},
		}}}},
	})
	if err != nil {
		return f, err
	}
	answer, _ := res.(*produce.Response)
	r := answerOf(answer, f.part)
	switch {
	case r == nil:
		return f, fmt.Errorf("%s: %w", f.part, errNoAnswer)
	case outcomeOf(r.ErrorCode) == ended:
		// It has moved on since it was asked for: ask again.
		return f, fmt.Errorf("%s: producer %d goes on: %w", f.part, f.id, kafka.Error(r.ErrorCode))
	}
	return next, p.judge(f.part.String(), r.ErrorCode)
}

// barrierBatch is a batch with one record, which has no value and one header.
func barrierBatch(s stranger, now int64) []byte {
	body := []byte{0, 0, 0} // attributes, time and offset deltas
	body = binary.AppendVarint(body, int64(len(BarrierKey)))
	body = append(body, BarrierKey...)
	body = append(body, 1, 1<<1) // null value, one header
	body = appendHeader(body, HeaderBarrier, "1")

	w := batchWriter{count: 1, first: now, newest: now}
	frame := make([]byte, frameSize+batchRecordsAt)
	frame = binary.AppendVarint(frame, int64(len(body)))
	frame = append(frame, body...)
	w.head(frame, codecNone)
	part := &partition{} // its sequence is that of a new epoch
	b := batch{part: part, to: len(frame), count: 1}
	b.stamp(frame, session{id: s.id, epoch: s.epoch})
	return frame
}

// describeProducers is the API key, which the client library does not know.
const describeProducers protocol.ApiKey = 61

// errNoDescribe is the answer for a broker that does not have the API.
var errNoDescribe = lasting{errors.New("the broker does not have DescribeProducers")}

// producersRequest asks one broker which producers the partitions know that it
// leads. It is sent past the library's encoding.
type producersRequest struct {
	broker     int32
	clientID   string
	partitions []wanted // without offsets
	known      bool
}

// producersResponse is the answer.
type producersResponse struct{ found []activeProducer }

type activeProducer struct {
	topic     string
	partition int32
	code      int16 // not 0: the partition's answer, and no producer
	id        int64
	epoch     int32
	sequence  int32 // of its last record at this epoch; -1: only a marker came
}

// newest is the newest epoch that a session with the id can have: a session
// follows its marker by one.
func (a *activeProducer) newest() int16 {
	if a.sequence < 0 {
		return int16(min(a.epoch+1, math.MaxInt16))
	}
	return int16(a.epoch)
}

var (
	_ protocol.RawExchanger  = (*producersRequest)(nil)
	_ protocol.BrokerMessage = (*producersRequest)(nil)
)

// ApiKey implements protocol.Message.
func (q *producersRequest) ApiKey() protocol.ApiKey { return describeProducers }

// ApiKey implements protocol.Message.
func (*producersResponse) ApiKey() protocol.ApiKey { return describeProducers }

// Broker routes the request.
func (q *producersRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	return brokerByID(cluster, q.broker)
}

// Required notes whether the broker has the API and asks for the raw exchange.
func (q *producersRequest) Required(versions map[protocol.ApiKey]int16) bool {
	_, q.known = versions[describeProducers]
	return true
}

// RawExchange sends the request and reads the answer.
func (q *producersRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if !q.known {
		return nil, errNoDescribe
	}
	_, r, err := rawExchange(rw, q.encode(), nil)
	if err != nil {
		return nil, err
	}
	answer := &producersResponse{}
	return answer, answer.decode(r)
}

// encode writes version 0, which is of the flexible kind: lengths are varints
// with one added, and every structure ends with its tags.
func (q *producersRequest) encode() []byte {
	var w wireWriter
	w.begin(describeProducers, 0, q.clientID)
	w.int8(0) // tags of the header
	w.b = binary.AppendUvarint(w.b, uint64(topicRuns(q.partitions))+1)
	for i := 0; i < len(q.partitions); {
		n := topicRun(q.partitions[i:])
		name := q.partitions[i].topic
		w.b = binary.AppendUvarint(w.b, uint64(len(name))+1)
		w.b = append(w.b, name...)
		w.b = binary.AppendUvarint(w.b, uint64(n)+1)
		for _, p := range q.partitions[i : i+n] {
			w.int32(p.partition)
		}
		w.int8(0)
		i += n
	}
	w.int8(0)
	return w.finish()
}

// decode reads the answer behind its correlation id.
func (s *producersResponse) decode(r wireReader) error {
	skipTags(&r) // of the header
	r.int32()    // throttle time
	for range compactLength(&r) {
		topic := string(r.take(compactLength(&r)))
		for range compactLength(&r) {
			part, code := r.int32(), r.int16()
			r.take(compactLength(&r)) // message
			if code != 0 {
				s.found = append(s.found, activeProducer{topic: topic, partition: part, code: code})
			}
			for range compactLength(&r) {
				s.found = append(s.found, activeProducer{topic: topic, partition: part,
					id: r.int64(), epoch: r.int32(), sequence: r.int32()})
				r.int64() // last time
				r.int32() // coordinator's epoch
				r.int64() // start of an open transaction
				skipTags(&r)
			}
			skipTags(&r)
		}
		skipTags(&r)
	}
	if r.short {
		return errShortAnswer
	}
	return nil
}

// compactLength reads a length; null is 0. No element is shorter than a byte.
func compactLength(r *wireReader) int {
	n := uvarint(r)
	if n > uint64(len(r.b))+1 {
		r.b, r.short = nil, true
		return 0
	}
	return max(int(n)-1, 0)
}

func uvarint(r *wireReader) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.short = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func skipTags(r *wireReader) {
	for n := uvarint(r); n > 0 && !r.short; n-- {
		uvarint(r) // the tag
		size := uvarint(r)
		if size > uint64(len(r.b)) {
			r.b, r.short = nil, true
			return
		}
		r.take(int(size))
	}
}
