package sink

import (
	"io"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	_ "github.com/segmentio/kafka-go/protocol/fetch" // registers the API, so that its version is negotiated
)

// fetchVersion is that of Kafka 2.3 and later; zstd needs 10.
const fetchVersion = 11

// wanted is one partition of a fetch and the offset to read it from.
type wanted struct {
	topic     string
	partition int32
	offset    int64
}

// fetchRequest asks one broker for the records of partitions that it leads. It
// is sent as it is, past kafka-go's own encoding, and so is the answer: kafka-go
// hangs on the batches of compacted topics, and takes five times as long.
//
// The request keeps its buffers; it may be sent again once RoundTrip has
// returned without an error. After an error a connection may still hold it.
type fetchRequest struct {
	broker     int32 // node id
	clientID   string
	maxWait    time.Duration // how long the broker waits for minBytes
	minBytes   int32
	maxBytes   int32 // of the answer; a larger first batch still comes
	eachBytes  int32 // of one partition
	partitions []wanted

	version int16
	request wireWriter
	body    []byte
	answer  fetchResponse
}

// fetchResponse is the answer. Its bytes belong to the request.
type fetchResponse struct {
	throttle   time.Duration
	partitions []fetched
}

// fetched is what the answer says of one partition.
type fetched struct {
	topic     []byte
	partition int32
	code      int16
	high      int64  // high watermark: the end that readers see
	start     int64  // log start offset
	records   []byte // record batches; the last one may be cut off
}

var (
	_ protocol.RawExchanger  = (*fetchRequest)(nil)
	_ protocol.BrokerMessage = (*fetchRequest)(nil)
)

// ApiKey implements protocol.Message.
func (q *fetchRequest) ApiKey() protocol.ApiKey { return protocol.Fetch }

// ApiKey implements protocol.Message.
func (*fetchResponse) ApiKey() protocol.ApiKey { return protocol.Fetch }

// Broker routes the request.
func (q *fetchRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	return brokerByID(cluster, q.broker)
}

// Required notes the negotiated version and asks for the raw exchange.
func (q *fetchRequest) Required(versions map[protocol.ApiKey]int16) bool {
	q.version = versions[protocol.Fetch]
	return true
}

// RawExchange sends the request and reads the answer.
func (q *fetchRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if err := checkVersion("Fetch", q.version, fetchVersion); err != nil {
		return nil, err
	}
	q.encode()
	body, r, err := rawExchange(rw, q.request.finish(), q.body)
	q.body = body
	if err != nil {
		return nil, err
	}
	if err := q.answer.decode(r); err != nil {
		return nil, err
	}
	return &q.answer, nil
}

func (q *fetchRequest) encode() {
	w := &q.request
	w.begin(protocol.Fetch, fetchVersion, q.clientID)
	w.int32(-1) // replica id: a client
	w.int32(int32(q.maxWait.Milliseconds()))
	w.int32(q.minBytes)
	w.int32(q.maxBytes)
	w.int8(0)   // read uncommitted: there is nothing but what is committed
	w.int32(0)  // session: none
	w.int32(-1) // session epoch: none
	w.int32(int32(topicRuns(q.partitions)))
	for i := 0; i < len(q.partitions); {
		n := topicRun(q.partitions[i:])
		w.string(q.partitions[i].topic)
		w.int32(int32(n))
		for _, p := range q.partitions[i : i+n] {
			w.int32(p.partition)
			w.int32(-1) // leader epoch: not known
			w.int64(p.offset)
			w.int64(-1) // log start offset: that of followers
			w.int32(q.eachBytes)
		}
		i += n
	}
	w.int32(0)   // forgotten topics
	w.string("") // rack
}

// topicRun is the number of partitions at the front that belong to one topic.
func topicRun(w []wanted) int {
	n := 1
	for n < len(w) && w[n].topic == w[0].topic {
		n++
	}
	return n
}

func topicRuns(w []wanted) int {
	runs := 0
	for i := 0; i < len(w); i += topicRun(w[i:]) {
		runs++
	}
	return runs
}

// The least bytes of an answer's array elements.
const (
	fetchedTopicSize     = 2 + 4
	fetchedPartitionSize = 4 + 2 + 3*8 + 4 + 4 + 4
	abortedSize          = 16
)

// decode reads the answer behind its correlation id.
func (s *fetchResponse) decode(r wireReader) error {
	s.partitions = s.partitions[:0]
	s.throttle = time.Duration(r.int32()) * time.Millisecond
	if code := r.int16(); code != 0 {
		return kafkaError(code)
	}
	r.int32() // session id
	for range r.count(fetchedTopicSize) {
		topic := r.string()
		for range r.count(fetchedPartitionSize) {
			f := fetched{topic: topic, partition: r.int32(), code: r.int16(), high: r.int64()}
			r.int64() // last stable offset
			f.start = r.int64()
			r.take(r.count(abortedSize) * abortedSize)
			r.int32() // preferred read replica
			f.records = r.bytes()
			s.partitions = append(s.partitions, f)
		}
	}
	if r.short {
		return errShortAnswer
	}
	return nil
}
