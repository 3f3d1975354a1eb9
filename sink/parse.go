package sink

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"backstory/capture"
	"backstory/transform"
)

// The headers by their place in a record, see headers.go.
const (
	slotSpecVersion = iota
	slotContentType
	slotSource
	slotAggregateType
	slotFormerSource
	slotID
	slotType
	slotSubject
	slotAggregateVersion
	slotTime
	slotSequence
	slotOp
	slotXID
	slotCause
	slotRelated
	slotActor
	slotCorrelationID
	slotCausationID
	slotEventsOffset
	slotDataRef
	slotSequenceBase
	slots
)

// slotNames has the headers in the order in which they are written.
var slotNames = [slots]string{
	HeaderSpecVersion, HeaderContentType, HeaderSource, HeaderAggregateType, HeaderFormerSource,
	HeaderID, HeaderType, HeaderSubject, HeaderAggregateVersion, HeaderTime, HeaderSequence,
	HeaderOp, HeaderXID, HeaderCause, HeaderRelated, HeaderActor, HeaderCorrelationID,
	HeaderCausationID, HeaderEventsOffset, HeaderDataRef, HeaderSequenceBase,
}

// requiredSlots are those that every event and every state has.
var requiredSlots = [...]int{
	slotSpecVersion, slotSource, slotAggregateType, slotID, slotType, slotSubject,
	slotAggregateVersion, slotTime, slotSequence, slotOp,
}

// maxInterned bounds the type names that a parser remembers.
const maxInterned = 64

var errBarrier = errors.New("a barrier")

// parser turns the records of one topic into events. Headers in the order in
// which the bridge writes them are read without allocation; other orders and
// additional headers are accepted, missing and malformed ones are not: the bridge
// is the topic's only writer. What it returns is valid until the following call.
type parser struct {
	topic string
	table *transform.Table // nil: the topic is read without a mapping
	kind  transform.Topic  // only with a table; else the records tell
	// sources says which sources' records are accepted; nil: those of any.
	sources *sources

	values  [slots][]byte // nil: the header is not there
	types   []string
	source  string // of the last record
	former  formerText
	clock   timeParser
	context capture.Context
	tables  []*transform.Table // made for records without a mapping, by aggregate type
	ref     []byte             // ce_dataref of the last record; nil: it carries its value
}

// parse fills s from a record. It reports false for a record that carries
// nothing, and a *Refusal for one that the bridge has not written.
func (p *parser) parse(rec *record, partition int32, s *transform.Stored) (bool, error) {
	err := p.collect(rec)
	if err == nil {
		*s = transform.Stored{Topic: p.kind, Partition: partition, Offset: rec.offset}
		if err := p.checkSource(s); err != nil {
			return false, err
		}
		err = p.fill(rec, s)
	}
	if err == nil {
		return true, nil
	}
	if errors.Is(err, errBarrier) {
		return false, nil
	}
	return false, &Refusal{
		Thing:   fmt.Sprintf("topic %s partition %d", p.topic, partition),
		Problem: fmt.Sprintf("the record at offset %d is not from this bridge: %v", rec.offset, err),
		Cure: "find out who else writes to the topic and stop it, then give the bridge topics of its own: " +
			"new names in the mapping and a new state directory",
	}
}

// checkSource refuses a record of another source before anything else in it is looked
// at: what it lacks or has too much is then no wonder.
func (p *parser) checkSource(s *transform.Stored) error {
	if p.sources == nil {
		return nil
	}
	s.Source = p.sourceOf(s.Topic)
	return p.sources.check(p.topic, s)
}

// collect sorts the headers into their slots.
func (p *parser) collect(rec *record) error {
	clear(p.values[:])
	expect := 0
	for h := rec.headers; ; {
		name, value, ok, err := h.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		slot := slotOf(name, expect)
		if slot < 0 {
			if string(name) == HeaderBarrier {
				return errBarrier
			}
			continue
		}
		if value == nil || p.values[slot] != nil {
			return fmt.Errorf("header %s is null, or there twice", slotNames[slot])
		}
		p.values[slot] = value
		expect = slot + 1
	}
	for _, slot := range requiredSlots {
		if p.values[slot] == nil {
			return fmt.Errorf("header %s is missing", slotNames[slot])
		}
	}
	return nil
}

// slotOf finds the header's slot, from the expected one on; −1 if it is unknown.
func slotOf(name []byte, expect int) int {
	for i := expect; i < slots; i++ {
		if string(name) == slotNames[i] {
			return i
		}
	}
	for i := range expect {
		if string(name) == slotNames[i] {
			return i
		}
	}
	return -1
}

// fill decodes the collected headers.
func (p *parser) fill(rec *record, s *transform.Stored) error {
	v := &p.values
	if string(v[slotSpecVersion]) != SpecVersion {
		return p.malformed(slotSpecVersion)
	}
	if rec.key == nil || string(rec.key) != string(v[slotSubject]) {
		return errors.New("its key is not the one that ce_subject names")
	}
	s.Key = rec.key
	s.Type = p.intern(v[slotType])
	s.Context = p.contextOf()
	s.Related = v[slotRelated]
	p.ref = v[slotDataRef]
	if err := p.fillTable(s); err != nil {
		return err
	}
	if err := p.fillNumbers(s); err != nil {
		return err
	}
	if err := p.fillValue(rec, s); err != nil {
		return err
	}
	s.Source, s.Former = p.sourceOf(s.Topic), p.former.parse(v[slotFormerSource])
	return nil
}

