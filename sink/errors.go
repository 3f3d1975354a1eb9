package sink

import (
	"errors"
	"fmt"
	"strings"

	"github.com/segmentio/kafka-go"
)

// Refusal says that the sink does not go on as things are: topics that are
// wrong, rights that are missing, a log that is not what it was. Retrying is of
// no use; Cure is what to do.
type Refusal struct {
	Thing   string // "topic product.events", "partition 3 of topic product.events"
	Problem string
	Cure    string
	Err     error  // the broker's answer, if there is one
	Foreign string // the other source whose record was found, if that is the problem; see transform.SourceOf
}

// Error reads as one sentence with the cure at its end.
func (r *Refusal) Error() string {
	var b strings.Builder
	b.WriteString(r.Thing)
	b.WriteString(": ")
	b.WriteString(r.Problem)
	if r.Err != nil {
		b.WriteString(": ")
		b.WriteString(r.Err.Error())
	}
	if r.Cure != "" {
		b.WriteString("; ")
		b.WriteString(r.Cure)
	}
	return b.String()
}

// Unwrap returns the broker's answer.
func (r *Refusal) Unwrap() error { return r.Err }

// Refused marks the error for callers that do not know this package.
func (r *Refusal) Refused() bool { return true }

// SessionError ends the producer's session: the slot must be taken again, then
// the topics fenced and folded. What was in flight may or may not stand in them.
type SessionError struct {
	Step   string // "produce to partition 3 of topic product.events"
	Reason string
	Err    error // the broker's answer, if there is one
}

// Error names the step, the reason and the broker's answer.
func (e *SessionError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: %s", e.Step, e.Reason)
	}
	return fmt.Sprintf("%s: %s: %v", e.Step, e.Reason, e.Err)
}

// Unwrap returns the broker's answer.
func (e *SessionError) Unwrap() error { return e.Err }

// Restart marks the error for callers that do not know this package.
func (e *SessionError) Restart() bool { return true }

// ConfigError lists what is wrong in a Config, by key.
type ConfigError struct {
	Problems []string // "brokers: at least one is needed"
}

// Error has all problems in one line.
func (e *ConfigError) Error() string { return strings.Join(e.Problems, "; ") }

// Usage marks the error for callers that do not know this package.
func (e *ConfigError) Usage() bool { return true }

// outcome is what an answer of the broker means for the request that it answers.
type outcome uint8

const (
	done      outcome = iota
	retriable         // nothing was appended: send again
	unknown           // may have been appended: send the same bytes again
	ended             // the session is over
	refused           // an operator must act
	broken            // a bug or a broker that does not keep the protocol
)

// notAttempted is code 55: another partition of the same request failed. (The
// client library knows the code under another name.)
const notAttempted = kafka.Error(55)

// outcomeOf sorts the error codes that a data or transaction request can be
// answered with.
func outcomeOf(code int16) outcome {
	switch kafka.Error(code) {
	case 0:
		return done
	case kafka.UnknownTopicOrPartition, kafka.LeaderNotAvailable, kafka.NotLeaderForPartition,
		kafka.BrokerNotAvailable, kafka.ReplicaNotAvailable, kafka.GroupLoadInProgress,
		kafka.GroupCoordinatorNotAvailable, kafka.NotCoordinatorForGroup, kafka.NotEnoughReplicas,
		kafka.ConcurrentTransactions, kafka.KafkaStorageError, kafka.NotController,
		kafka.FencedLeaderEpoch, kafka.UnknownLeaderEpoch, kafka.OffsetNotAvailable,
		kafka.ThrottlingQuotaExceeded, notAttempted:
		return retriable
	case kafka.RequestTimedOut, kafka.NotEnoughReplicasAfterAppend, kafka.NetworkException:
		return unknown
	case kafka.OutOfOrderSequenceNumber, kafka.DuplicateSequenceNumber, kafka.InvalidProducerEpoch,
		kafka.InvalidProducerIDMapping, kafka.InvalidTransactionState, kafka.TransactionCoordinatorFenced,
		kafka.UnknownProducerId, kafka.ProducerFenced:
		return ended
	case kafka.MessageSizeTooLarge, kafka.InvalidTopic, kafka.RecordListTooLarge,
		kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed, kafka.InvalidTimestamp,
		kafka.UnsupportedSASLMechanism, kafka.IllegalSASLState, kafka.PolicyViolation,
		kafka.TransactionalIDAuthorizationFailed, kafka.SASLAuthenticationFailed,
		kafka.InvalidRecord, kafka.UnsupportedCompressionType, kafka.InvalidTransactionTimeout:
		return refused
	}
	return broken
}

// reasonOf says in words why a session is over.
func reasonOf(code int16) string {
	switch kafka.Error(code) {
	case kafka.InvalidProducerEpoch, kafka.ProducerFenced, kafka.TransactionCoordinatorFenced:
		return "another instance has fenced this one"
	case kafka.InvalidProducerIDMapping, kafka.InvalidTransactionState:
		return "the cluster no longer knows this session"
	}
	return "the log does not continue the session's sequence"
}

// cureOf is what an operator does about a refused code.
func cureOf(code int16) string {
	switch kafka.Error(code) {
	case kafka.TopicAuthorizationFailed:
		return "grant Describe, Write, Read and DescribeConfigs on the topic to the user of the bridge"
	case kafka.ClusterAuthorizationFailed:
		return "grant IdempotentWrite on the cluster (needed before Kafka 2.8), and Create where topics are to be made"
	case kafka.TransactionalIDAuthorizationFailed:
		return "grant Write and Describe on the transactional id to the user of the bridge"
	case kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism, kafka.IllegalSASLState:
		return "check sasl.mechanism, sasl.username and the password"
	case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge:
		return "raise max.message.bytes of the topic and start again, or set dead_letter_topic"
	case kafka.InvalidTimestamp:
		return "set message.timestamp.after.max.ms and message.timestamp.before.max.ms of the topic to 9223372036854775807, or mend the clocks"
	case kafka.InvalidRecord:
		return "check the broker's log for the reason"
	case kafka.UnsupportedCompressionType:
		return "choose another compression"
	}
	return "check the broker's log and the topic's settings"
}

// fatalCode returns the code in err if it tells that asking again is of no use.
func fatalCode(err error) (int16, bool) {
	var code kafka.Error
	if !errors.As(err, &code) {
		return 0, false
	}
	return int16(code), outcomeOf(int16(code)) == refused
}
