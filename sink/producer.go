package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"backstory/capture"
	"backstory/transform"
)

// Producer publishes events to the topics of a mapping, and reads them back.
// One goroutine may publish while another encodes; everything else is for one
// goroutine at a time. Fence comes before all of it.
type Producer struct {
	cfg             Config
	client          *client
	reader          *reader
	log             *slog.Logger
	metrics         *metrics
	transactionalID string

	tables  map[*transform.Table]*tableTopics
	topics  []*topicLog // all topics, the dead-letter topic last
	names   []string    // of topics
	dead    *topicLog   // nil: none is configured
	foreign bool        // see Foreign

	session session
	ended   map[stranger]bool // producers that a barrier of this process has ended
	over    atomic.Bool       // the session must not write any more
	encoder encoder
	planned uint64 // number of the session that the encoder plans offsets of; 0: the plan is void
	heldUp  atomic.Pointer[heldUp]

	mu   sync.Mutex
	free []*Publication
}

// tableTopics are the two topics of a table.
type tableTopics struct {
	table     *transform.Table
	events    *topicLog
	latest    *topicLog
	slot      int // partitions of the events topics of the tables before
	sources   sources
	shared    [2]sharedHeaders // by topic
	named     int              // former sources of the table that shared names
	stateType string           // ce_type in the latest topic
}

// topicLog is what the producer knows of a topic.
type topicLog struct {
	name  string
	index int // in Producer.topics
	kind  transform.Topic
	table *transform.Table // nil: the dead-letter topic
	parts []partition
	// looked: the newest records were compared with the table's sources.
	looked bool
	limit  int // max.message.bytes: of a batch, from its base offset on

	records, bytes prometheus.Counter
	publish        prometheus.Observer
}

// partition is the end of a partition as the session predicts it.
type partition struct {
	topic *topicLog
	index int32

	// Of the encoder.
	planned int64             // offset that the next record to be encoded will get
	last    transform.EventID // of the record before it
	// reach is planned as of the newest publication: the log can't be longer by what
	// this session writes. For Recheck, which may ask at any time.
	reach atomic.Int64

	// Of the publishing side.
	end      int64 // offset behind the newest acknowledged record
	sequence int32 // of the next record to be sent
}

// String names the partition in messages.
func (p *partition) String() string {
	return "topic " + p.topic.name + " partition " + strconv.Itoa(int(p.index))
}

// Open connects to Kafka, makes the topics of the mapping that are missing, and
// checks those that are there. It waits for brokers that cannot be reached until
// ctx is done; the error then says what was wrong. It returns a *Refusal for
// topics or rights that must be mended, a *ConfigError for a wrong configuration.
//
// Topics whose newest records are of another source than the tables are a *Refusal
// too, before anything is made; see [transform.Table.Former] for those that may be.
//
// The slot and the topics name the bridge: two with both equal fence each other.
func Open(ctx context.Context, cfg Config, m *transform.Mapping, id capture.Identity, slot string, log *slog.Logger, reg prometheus.Registerer) (*Producer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	metrics, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	p := &Producer{
		cfg: cfg, log: log, metrics: metrics, transactionalID: cfg.transactionalID(m, slot),
		tables: make(map[*transform.Table]*tableTopics), ended: make(map[stranger]bool),
	}
	p.over.Store(true) // until there is a session
	if err := p.lay(m, id); err != nil {
		return nil, err
	}
	if p.client, err = newClient(cfg, log, p.names...); err != nil {
		return nil, err
	}
	p.reader = newReader(p.client, log)
	if err := p.ready(ctx); err != nil {
		p.client.close()
		return nil, err
	}
	return p, nil
}

// ready makes or checks the topics, and the rights to them.
func (p *Producer) ready(ctx context.Context) error {
	if err := p.prepareTopics(ctx); err != nil {
		return err
	}
	if err := p.checkRights(ctx); err != nil {
		return err
	}
	return p.prepareEncoder()
}

// transactionalID names the bridge of a slot by what it alone writes: its topics, of
// which the events topic that comes first by name stands for all. The database is not
// in it: a copy of it, with the same slot, must not fence this bridge, and after a move
// to another server the former bridge of the topics must be fenced.
func (c *Config) transactionalID(m *transform.Mapping, slot string) string {
	if c.TransactionalID != "" {
		return c.TransactionalID
	}
	id := "backstory-" + slot
	var topics []string
	for _, t := range m.Tables {
		topics = append(topics, t.Topics.Events)
	}
	if len(topics) > 0 {
		id += "-" + slices.Min(topics)
	}
	return id
}