// fillNumbers decodes the headers that are not text.
func (p *parser) fillNumbers(s *transform.Stored) error {
	v := &p.values
	var ok bool
	if s.ID, ok = parseID(v[slotID]); !ok {
		return p.malformed(slotID)
	}
	if s.Version, ok = parseUint(v[slotAggregateVersion], 1<<63-1); !ok || s.Version == 0 {
		return p.malformed(slotAggregateVersion)
	}
	if s.Time, ok = p.clock.parse(v[slotTime]); !ok {
		return p.malformed(slotTime)
	}
	if s.Place, ok = parsePlace(v[slotSequence]); !ok {
		return p.malformed(slotSequence)
	}
	if v[slotSequenceBase] != nil {
		base, ok := parseUint(v[slotSequenceBase], 1<<64-1)
		if !ok {
			return p.malformed(slotSequenceBase)
		}
		s.Base = capture.LSN(base)
	}
	if s.Op, ok = parseOp(v[slotOp]); !ok {
		return p.malformed(slotOp)
	}
	if s.Cause, ok = parseCause(v[slotCause]); !ok {
		return p.malformed(slotCause)
	}
	if v[slotXID] != nil {
		xid, ok := parseUint(v[slotXID], 1<<32-1)
		if !ok {
			return p.malformed(slotXID)
		}
		s.XID = uint32(xid)
	}
	return nil
}

// fillValue decides which topic's record it is and whose bytes the value is.
func (p *parser) fillValue(rec *record, s *transform.Stored) error {
	offset := p.values[slotEventsOffset]
	if p.table == nil && offset != nil {
		s.Topic = transform.Latest
	}
	switch {
	case s.Topic == transform.Events && offset != nil:
		return errors.New("it is a state, and the topic is for events")
	case s.Topic == transform.Latest && offset == nil:
		return errors.New("it is an event, and the topic is for states")
	case s.Topic == transform.Events && rec.value == nil:
		return errors.New("its value is null")
	case s.Topic == transform.Events:
		s.Data = rec.value
		return nil
	}
	below, ok := parseUint(offset, 1<<63-1)
	if !ok {
		return p.malformed(slotEventsOffset)
	}
	s.EventsOffset = int64(below)
	s.State = rec.value
	return nil
}

// fillTable sets the table, or checks that it is the record's. Without a mapping
// the record gets a table that says only aggregate type and topic.
func (p *parser) fillTable(s *transform.Stored) error {
	aggregate := p.values[slotAggregateType]
	if p.table != nil {
		if string(aggregate) != p.table.Aggregate {
			return fmt.Errorf("its aggregate type is %q, and the topic is that of %s", aggregate, p.table.Aggregate)
		}
		s.Table = p.table
		return nil
	}
	for _, t := range p.tables {
		if t.Aggregate == string(aggregate) {
			s.Table = t
			return nil
		}
	}
	s.Table = &transform.Table{
		Aggregate: string(aggregate),
		Topics:    transform.Topics{Events: p.topic, Latest: p.topic},
	}
	if len(p.tables) < maxInterned {
		p.tables = append(p.tables, s.Table)
	}
	return nil
}

func (p *parser) malformed(slot int) error {
	return fmt.Errorf("header %s is %q", slotNames[slot], p.values[slot])
}

func (p *parser) intern(b []byte) string {
	for _, t := range p.types {
		if t == string(b) {
			return t
		}
	}
	t := string(b)
	if len(p.types) < maxInterned {
		p.types = append(p.types, t)
	}
	return t
}

// contextOf returns what the headers say of the writing transaction, nil if
// nothing. The records of a transaction share the strings.
func (p *parser) contextOf() *capture.Context {
	v := &p.values
	if v[slotActor] == nil && v[slotCorrelationID] == nil && v[slotCausationID] == nil {
		return nil
	}
	keep(&p.context.Actor, v[slotActor])
	keep(&p.context.CorrelationID, v[slotCorrelationID])
	keep(&p.context.CausationID, v[slotCausationID])
	return &p.context
}

// keep sets s to b, without an allocation if it is that already.
func keep(s *string, b []byte) {
	if *s != string(b) {
		*s = string(b)
	}
}

// deadLetterRef is where a stand-in's value is.
type deadLetterRef struct {
	topic     string
	partition int32
	offset    int64
}

const dataRefScheme = "kafka:"

// parseRef reads ce_dataref: kafka:TOPIC/PARTITION/OFFSET.
func parseRef(b []byte) (deadLetterRef, bool) {
	s, ok := strings.CutPrefix(string(b), dataRefScheme)
	topic, s, ok1 := strings.Cut(s, "/")
	part, offset, ok2 := strings.Cut(s, "/")
	p, err1 := strconv.ParseInt(part, 10, 32)
	o, err2 := strconv.ParseInt(offset, 10, 64)
	ok = ok && ok1 && ok2 && topic != "" && err1 == nil && err2 == nil && p >= 0 && o >= 0
	return deadLetterRef{topic, int32(p), o}, ok
}
