package sink

import (
	"context"
	"io"

	"github.com/segmentio/kafka-go/protocol"
	_ "github.com/segmentio/kafka-go/protocol/listoffsets" // registers the API, so that its version is negotiated
)

// listOffsetsVersion is that of Kafka 2.2 and later: a leader that does not yet
// know the high watermark of its epoch says so, instead of answering too low.
const listOffsetsVersion = 5

// The times of ListOffsets that are no times.
const (
	atEnd   int64 = -1 // the high watermark: the end of what readers see
	atStart int64 = -2 // the first offset that is still there
)

// offsetsRequest asks one broker for offsets of partitions that it leads, all in
// one request: kafka-go sends one on a connection of its own for each partition.
type offsetsRequest struct {
	broker     int32
	clientID   string
	partitions []wanted // offset: atStart, atEnd, or milliseconds since 1970-01-01 UTC
	version    int16
}

// offsetsResponse is the answer.
type offsetsResponse struct {
	partitions []foundOffset
}

type foundOffset struct {
	topic     []byte
	partition int32
	code      int16
	offset    int64 // −1: no record is as young as the time
}

var (
	_ protocol.RawExchanger  = (*offsetsRequest)(nil)
	_ protocol.BrokerMessage = (*offsetsRequest)(nil)
)

// ApiKey implements protocol.Message.
func (q *offsetsRequest) ApiKey() protocol.ApiKey { return protocol.ListOffsets }

// ApiKey implements protocol.Message.
func (*offsetsResponse) ApiKey() protocol.ApiKey { return protocol.ListOffsets }

// Broker routes the request.
func (q *offsetsRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	return brokerByID(cluster, q.broker)
}

// Required notes the negotiated version and asks for the raw exchange.
func (q *offsetsRequest) Required(versions map[protocol.ApiKey]int16) bool {
	q.version = versions[protocol.ListOffsets]
	return true
}

// RawExchange sends the request and reads the answer.
func (q *offsetsRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if err := checkVersion("ListOffsets", q.version, listOffsetsVersion); err != nil {
		return nil, err
	}
	_, r, err := rawExchange(rw, q.encode(), nil)
	if err != nil {
		return nil, err
	}
	answer := &offsetsResponse{}
	if err := answer.decode(r); err != nil {
		return nil, err
	}
	return answer, nil
}

func (q *offsetsRequest) encode() []byte {
	var w wireWriter
	w.begin(protocol.ListOffsets, listOffsetsVersion, q.clientID)
	w.int32(-1) // replica id: a client
	w.int8(0)   // read uncommitted: up to the high watermark
	w.int32(int32(topicRuns(q.partitions)))
	for i := 0; i < len(q.partitions); {
		n := topicRun(q.partitions[i:])
		w.string(q.partitions[i].topic)
		w.int32(int32(n))
		for _, p := range q.partitions[i : i+n] {
			w.int32(p.partition)
			w.int32(-1) // leader epoch: not known
			w.int64(p.offset)
		}
		i += n
	}
	return w.finish()
}

// The least bytes of an answer's array elements.
const (
	offsetsTopicSize     = 2 + 4
	offsetsPartitionSize = 4 + 2 + 8 + 8 + 4
)

// decode reads the answer behind its correlation id.
func (s *offsetsResponse) decode(r wireReader) error {
	r.int32() // throttle time: the broker holds the connection back itself
	for range r.count(offsetsTopicSize) {
		topic := r.string()
		for range r.count(offsetsPartitionSize) {
			f := foundOffset{topic: topic, partition: r.int32(), code: r.int16()}
			r.int64() // time of the record
			f.offset = r.int64()
			r.int32() // leader epoch
			s.partitions = append(s.partitions, f)
		}
	}
	if r.short {
		return errShortAnswer
	}
	return nil
}

// offsets asks for one offset of each cursor: atStart, atEnd, or the first one
// that is not older than a time in milliseconds (−1 if there is none). It asks
// again until the brokers answer or ctx is done.
func (r *reader) offsets(ctx context.Context, cursors []*cursor, at int64) ([]int64, error) {
	found := make([]int64, len(cursors))
	open := make([]*cursor, len(cursors))
	for i, c := range cursors {
		open[i] = &cursor{topic: c.topic, partition: c.partition, index: i}
	}
	again := r.attempts("read the ends of the topics")
	for {
		left, err := r.offsetsOnce(ctx, open, at, found)
		if len(left) == 0 {
			again.over()
			return found, nil
		}
		open = left
		if err := again.wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

// offsetsOnce asks each leader once. It returns the cursors that have no answer,
// and why the first of them has none.
func (r *reader) offsetsOnce(ctx context.Context, open []*cursor, at int64, found []int64) ([]*cursor, error) {
	groups, err := r.byLeader(ctx, open)
	if err != nil {
		return open, err
	}
	var left []*cursor
	var cause error
	for _, g := range groups {
		missing, err := r.offsetsFrom(ctx, g, at, found)
		if left = append(left, missing...); cause == nil {
			cause = err
		}
	}
	return left, cause
}

// offsetsFrom asks one leader.
func (r *reader) offsetsFrom(ctx context.Context, g group, at int64, found []int64) ([]*cursor, error) {
	q := &offsetsRequest{broker: g.leader, clientID: r.client.cfg.ClientID}
	for _, c := range g.cursors {
		q.partitions = append(q.partitions, wanted{c.topic, c.partition, at})
	}
	m, err := r.client.roundTrip(ctx, nil, q)
	if err != nil {
		return g.cursors, err
	}
	var left []*cursor
	var cause error
	answer := m.(*offsetsResponse).partitions
	for _, c := range g.cursors {
		err := errNoAnswer
		for i := range answer {
			if f := &answer[i]; f.partition == c.partition && string(f.topic) == c.topic {
				found[c.index] = f.offset
				err = kafkaError(f.code)
				break
			}
		}
		if err != nil {
			left = append(left, c)
			cause = c.failed(err)
		}
	}
	return left, cause
}
