package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/e2e/audit"
	"backstory/transform"
)

// partitions of each fake topic.
const partitions = 3

// kafka is what outlives a process: two topics of each table, the fence, and requests of dead
// sessions that may still land.
type kafka struct {
	mu     sync.Mutex
	rng    *rand.Rand
	log    [2][2][partitions][]transform.Stored // by table and topic; control records have a nil Table
	fence  int
	ghosts []request
	faults float64          // probability that a step dies
	held   [2]chan struct{} // a topic's requests wait until it is closed; nil: they do not
	unfit  error            // what is wrong with the topics
	// unread has the next process die before it reads the topics, once.
	unread bool
	// lands, if it is there, says once which requests land before the process dies.
	lands func(request) bool
}

// request is one partition's part of a publication.
type request struct {
	session   int
	table     int
	topic     transform.Topic
	partition int32
	records   []transform.Stored
	at        int64 // base offset that the session expects
}

// session is the number of the newest session.
func (k *kafka) session() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fence
}

func newKafka(seed uint64) *kafka { return &kafka{rng: rand.New(rand.NewPCG(seed, 2))} }

func partitionOf(key []byte) int32 {
	var sum int32
	for _, b := range key {
		sum = sum*31 + int32(b)
	}
	return (sum & 0x7fffffff) % partitions
}

// append lands a request if its session is not fenced and nothing is missing before it.
func (k *kafka) append(r request) bool {
	log := &k.log[r.table][r.topic][r.partition]
	if r.session < k.fence || r.at != int64(len(*log)) {
		return false
	}
	*log = append(*log, r.records...)
	return true
}

// land lets some packets of dead sessions arrive.
func (k *kafka) land() {
	k.ghosts = slices.DeleteFunc(k.ghosts, func(r request) bool {
		if k.rng.IntN(2) == 0 {
			return false
		}
		k.append(r)
		return true
	})
}

// crash is how the process dies in the tests: the error passes up through Run.
type crash struct{ at string }

func (c *crash) Error() string { return "crash while " + c.at }

// fakeSink is one process's session.
type fakeSink struct {
	k       *kafka
	session int
	ends    [2][2][partitions]int64 // predicted
	base    capture.LSN
}

func (s *fakeSink) dies(at string) error {
	if s.k.rng.Float64() < s.k.faults {
		return &crash{at}
	}
	return nil
}

func (s *fakeSink) Fence(context.Context) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.k.land()
	if err := s.dies("fencing"); err != nil {
		return err
	}
	s.k.fence++
	s.session = s.k.fence
	for table := range s.k.log {
		for t := range s.k.log[table] {
			for p, log := range s.k.log[table][t] {
				s.k.log[table][t][p] = append(log, transform.Stored{})
				s.ends[table][t][p] = int64(len(log)) + 1
			}
		}
	}
	return nil
}

func (s *fakeSink) HeldUp() error { return nil }

func (s *fakeSink) Recheck(context.Context) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	return s.k.unfit
}

func (s *fakeSink) Rebase(base capture.LSN) { s.base = base }

func (s *fakeSink) Renew(ctx context.Context) error { return s.Fence(ctx) }

func (s *fakeSink) Check(_ context.Context, marks []transform.Mark) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	for _, m := range marks {
		log := s.k.log[tableOf(m.Table.Name)][m.Topic][m.Partition]
		if int64(len(log)) < m.End || (m.LastAt >= 0 && log[m.LastAt].ID != m.Last) {
			return fmt.Errorf("%s, partition %d: not the record that is remembered at %d", m.Topic, m.Partition, m.LastAt)
		}
	}
	return nil
}

func (s *fakeSink) Fold(_ context.Context, t *transform.Table, topic transform.Topic, from []int64, fn func(*transform.Stored) error) ([]transform.Mark, error) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	if s.k.unread {
		s.k.unread = false
		return nil, &crash{"folding"}
	}
	s.k.land() // the fence keeps them out
	var marks []transform.Mark
	for p := range int32(partitions) {
		log := s.k.log[tableOf(t.Name)][topic][p]
		m := transform.Mark{Table: t, Topic: topic, Partition: p, End: int64(len(log)), LastAt: -1}
		for at := from[p]; at < m.End; at++ {
			if log[at].Table == nil {
				continue
			}
			if err := s.dies("folding"); err != nil {
				return nil, err
			}
			r := log[at]
			if err := fn(&r); err != nil {
				return nil, err
			}
			m.Last, m.LastAt = r.ID, at
		}
		marks = append(marks, m)
	}
	return marks, nil
}

func (s *fakeSink) Newest(_ context.Context, t *transform.Table, topic transform.Topic) ([]*transform.Stored, error) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	newest := make([]*transform.Stored, partitions)
	for p := range newest {
		for _, r := range s.k.log[tableOf(t.Name)][topic][p] {
			if r.Table != nil {
				newest[p] = &r
			}
		}
	}
	return newest, nil
}

func (s *fakeSink) Orphans(ctx context.Context, t *transform.Table, latestFrom []int64) error {
	newest, err := s.Newest(ctx, t, transform.Latest)
	if err != nil {
		return err
	}
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	for p, n := range newest {
		if n == nil || n.Offset < latestFrom[p] {
			continue
		}
		if !slices.ContainsFunc(s.k.log[tableOf(t.Name)][transform.Events][p], func(r transform.Stored) bool { return r.Table != nil && r.ID == n.ID }) {
			return fmt.Errorf("partition %d: event %s is missing", p, n.ID)
		}
	}
	return nil
}

