// Package sink makes events durable in Kafka, and reads them back.
//
// Every event goes to the events topic of its table; of the events of one
// publication the newest state of each aggregate goes to the latest topic.
// [Producer] does both, over record batches that it encodes itself.
//
// # Guarantees
//
//   - After [Producer.Fence] no record of a former session can appear in any
//     mapped topic, and those that did are visible.
//   - A batch is sent with one producer id, epoch and sequence until its outcome
//     is known, so that it stands in the log once.
//   - The events of one change and aggregate stand in one batch: all or none.
//   - Every acknowledgement is compared with the offset that the partition's end
//     predicts; another writer, or a log that lost its end, is a [Refusal].
//   - Nothing is dropped: a record above the topic's limit stops the bridge, or
//     goes to the dead-letter topic with a stand-in in its place.
//
// # Errors
//
// [Refusal] asks the operator to mend something, [SessionError] asks the caller
// to take the slot again, fence and fold, [ConfigError] is wrong configuration.
// Unreachable brokers are no error: every call waits for them until its ctx is
// done, and says in the log when an outage begins and ends.
//
// Sizes are bytes, times of events are microseconds since 1970-01-01 UTC.
package sink
