// Package verify compares the four places that know a row: the legacy table, the
// bridge's state, the latest topic, and the fold of the events topic. It does so
// at one position for each row, while the application writes and the bridge
// publishes.
//
// # Guarantees
//
//   - Beside the running bridge it takes no slot, fences nobody and publishes
//     nothing; what it writes are watermarks, messages in WAL that change nothing.
//   - A row of which the four differ at the position is reported, with table, key,
//     field, both values and the two places that differ.
//   - A change under way is no difference: what a snapshot of the table, the state
//     and the topics may each have seen follows from the rules in DESIGN.md. A row
//     that these can't decide yet is looked at again; one that stays undecided is
//     reported as not compared, and the result is then not "equal".
//   - Each event is checked for itself: version without gap from 1 (with retention
//     in the mapping, from the first one that is left), position and id, partition,
//     old values, time, source. Of the latest topic the newest record of each key
//     is compared, and none may tell an older version than the one before it.
//   - Memory grows with the number of keys (about a hundred bytes each), not with
//     images or topics; these are in a scratch store on disk.
//
// # What it leaves to others
//
// Whether the two topics have the right settings is doctor's business. Times are
// microseconds since 1970-01-01 UTC.
package verify
