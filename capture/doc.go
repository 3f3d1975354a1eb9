// Package capture turns a Postgres logical replication slot into batches of
// committed row changes, and a table into chunks of rows.
//
// [Database.Doctor] looks at server, role, publication, slot and tables and
// changes nothing. [Database.Prepare] does the same, makes publication and slot
// where they are missing, and remembers what it found. [Database.Open] takes the
// slot: [Stream.Next] yields its changes, [Stream.Confirm] says what is durable.
// [Database.OpenReader] reads a table beside the stream.
//
// # Guarantees
//
// Of the stream:
//
//   - Transactions arrive in commit order, each whole, a large one in several
//     batches. What was rolled back, be it to a savepoint, is never seen.
//   - A change has the same [Position], the same values and the same [Context] at
//     every redelivery, wherever the batches are cut.
//   - Only Stream.Confirm advances the slot, to the end of a transaction or to a
//     keepalive that came with none open; never beyond [Batch.End]. After a crash
//     everything above the last confirmed [LSN] comes again: at least once.
//   - [Batch.Reached] and Batch.End never go backwards.
//   - An undecodable message ends the stream with its place in WAL. Nothing is
//     skipped, and no value is made up: a large value that an update did not touch
//     is [Unchanged], a column that the message says nothing of is [Absent], and
//     neither is [Null].
//   - The slot is kept however long Next is not called.
//   - A slot, publication or table that is no longer what Prepare found ends the
//     stream with a [*Refusal] within ten seconds. What was replaced while nobody
//     looked shows in [TableInfo.Lineage].
//
// Of a chunk:
//
//   - It is one snapshot of its rows, and its watermark lies above the commit
//     record of every transaction that the snapshot sees.
//   - Chunks in a row hand out each row that keeps its key all the time exactly once,
//     whatever type and collation the key has.
//
// Of connections:
//
//   - A standby is a [*ConnError], unless the DSN's target_session_attrs permits one.
//   - After Prepare, and until [Database.Unbind], every connection reaches the system
//     and the timeline of [Prepared.Identity], or fails with a *ConnError.
//
// Of the preflight:
//
//   - A set-up that makes the application's UPDATE or DELETE fail is refused before
//     it exists. A refused Prepare leaves neither slot nor publication behind.
//
// # Errors
//
// A [*UsageError] means that the configuration or the mapping is wrong, a
// *Refusal that the database is; both name thing, problem and cure. A [*ConnError]
// asks for another session. The error of a done context is that context's.
// Anything else is a server that is not what it says, or a mistake of this package.
//
// # Units
//
// An LSN is a byte position in WAL. Times are microseconds since 1970-01-01 UTC.
// Values are Postgres' text under settings that every session pins, whatever the
// server's, database's or role's are: UTF-8, UTC, ISO dates and intervals, bytea in
// hex, floats so that they read back exactly, money in the C locale.
//
// # Ownership
//
// A [Batch] and all that it points to is valid until the following Next; a [Chunk]
// until it is released. A [Relation] is immutable and lives as long as somebody
// holds it; its address identifies it.
//
// # Left to others
//
// What a change means, old values that WAL does not carry, and the filling of
// unchanged values: package transform. When a position is durable, which rows of a
// chunk count, and what to do after an error: internal/bridge.
package capture
