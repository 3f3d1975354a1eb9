package capture

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/jackc/pglogrepl"
)

// LSN is a byte position in the write-ahead log of one cluster and timeline.
type LSN = pglogrepl.LSN

// Kind separates the two sources of positions, because a watermark's LSN can
// equal the commit LSN of the transaction that follows it.
type Kind uint8

// The kinds, in the order in which they sort at equal LSN.
const (
	KindBackfill Kind = 0 // the LSN is that of a chunk's watermark
	KindChange   Kind = 1 // the LSN is that of a transaction's commit record
)

// Position is the place of a change in the total order of changes. It is the
// same at every redelivery: for a streamed change the commit LSN of its
// transaction and the ordinal of the row change in it (row changes of all
// published tables count, messages do not), for a row read by a backfill the LSN
// of the chunk's watermark and the ordinal of the row in the chunk.
type Position struct {
	LSN   LSN
	Kind  Kind
	Index uint32 // from 1; 0 only in the zero Position
}

// Compare orders positions; the zero Position is below every other.
func (p Position) Compare(q Position) int {
	if c := cmp.Compare(p.LSN, q.LSN); c != 0 {
		return c
	}
	if c := cmp.Compare(p.Kind, q.Kind); c != 0 {
		return c
	}
	return cmp.Compare(p.Index, q.Index)
}

// String is for messages to people: "0/15A2F30 change 42".
func (p Position) String() string {
	what := "change"
	if p.Kind == KindBackfill {
		what = "row"
	}
	return fmt.Sprintf("%s %s %d", p.LSN, what, p.Index)
}

// Op says what a change did.
type Op uint8

// The operations. OpRead is a row that a backfill found in the table.
const (
	OpInsert Op = iota + 1
	OpUpdate
	OpDelete
	OpTruncate
	OpRead
)

// String returns the name that the ce_op header carries.
func (o Op) String() string {
	switch o {
	case OpInsert:
		return "insert"
	case OpUpdate:
		return "update"
	case OpDelete:
		return "delete"
	case OpTruncate:
		return "truncate"
	case OpRead:
		return "read"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// ValueKind tells text from its three kinds of absence.
type ValueKind uint8

// The kinds of a column value.
const (
	Absent    ValueKind = iota // the tuple says nothing of the column: not part of the key in an old key tuple
	Null                       // SQL NULL
	Text                       // Data holds the value as Postgres text
	Unchanged                  // a TOASTed value that the update did not touch; WAL does not have it
)

// Value is one column of one row, as Postgres prints it under the settings that
// the package pins.
type Value struct {
	Kind ValueKind
	Data []byte // only of Text; owned by the Batch or Chunk
}

// Column describes a column of a Relation.
type Column struct {
	Name string
	OID  uint32 // type as declared
	Base uint32 // OID with domains unwrapped
	Elem uint32 // of an array: element type with domains unwrapped; else 0
	// Delim stands between the elements of an array where that is not a comma:
	// ';' of box, ':' of PostGIS' geometry; else 0.
	Delim byte
	// Inner says what the elements are made of where they are arrays themselves (of
	// a domain over an array); else nil.
	Inner *ArrayType
	Key   bool  // part of the replica identity
	Mod   int32 // type modifier; −1: none
	// Since is the position of WAL from which on this column, with this name and
	// type, has been the one of that name: what is known of a row from a change
	// that committed there or later can stand for a value that WAL leaves out. 0: for
	// as long as anything is known. [Never]: nothing can.
	Since LSN
	// Filled: an old tuple may say NULL where the row had the column's default (a
	// column that was added with one).
	Filled bool
}

// Never is the Since of a column that is not known to be the one of before.
const Never LSN = math.MaxUint64

// ArrayType says what an array is made of.
type ArrayType struct {
	Elem  uint32     `json:"elem"`            // element type with domains unwrapped
	Delim byte       `json:"delim,omitempty"` // as in Column
	Inner *ArrayType `json:"inner,omitempty"` // of elements that are arrays; else nil
}

// Relation is a table as it was when the changes that point to it were written.
// It is immutable; a schema change makes a new one. The address identifies it.
type Relation struct {
	ID       uint32 // pg_class OID
	Schema   string
	Name     string
	Identity byte // pg_class.relreplident: d default, n nothing, f full, i index
	Columns  []Column
	// KeyColumns are the columns of the aggregate's key, as indexes into Columns, in
	// the order of the mapping. nil: nobody has looked for them.
	KeyColumns []int
	// Unseen: no look at the catalog has found the table with these columns. The
	// publication may have left some out for a while, or added some.
	Unseen bool
	// Problem says why no row of the relation can be understood; else empty.
	Problem string
}

// Wide reports whether the replica identity has more than the aggregate's key. Then
// the row filter of a publication, if there was one for a while, may have made deletes
// of updates: it judges the old row by what the identity has of it.
func (r *Relation) Wide() bool {
	for i := range r.Columns {
		if r.Columns[i].Key && !slices.Contains(r.KeyColumns, i) {
			return true
		}
	}
	return false
}

// Context is what the writing transaction said of its changes, by
// pg_logical_emit_message(true, 'backstory.context', …).
type Context struct {
	Reason        []byte // JSON value (a string is quoted); nil if there is none
	Actor         string
	CorrelationID string
	CausationID   string
}

// Change is one row operation of a committed transaction.
type Change struct {
	Op       Op
	Pos      Position
	XID      uint32 // of the writing transaction; 0 for OpRead
	Time     int64  // commit time (OpRead: time of the chunk's read), microseconds since 1970-01-01 UTC
	Relation *Relation
	// New has a value for each column of Relation. Empty for delete and truncate.
	New []Value
	// Old has a value for each column of Relation where WAL carried an old
	// tuple, else it is empty. OldFull says that it is the whole row (identity
	// FULL) and not only the key.
	Old     []Value
	OldFull bool
	Context *Context // in force for the change; nil if none; shared between changes
}

// Batch is a run of changes in commit order: some transactions, or a piece of a
// large one. What it points to stays valid during the following call of Next, so
// that one batch can be worked on while the next is read; the Batch itself is
// overwritten by it.
type Batch struct {
	Changes []Change
	// Reached: every transaction whose commit record begins below it has been
	// passed on in full, in this batch or before. A backfill chunk whose
	// watermark is at or below Reached is applied after the batch's changes that
	// lie below the watermark, or later. Never goes backwards.
	Reached LSN
	// Shapes are those that the tables of the changes, here or in the batches to
	// come, turned out to have. They must be durable no later than the changes, and
	// are to be given to the next Open. They are the receiver's.
	Shapes []Shape
	// End is where the slot may be confirmed once all batches up to this one are
	// durable: the end LSN of the last complete transaction, or the WAL end of a
	// keepalive that came with no transaction open. Never goes backwards; equal
	// to that of the batch before if the batch ends inside its first transaction.
	End LSN
}

// Identity names the cluster that positions belong to.
type Identity struct {
	System   uint64 // system identifier
	Timeline int32
	Database string
}

// String is for messages: "system 7312345678901234567, timeline 2, database legacy".
func (id Identity) String() string {
	return fmt.Sprintf("system %d, timeline %d, database %s", id.System, id.Timeline, id.Database)
}
