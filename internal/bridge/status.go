package bridge

import (
	"strings"
	"sync"
	"time"

	"backstory/capture"
	"backstory/transform"
)

// Status is what the bridge tells of itself, for /status and /readyz.
type Status struct {
	// Phase is starting, waiting for the slot, recovering, streaming,
	// reconnecting, stopped or failed.
	Phase string    `json:"phase"`
	Since time.Time `json:"since"`
	// Error says why the bridge does not stream; while it streams or recovers, what
	// keeps it from writing to Kafka.
	Error string `json:"error,omitempty"`
	// Confirmed is the LSN below which Postgres may discard WAL.
	Confirmed string `json:"confirmed_lsn,omitempty"`
	// LastCommit is the commit time of the newest change that is in both topics.
	LastCommit *time.Time `json:"last_commit,omitempty"`
	// Slot is left out where nobody asked for it: see Bridge.Slot.
	Slot   *SlotView     `json:"slot,omitempty"`
	Tables []TableStatus `json:"tables"`
}

// TableStatus is the part of one mapped table.
type TableStatus struct {
	Table     string `json:"table"`
	Slot      string `json:"slot,omitempty"` // set by who shows those of several bridges
	Aggregate string `json:"aggregate"`
	Events    string `json:"events_topic"`
	Latest    string `json:"latest_topic"`
	Published uint64 `json:"events_published"` // since the start of the process
	// EventsEnds and LatestEnds are the ends of the topics' partitions, as far as
	// the state is committed.
	EventsEnds []int64        `json:"events_ends,omitempty"`
	LatestEnds []int64        `json:"latest_ends,omitempty"`
	Backfill   BackfillStatus `json:"backfill"`
	// Again is the number of rows to be read from the table because a change of
	// them could not be completed.
	Again int `json:"rows_to_read_again"`
	// ColumnsChanged is there while rows may have the columns of before in the topics.
	ColumnsChanged *ColumnsChanged `json:"columns_changed,omitempty"`
}

// Is reports whether a name, with or without its schema, is the table's.
func (t *TableStatus) Is(name string) bool {
	_, bare, _ := strings.Cut(t.Table, ".")
	return name == t.Table || name == bare
}

// BackfillStatus is how far the reading of a table is.
type BackfillStatus struct {
	// Phase is waiting, running, checking (the aggregates whose rows were not
	// met), paused, waiting for a standby or done; none if the table is not to be
	// read (backfill.initial) or nothing is known yet; failed if it was asked for and
	// the server would not have it.
	Phase         string     `json:"phase"`
	Error         string     `json:"error,omitempty"` // why it failed
	Rows          int64      `json:"rows"`
	EstimatedRows int64      `json:"estimated_rows,omitempty"` // by pg_class.reltuples, corrected as it goes; 0: unknown
	RowsPerSecond float64    `json:"rows_per_second,omitempty"`
	SecondsLeft   float64    `json:"seconds_left,omitempty"`
	Events        int64      `json:"events"` // published, or that a dry run would publish
	Equal         int64      `json:"rows_equal"`
	Gone          int64      `json:"rows_gone"` // aggregates whose row was not there any more
	Reconcile     bool       `json:"reconcile"`
	Where         string     `json:"where,omitempty"`
	Began         *time.Time `json:"began,omitempty"`
	DryRun        *DryRun    `json:"dry_run,omitempty"`
}

// statusBoard collects the status from the goroutines that know a part of it.
type statusBoard struct {
	mu     sync.Mutex
	status Status
	tables map[*transform.Table]*TableStatus
	ids    []uint16 // of the tables in the state; empty before they are known
}

func newStatusBoard(m *transform.Mapping) *statusBoard {
	b := &statusBoard{tables: map[*transform.Table]*TableStatus{}}
	b.status.Tables = make([]TableStatus, len(m.Tables))
	for i, t := range m.Tables {
		b.status.Tables[i] = TableStatus{Table: t.Schema + "." + t.Name, Aggregate: t.Aggregate,
			Events: t.Topics.Events, Latest: t.Topics.Latest, Backfill: BackfillStatus{Phase: "none"}}
		b.tables[t] = &b.status.Tables[i]
	}
	return b
}

// Phases in which the sink is at work.
const (
	recovering = "recovering"
	streaming  = "streaming"
)

// Status returns a copy of what is known now.
func (b *Bridge) Status() Status {
	b.status.mu.Lock()
	defer b.status.mu.Unlock()
	s := b.status.status
	if s.Phase == streaming || s.Phase == recovering {
		if err := b.sink.HeldUp(); err != nil {
			s.Error = err.Error()
		}
	}
	s.Tables = append([]TableStatus(nil), s.Tables...)
	for i, id := range b.status.ids {
		partitions := b.mapping.Tables[i].Topics.Partitions
		s.Tables[i].Again = len(b.store.AgainKeys(id))
		if changed, err := b.memory.reshaped(id); err == nil { // else the bridge itself stops at it
			s.Tables[i].ColumnsChanged = changed
		}
		s.Tables[i].EventsEnds = b.ends(id, transform.Events, partitions)
		s.Tables[i].LatestEnds = b.ends(id, transform.Latest, partitions)
	}
	return s
}

// ends are those that the state remembers; none before the first recovery, or if
// the state can't be read, which the bridge itself will stop at.
func (b *Bridge) ends(table uint16, topic transform.Topic, partitions int32) []int64 {
	var ends []int64
	for p := range partitions {
		mark, ok, err := b.memory.mark(markName(table, topic, p))
		if !ok || err != nil {
			return nil
		}
		ends = append(ends, mark.End)
	}
	return ends
}

// known takes in which numbers the tables have in the state.
func (b *statusBoard) known(tables []*transform.Table) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ids = b.ids[:0]
	for _, t := range tables {
		b.ids = append(b.ids, t.ID)
	}
}

func (b *statusBoard) phase(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Phase, b.status.Since, b.status.Error = name, time.Now().UTC(), ""
	if err != nil {
		b.status.Error = err.Error()
	}
}

func (b *statusBoard) confirmed(lsn capture.LSN) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Confirmed = lsn.String()
}

func (b *statusBoard) backfill(t *transform.Table, s BackfillStatus) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tables[t].Backfill = s
}

// settled adds a durable piece.
func (b *statusBoard) settled(p *piece) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range p.out.Events {
		b.tables[p.out.Events[i].Table].Published++
	}
	if p.time != 0 {
		t := time.UnixMicro(p.time).UTC()
		b.status.LastCommit = &t
	}
}
