// Package state is the bridge's memory: for each aggregate the newest entry
// that was published, with its image, version and place, and beside them the
// bridge's own marks (meta) and the keys that must be read again.
//
// It is an append-only log of checksummed groups with an index in RAM. A [Batch]
// collects writes, and [Store.Commit] appends it as one group in one write.
//
// # Guarantees
//
//   - A batch is committed whole or not at all. After a crash of the process, at
//     whatever byte, the store holds exactly the last committed batch; after a
//     loss of power it holds some committed batch at or above [Store.Synced].
//   - Nothing damaged is read as data: groups are checked when their file is read
//     as a whole, records each time they are read. Damage is a [Refusal] that names
//     file and offset. A group that was synced is never taken for a torn tail.
//   - Memory grows with the number of keys (at most 40 bytes each), not with the
//     images. Nothing stops for a large table: the index grows in small parts,
//     compaction runs beside the commits in steps of about a megabyte.
//   - Entries of deleted aggregates are kept for ever: they carry the version.
//
// # Left to others
//
// What is in the images, the meaning of meta, when to sync and what may then be
// confirmed is the business of the bridge. The store is no source of truth: a
// lost one is folded up from the topics.
//
// DESIGN.md has the format on disk and the decisions.
package state
