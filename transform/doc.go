// Package transform turns row changes into domain events.
//
// # Guarantees
//
//   - Pure and deterministic: events depend on the change, the mapping and the
//     state of the aggregate, and on nothing else. The same input gives the same
//     bytes at every redelivery.
//   - Versions of an aggregate are 1, 2, 3, … without a gap, also over its deletion
//     and return.
//   - Folding the "new" of its events gives the image of an aggregate byte for
//     byte ([Fold]); the image is the value of the latest topic.
//   - A change at or below the place of its aggregate yields nothing; one of
//     which a crash let only some events through yields exactly the rest.
//   - A value is never guessed and never nulled: what WAL does not have comes
//     from the state, or the row is asked for again ([States.Again]).
//   - Values are exact, with one JSON type for each column type (DESIGN.md).
//
// In steady state a change costs no allocation: bytes go to the arena of an
// [Output].
//
// # Left to others
//
// Which rows of a backfill count (the visibility rule), which keys a TRUNCATE
// meets, and the order in which events, state and slot become durable are the
// bridge's. How an event stands in a record is the sink's.
package transform
