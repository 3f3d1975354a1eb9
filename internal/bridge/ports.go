package bridge

import (
	"context"

	"backstory/capture"
	"backstory/transform"
)

// Database is the legacy database as the bridge needs it.
type Database interface {
	// Prepare runs the preflight. Where create is set it makes the publication
	// and the slot that are missing; without it a missing slot is refused. It
	// leaves nothing behind when it refuses.
	Prepare(ctx context.Context, create bool) (*capture.Prepared, error)
	// Recall has the next Open begin with the shapes that the tables of Prepare have,
	// each with what is remembered of it.
	Recall(shapes []capture.Shape)
	// Open takes the slot and streams from start, or from where the slot is if
	// start is 0. While another session has the slot it waits.
	Open(ctx context.Context, start capture.LSN) (Source, error)
	// OpenReader opens a connection of its own that reads a table in chunks, or
	// those of its rows for which the SQL condition where holds; empty is all. A
	// condition that the server does not understand is an error of usage.
	OpenReader(ctx context.Context, table capture.TableInfo, where string) (Reader, error)
	// Succession says how the server's history follows that of an identity of which
	// something is known up to and including the record at a position.
	Succession(ctx context.Context, from capture.Identity, at capture.LSN) (capture.Succession, error)
	// SlotStatus says where the slot and the server's WAL are now.
	SlotStatus(ctx context.Context) (capture.SlotStatus, error)
}

// Source yields the changes of committed transactions in commit order.
type Source interface {
	// Next blocks until changes, or progress without changes, are there. What a
	// batch points to stays valid during the following call: two are in use at a
	// time. The Batch itself is that call's.
	Next(ctx context.Context) (*capture.Batch, error)
	// Confirm lets Postgres discard the WAL below lsn. Everything below it must
	// by then be durable in the sink and in the state. It does not block.
	Confirm(lsn capture.LSN)
	// Close sends the last confirmation and gives the slot back.
	Close() error
}

// Reader reads one table beside the stream. A chunk is valid until it is released;
// any number may be.
type Reader interface {
	// Horizon returns the current end of WAL and the first transaction id not
	// yet given out.
	Horizon(ctx context.Context) (capture.LSN, uint64, error)
	// Wait returns when every transaction below xmax is over and visible.
	Wait(ctx context.Context, xmax uint64) error
	// Chunk reads up to limit rows behind the key after, in key order; nil is
	// the beginning.
	Chunk(ctx context.Context, after []string, limit int) (*capture.Chunk, error)
	// Lookup reads the rows of the given keys; a row that is not there is not in
	// the chunk. A condition of the reader does not count.
	Lookup(ctx context.Context, keys [][]string) (*capture.Chunk, error)
	// StandbyLag is by how many bytes of WAL the slowest standby is behind in
	// replay; 0 if there is none, or none that the role may see.
	StandbyLag(ctx context.Context) (int64, error)
	Close() error
}

// Sink makes events durable in Kafka and reads them back.
type Sink interface {
	// Fence ends every former session, whoever holds it, and opens a new one.
	// When it returns, no record of a former session can appear any more, and
	// those that did are visible. Nothing of the topics may be read before.
	Fence(ctx context.Context) error
	// Renew does the same for the own session, so that its transactional id does
	// not expire. Nothing may be in flight.
	Renew(ctx context.Context) error
	// Check compares the topics with what is remembered of them: the record at
	// LastAt of each mark must carry the id Last. A record that compaction or
	// retention may have taken is no difference.
	Check(ctx context.Context, marks []transform.Mark) error
	// Fold hands out the records of one topic of a table, each partition in
	// order, from the given offsets (one for each partition; below the log's
	// start means its start) to the end as of the call. The record is valid
	// during the call of fn. It returns the marks of the ends; LastAt is −1
	// where the range held no record.
	Fold(ctx context.Context, table *transform.Table, topic transform.Topic, from []int64, fn func(*transform.Stored) error) ([]transform.Mark, error)
	// Orphans looks for states whose event is gone: for each partition of the
	// latest topic whose newest record lies at or above latestFrom (one offset for
	// each partition), the event with its id must be in the events topic, unless
	// retention has taken it.
	Orphans(ctx context.Context, table *transform.Table, latestFrom []int64) error
	// Newest returns the newest record of each partition of a topic, nil where
	// there is none.
	Newest(ctx context.Context, table *transform.Table, topic transform.Topic) ([]*transform.Stored, error)
	// Recheck looks once whether the topics still have the partitions and settings
	// that they need. Its error is one to refuse with, or says that they could not be
	// asked. It may be called at any time.
	Recheck(ctx context.Context) error
	// HeldUp says what the sink waits for, nil if for nothing. Unlike the rest it may
	// be called at any time.
	HeldUp() error
	// Rebase has all records from now on carry the base of their positions. They
	// also name the former sources that their table has when they are encoded.
	Rebase(base capture.LSN)
	// Encode builds the record batches of events, which must be those of whole
	// changes. Calls are in the order of publication.
	Encode(events []transform.Event) (Publication, error)
	// EncodeState builds records of the latest topic alone, for states that the
	// events topic already tells of. below has for each partition the offset
	// below which every event was in latest before.
	EncodeState(events []transform.Event, below []int64) (Publication, error)
}

// Publication is a set of encoded events on its way. Events and Latest are
// called once each, in this order, and publications one after another.
type Publication interface {
	// Events returns when every event is acknowledged in the events topics.
	Events(ctx context.Context) error
	// Latest returns when the newest state of each aggregate is acknowledged in
	// the latest topics.
	Latest(ctx context.Context) error
	// Marks are the ends that the written partitions will have, known from
	// Encode on: the bridge is their only writer. Valid until Release.
	Marks() []transform.Mark
	// Release gives the buffers back.
	Release()
}
