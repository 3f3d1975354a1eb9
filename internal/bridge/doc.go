// Package bridge is the loop between the legacy database and Kafka. It is the
// one place that owns the order in which things become durable:
//
//	1 events topic · 2 latest topic · 3 state · 4 confirmed LSN
//
// so that at any crash: confirmed ≤ state ≤ latest ≤ events. Everything in
// recovery follows from that line; spec/ has it as a checked model.
//
// # Guarantees
//
//   - A change is confirmed to Postgres only when its events, its state and the
//     position behind it are durable; a change that can't be published stops Run.
//   - The state equals the topics before the first change of a session is taken;
//     a change at or below its aggregate's place is passed over.
//   - Memory is bounded by [Config]: three pieces of the pipeline and, of each table
//     that is read, three chunks.
//
// # What it leaves to others
//
// Decoding and the slot are capture's, the shape of events is transform's, the
// session with Kafka is sink's, the format on disk is state's.
package bridge
