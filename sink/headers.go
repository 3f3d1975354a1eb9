package sink

// Names of the record headers, in the order in which they are written. The first
// five are the same in every record of a topic. A header without a value is left
// out; ce_subject is always there, and empty for the empty key.
const (
	HeaderSpecVersion      = "ce_specversion" // SpecVersion
	HeaderContentType      = "content-type"   // ContentType
	HeaderSource           = "ce_source"      // transform.SourceOf; in the latest topic with LatestFragment
	HeaderAggregateType    = "ce_aggregatetype"
	HeaderFormerSource     = "ce_formersource" // sources that the topics had before, with spaces between; mostly absent
	HeaderID               = "ce_id"           // UUID, 36 characters
	HeaderType             = "ce_type"
	HeaderSubject          = "ce_subject" // the record key
	HeaderAggregateVersion = "ce_aggregateversion"
	HeaderTime             = "ce_time"     // RFC 3339, UTC, always six digits of fraction
	HeaderSequence         = "ce_sequence" // place, sortable as text: 00000000015A2F30-1-0000000042-001
	HeaderOp               = "ce_op"
	HeaderXID              = "ce_xid"
	HeaderCause            = "ce_cause"
	HeaderRelated          = "ce_related"
	HeaderActor            = "ce_actor"
	HeaderCorrelationID    = "ce_correlationid"
	HeaderCausationID      = "ce_causationid"
	HeaderEventsOffset     = "ce_eventsoffset" // latest only; decimal
	HeaderDataRef          = "ce_dataref"      // of a stand-in: kafka:TOPIC/PARTITION/OFFSET
	HeaderSequenceBase     = "ce_sequencebase" // decimal; see Producer.Rebase
)

// HeaderBarrier is the only header of a barrier record, which carries neither an
// event nor a state: key BarrierKey, null value. Readers skip it. It is written
// where a partition still knows the producer id of a former session that is not
// ours, see DESIGN.md.
const (
	HeaderBarrier = "backstory_barrier"
	BarrierKey    = "\x00backstory-barrier"
)

// Values of headers that do not depend on the event.
const (
	SpecVersion = "1.0"
	ContentType = "application/json"
	// LatestFragment ends ce_source in the latest topic. The state has the ce_id of
	// its event, so the two are told apart by their source: CloudEvents with equal
	// source and id are the same event, and consumers drop one of them.
	LatestFragment = "#latest"
	// StateType is what ce_type in the latest topic says after prefix and
	// aggregate type: "ProductState.v1".
	StateType = "State.v1"
	// StandInValue is the value of a record whose true value is in the
	// dead-letter topic, where ce_dataref points.
	StandInValue = "{}"
)
