package capture

// TableRef asks for a table, as the mapping names it.
type TableRef struct {
	Schema string
	Name   string
	Key    []string // columns that identify an aggregate; empty: the primary key
	Omit   []string // columns that are not captured
	// Replace has U+FFFD stand for each character that is none in the encoding of the
	// database, or has no UTF-8, in columns that are not in the key; else a text with
	// one is refused.
	Replace bool
}

// TableInfo is what the catalog says of a mapped table.
type TableInfo struct {
	TableRef
	PrimaryKey []string
	Relation   *Relation // columns without generated ones
	Rows       float64   // pg_class.reltuples, an estimate; −1 if never analysed
	Generated  []string  // generated columns, which logical decoding leaves out
	// Lineage differs once the table, the publication or the table's place in it
	// was replaced or altered. Changes in between may be missing from the stream,
	// and the rows of a replaced table went without a DELETE, so that what is known
	// of the table has to be compared with it. Empty in Doctor's report.
	Lineage string
	Shape   Shape // as the catalog has it, without what was before
}

// SlotInfo is what the server says of the slot.
type SlotInfo struct {
	Name      string
	Created   bool   // by this call of Prepare
	Active    bool   // another session streams from it
	Confirmed LSN    // confirmed_flush_lsn
	Restart   LSN    // restart_lsn
	Status    string // wal_status; empty before Postgres 13
}

// Prepared is what Prepare found and made.
type Prepared struct {
	Identity Identity
	Server   int // server_version_num: 150020
	Slot     SlotInfo
	Tables   []TableInfo
	// Seen is a position of WAL: what commits there or above was written under what
	// Tables say, or later.
	Seen LSN
}

// Snapshot is what a chunk's transaction could see: pg_current_snapshot().
type Snapshot struct {
	Xmin, Xmax uint64   // with epoch
	Running    []uint64 // in progress, between Xmin and Xmax, sorted
}

// Chunk is a part of a table, read in one transaction.
type Chunk struct {
	Changes   []Change // OpRead; Pos is (Watermark, KindBackfill, ordinal from 1)
	Relation  *Relation
	Snapshot  Snapshot
	Time      int64    // of the read, microseconds since 1970-01-01 UTC
	Watermark LSN      // the chunk is applied when the stream has reached it
	Last      []string // key values of the last row; nil if there is none
	Done      bool     // no row lies behind the chunk

	buffer *chunkBuffer // what Release gives back; nil of a chunk that no Reader made
}