// lay lists the topics of the mapping.
func (p *Producer) lay(m *transform.Mapping, id capture.Identity) error {
	seen := make(map[string]string)
	add := func(name, owner string, kind transform.Topic, table *transform.Table) (*topicLog, error) {
		if !validTopic(name) {
			return nil, &ConfigError{Problems: []string{fmt.Sprintf("%s: %q is no topic name", owner, name)}}
		}
		if other, ok := seen[name]; ok {
			return nil, &ConfigError{Problems: []string{fmt.Sprintf("topic %s is that of %s and of %s: each needs its own", name, other, owner)}}
		}
		seen[name] = owner
		t := &topicLog{name: name, index: len(p.topics), kind: kind, table: table}
		label := kind.String()
		if table == nil {
			label = "dead_letter"
		}
		t.records, t.bytes = p.metrics.records.WithLabelValues(name), p.metrics.bytes.WithLabelValues(name)
		t.publish = p.metrics.publish.WithLabelValues(label)
		p.topics, p.names = append(p.topics, t), append(p.names, name)
		return t, nil
	}
	for _, table := range m.Tables {
		owner := "table " + table.Schema + "." + table.Name
		events, err := add(table.Topics.Events, owner+" (events)", transform.Events, table)
		if err != nil {
			return err
		}
		latest, err := add(table.Topics.Latest, owner+" (latest)", transform.Latest, table)
		if err != nil {
			return err
		}
		t := &tableTopics{
			table: table, events: events, latest: latest,
			sources:   sources{table: table, own: transform.SourceOf(id, table.Schema, table.Name)},
			stateType: table.TypePrefix + table.Aggregate + StateType,
		}
		t.share()
		p.tables[table] = t
	}
	if p.cfg.DeadLetterTopic == "" {
		return nil
	}
	var err error
	p.dead, err = add(p.cfg.DeadLetterTopic, "dead_letter_topic", transform.Events, nil)
	return err
}

// Rebase has all records from now on say that base was added to the positions of
// the WAL: the database was restored, and its positions would otherwise lie below
// those that the topics have. The state has it too; if that is lost, the records
// tell. Nothing may be encoded meanwhile.
func (p *Producer) Rebase(base capture.LSN) { p.encoder.writer.records.base = base }

func (p *Producer) prepareEncoder() error {
	deflate, err := newDeflater(codecs[p.cfg.Compression])
	if err != nil {
		return err
	}
	p.encoder = encoder{
		tables: p.tables, dead: p.dead,
		limit:  min(batchTarget, p.cfg.MaxRequest) - batchRecordsAt,
		writer: batchWriter{deflate: deflate},
	}
	for _, t := range p.topics {
		if t.table != nil && t.kind == transform.Events {
			p.tables[t.table].slot = p.encoder.slots
			p.encoder.slots += len(t.parts)
		}
	}
	return nil
}

// topicOf returns one topic of a mapped table.
func (p *Producer) topicOf(table *transform.Table, kind transform.Topic) *topicLog {
	t := p.tables[table]
	if kind == transform.Latest {
		return t.latest
	}
	return t.events
}

// partitions counts the partitions of all topics.
func (p *Producer) partitions() int {
	n := 0
	for _, t := range p.topics {
		n += len(t.parts)
	}
	return n
}

// Encode builds the record batches of events, which must be those of whole
// changes, the events of a change and aggregate one after another. Calls are in
// the order of publication; a publication may be encoded while the one before is
// on its way. Nothing of the events is kept, and nothing is held back: the caller
// bounds the bytes, by the size of a publication and by how many it releases before
// the next. It returns a *Refusal for a record that is too large for its topic, a
// *SessionError if the session is over.
func (p *Producer) Encode(events []transform.Event) (*Publication, error) {
	return p.encode(events, nil)
}

// EncodeState builds records of the latest topic alone, for states that the
// events topic already tells of; all events are of one table. below has for each
// partition the offset below which every event was in latest before. Events of
// the publication is a no-op.
func (p *Producer) EncodeState(events []transform.Event, below []int64) (*Publication, error) {
	if below == nil {
		return nil, errors.New("encode states: the offsets of the events topic are missing")
	}
	return p.encode(events, below)
}

func (p *Producer) encode(events []transform.Event, below []int64) (*Publication, error) {
	if err := p.session.usable("encode", p.over.Load() || p.planned != p.session.number); err != nil {
		return nil, err
	}
	for _, t := range p.tables {
		t.share()
	}
	pub := p.take()
	if err := p.encoder.encode(pub, events, below); err != nil {
		p.planned = 0 // some partitions have moved on
		return nil, err
	}
	pub.announce()
	p.metrics.parked.Add(float64(pub.parked))
	p.metrics.inFlight.Add(float64(pub.bytes))
	return pub, nil
}

// Bounds of the publications that are kept for reuse: as many as are alive at
// once, and none that one huge transaction has blown up.
const (
	keepPublications = 3
	keepArena        = 32 << 20
)

func (p *Producer) take() *Publication {
	p.mu.Lock()
	defer p.mu.Unlock()
	var pub *Publication
	if n := len(p.free); n > 0 {
		pub, p.free = p.free[n-1], p.free[:n-1]
	} else {
		pub = &Publication{}
	}
	pub.producer, pub.session = p, p.session.number
	return pub
}

func (p *Producer) release(pub *Publication) {
	pub.producer = nil
	p.metrics.inFlight.Sub(float64(pub.bytes))
	unfinished := pub.letters.open() || pub.events.open() || pub.latest.open()
	if pub.dirty || unfinished || cap(pub.arena) > keepArena {
		return
	}
	pub.arena, pub.bytes, pub.parked, pub.marks = pub.arena[:0], 0, 0, pub.marks[:0]
	pub.letters.reset()
	pub.events.reset()
	pub.latest.reset()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < keepPublications {
		p.free = append(p.free, pub)
	}
}

// Close gives the connections back. It may be called twice. What is on its way
// ends with its ctx.
func (p *Producer) Close() error {
	p.over.Store(true)
	p.client.close()
	return nil
}