func (s *fakeSink) Encode(events []transform.Event) (bridge.Publication, error) {
	var below [2][]int64
	for table := range below {
		below[table] = slices.Clone(s.ends[table][transform.Events][:])
	}
	return s.publication(events, below, true), nil
}

func (s *fakeSink) EncodeState(events []transform.Event, below []int64) (bridge.Publication, error) {
	return s.publication(events, [2][]int64{below, below}, false), nil // the events are of one table
}

type publication struct {
	s        *fakeSink
	requests [2][]request
	marks    []transform.Mark
}

func (s *fakeSink) publication(events []transform.Event, below [2][]int64, both bool) *publication {
	p := &publication{s: s}
	var parts [2][2][partitions][]transform.Stored
	for _, e := range events {
		table, part := tableOf(e.Table.Name), partitionOf(e.Key)
		r := transform.Stored{Event: clone(e), Partition: part, Base: s.base}
		if both {
			r.Topic = transform.Events
			parts[table][transform.Events][part] = append(parts[table][transform.Events][part], r)
		}
		r.Topic, r.EventsOffset = transform.Latest, below[table][part]
		latest := &parts[table][transform.Latest][part]
		*latest = slices.DeleteFunc(*latest, func(o transform.Stored) bool { return bytes.Equal(o.Key, e.Key) })
		*latest = append(*latest, r)
	}
	for table := range parts {
		for t := range parts[table] {
			for part, records := range parts[table][t] {
				if len(records) > 0 {
					p.add(request{session: s.session, table: table, topic: transform.Topic(t), partition: int32(part), records: records})
				}
			}
		}
	}
	return p
}

func (p *publication) add(r request) {
	end := &p.s.ends[r.table][r.topic][r.partition]
	r.at = *end
	*end += int64(len(r.records))
	for i := range r.records {
		r.records[i].Offset = r.at + int64(i)
	}
	last := r.records[len(r.records)-1]
	p.requests[r.topic] = append(p.requests[r.topic], r)
	p.marks = append(p.marks, transform.Mark{Table: last.Table, Topic: r.topic, Partition: r.partition, End: *end, Last: last.ID, LastAt: *end - 1})
}

func clone(e transform.Event) transform.Event {
	e.Key, e.Related, e.Data, e.State = bytes.Clone(e.Key), bytes.Clone(e.Related), bytes.Clone(e.Data), bytes.Clone(e.State)
	return e
}

func (p *publication) Events(ctx context.Context) error { return p.publish(ctx, transform.Events) }
func (p *publication) Latest(ctx context.Context) error { return p.publish(ctx, transform.Latest) }

// publish waits while the topic is held, then sends.
func (p *publication) publish(ctx context.Context, topic transform.Topic) error {
	p.s.k.mu.Lock()
	held := p.s.k.held[topic]
	p.s.k.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return p.send(topic)
}

func (p *publication) Marks() []transform.Mark { return p.marks }
func (p *publication) Release()                {}

// send appends the requests of a topic, or dies with some of them landed, some
// under way and some never sent.
func (p *publication) send(topic transform.Topic) error {
	k := p.s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := p.s.dies("publishing " + topic.String()); err != nil {
		for _, r := range p.requests[topic] {
			switch k.rng.IntN(3) {
			case 0:
				k.append(r)
			case 1:
				k.ghosts = append(k.ghosts, r)
			}
		}
		return err
	}
	lands := k.lands
	k.lands = nil
	for _, r := range p.requests[topic] {
		if lands != nil && !lands(r) {
			continue
		}
		if !k.append(r) {
			return errors.New("fenced, or out of sequence")
		}
	}
	if lands != nil {
		return &crash{"publishing " + topic.String()}
	}
	if err := p.s.dies("hearing of " + topic.String()); err != nil {
		return err
	}
	return nil
}

// records are a topic's of all tables as any consumer sees them, with keys and
// event types as the history has them.
func (k *kafka) records(topic transform.Topic) []audit.Record {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []audit.Record
	for table := range k.log {
		for _, log := range k.log[table][topic] {
			for i := range log {
				if log[i].Table != nil {
					out = append(out, record(&log[i], prefixes[table]))
				}
			}
		}
	}
	return out
}

func record(s *transform.Stored, prefix string) audit.Record {
	r := audit.Record{Key: prefix + string(s.Key), Value: s.Data, Partition: s.Partition, Offset: s.Offset, Time: time.UnixMicro(s.Time), Headers: map[string]string{
		"ce_sequence": string(transform.AppendSequence(nil, s.Place)),
		"ce_id":       s.ID.String(), "ce_type": strings.Replace(s.Type, "Article", "Product", 1), "ce_aggregateversion": strconv.FormatUint(s.Version, 10),
	}}
	if s.Topic == transform.Latest {
		r.Value = s.State
	}
	maps.DeleteFunc(r.Headers, func(_, v string) bool { return v == "" })
	if c := s.Cause.String(); c != "" {
		r.Headers["ce_cause"] = c
	}
	if s.Related != nil {
		r.Headers["ce_related"] = prefix + string(s.Related)
	}
	if s.Op == capture.OpRead {
		r.Headers["ce_op"] = "read"
	}
	return r
}
