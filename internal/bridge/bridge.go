package bridge

import (
	"context"

	"backstory/capture"
	"backstory/transform"
)

// Database is the legacy database as the bridge needs it.
type Database interface {
	// Prepare runs the preflight and creates the publication and the slot where
	// they are missing and may be created. It leaves nothing behind when it refuses.
	Prepare(ctx context.Context) (*capture.Prepared, error)
	// Open takes the slot and streams from start, or from where the slot is if
	// start is 0. While another session has the slot it waits.
	Open(ctx context.Context, start capture.LSN) (Source, error)
}

// Source yields the changes of committed transactions in commit order.
type Source interface {
	// Next blocks until changes, or progress without changes, are there. The
	// batch is valid until the following call.
	Next(ctx context.Context) (*capture.Batch, error)
	// Confirm lets Postgres discard the WAL below lsn. Everything below it must
	// by then be durable in the sink and in the state. It does not block.
	Confirm(lsn capture.LSN)
	Close() error
}

// Sink makes events durable in Kafka and reads them back.
type Sink interface {
	// Fence ends every former session, whoever holds it, and opens a new one. When
	// it returns, no record of a former session can appear any more, and those
	// that did are visible. Nothing of the topics may be read before.
	Fence(ctx context.Context) error
	// Check compares the topics with what is remembered of them: the record at
	// LastAt of each mark must carry the id Last. A record that compaction or
	// retention may have taken is no difference.
	Check(ctx context.Context, marks []transform.Mark) error
	// Fold hands out the records of one topic of a table, each partition in order,
	// from the given offsets (one for each partition; below the log's start means its start) to the end as of the
	// call. The record is valid during the call of fn. It returns the marks of
	// the ends.
	Fold(ctx context.Context, table *transform.Table, topic transform.Topic, from []int64, fn func(*transform.Stored) error) ([]transform.Mark, error)
	// Encode builds the record batches of events, which must be those of whole
	// changes. Calls are in the order of publication.
	Encode(events []transform.Event) (Publication, error)
}

// Publication is a set of encoded events on its way. Its methods are called
// once each, in this order, and publications one after another.
type Publication interface {
	// Events returns when every event is acknowledged in the events topics.
	Events(ctx context.Context) error
	// Latest returns when the newest state of each aggregate is acknowledged in
	// the latest topics.
	Latest(ctx context.Context) error
	// Marks are the ends of the partitions that the publication wrote. Valid until Release.
	Marks() []transform.Mark
	// Release gives the buffers back.
	Release()
}
