package transform

import (
	"backstory/capture"
)

// Topic names the two topics of a table.
type Topic uint8

// The topics.
const (
	Events Topic = iota // every event, kept by retention
	Latest              // the newest state of each aggregate, compacted
)

// String returns "events" or "latest".
func (t Topic) String() string {
	if t == Latest {
		return "latest"
	}
	return "events"
}

// Cause says why an event exists when no statement of the application asked for
// exactly that.
type Cause uint8

// The causes, as the ce_cause header spells them.
const (
	NoCause        Cause = iota
	Truncated            // "truncate": the table was truncated
	Reconciliation       // "reconciliation": a backfill found a difference
	KeyChanged           // "key-changed": the primary key was changed; Related is the other id
	SchemaChange         // "schema-change": a row differs because the table's columns changed
)

// String returns the header's value; empty for NoCause.
func (c Cause) String() string {
	switch c {
	case Truncated:
		return "truncate"
	case Reconciliation:
		return "reconciliation"
	case KeyChanged:
		return "key-changed"
	case SchemaChange:
		return "schema-change"
	}
	return ""
}

// EventID identifies an event for ever: a UUID version 8 (RFC 9562, name-based
// with SHA-256) of position, event index, aggregate type and id.
type EventID [16]byte

// Place orders the events of one aggregate: the position of the change and the
// index of the event in it, from 1. It is what the ce_sequence header says.
type Place struct {
	Pos   capture.Position
	Index uint16
}

// Compare orders places; the zero Place is below every other.
func (p Place) Compare(q Place) int {
	if c := p.Pos.Compare(q.Pos); c != 0 {
		return c
	}
	return int(p.Index) - int(q.Index)
}

// Event is an immutable fact about one aggregate. The byte slices belong to the
// Output that the event was made in, or to the reader that handed it out.
type Event struct {
	ID      EventID
	Type    string // ce_type, with prefix and suffix: "PriceChanged.v1"
	Table   *Table
	Key     []byte // aggregate id: record key and ce_subject
	Version uint64 // ce_aggregateversion, from 1
	Place   Place
	XID     uint32 // 0: absent (backfill)
	Time    int64  // microseconds since 1970-01-01 UTC: commit time, or read time of the chunk
	Op      capture.Op
	Cause   Cause
	Related []byte // the other aggregate id of a changed key; else nil
	Context *capture.Context
	Data    []byte // JSON {"old":{…},"new":{…},"reason":…}
	State   []byte // JSON image of the aggregate after this event; nil once it is deleted
}

// Entry is what the bridge remembers of one aggregate: the value and headers of
// its newest record in the latest topic.
//
// Version 0 is a note: the state does not know the aggregate, but the stream
// brought a change of it (XID) that could not become an event. A deleted
// aggregate that is noted keeps its Version.
type Entry struct {
	Version uint64
	Place   Place  // of the newest event; of a note: of the noted change, Index 0
	XID     uint32 // transaction of the last change; 0: a backfill's row, or unknown
	Image   []byte // JSON; nil of a deleted aggregate and of a note
}

// Exists reports whether the aggregate is known and not deleted.
func (e *Entry) Exists() bool { return e.Image != nil }

// States is the state as a change finds it: what earlier changes wrote is
// there, committed or not. Tables are told apart by Table.ID.
type States interface {
	// Get returns the entry of an aggregate and whether there is one. The image
	// is valid until the States is committed or dropped.
	Get(table uint16, key []byte) (Entry, bool, error)
	// Put writes it. Key and image are copied.
	Put(table uint16, key []byte, e Entry) error
	// Again asks that the row be read from the table: a change of it could not
	// be completed. Key is copied.
	Again(table uint16, key []byte) error
	// OldImage returns a copy of what SetOldImage has stored for a position; nil
	// if there is nothing.
	OldImage(pos capture.Position) []byte
	// SetOldImage stores the image that an aggregate had before the change at pos
	// gave it another key (see Transformer.Moved); nil takes it away. Image is
	// copied.
	SetOldImage(pos capture.Position, image []byte)
}

// Mark is the end of one partition of one topic as the bridge knows it.
type Mark struct {
	Table     *Table
	Topic     Topic
	Partition int32
	End       int64   // offset that the next record will get
	Last      EventID // ce_id of the newest record below End; zero if there is none
	LastAt    int64   // offset of that record; -1 if there is none. Control records may lie between it and End
}

// Stored is a record of either topic as a reader finds it.
type Stored struct {
	Event
	Topic     Topic
	Partition int32
	Offset    int64
	// EventsOffset is the ce_eventsoffset header of a latest record: all events
	// below it in the same partition of the events topic are in latest already.
	EventsOffset int64
	// Source is the ce_source header without the fragment that tells the topics
	// apart: of which database and table the record is.
	Source string
	// Former is the ce_formersource header: which other sources the topic had by
	// then. Not to be changed.
	Former []string
	// Base is the ce_sequencebase header: what had been added to the positions of
	// the WAL when the record was written; mostly 0.
	Base capture.LSN
}
