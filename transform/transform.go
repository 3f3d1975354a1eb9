package transform

import (
	"bytes"
	"errors"
	"fmt"

	"backstory/capture"
)

// maxPlans bounds the cache of compiled relations. A schema change makes a new
// relation, so a long life sees many, but few at a time.
const maxPlans = 256

// Transformer turns row changes into events. It holds no state but scratch
// memory: what it knows of an aggregate comes from States. Not safe for
// concurrent use.
type Transformer struct {
	mapping *Mapping
	names   map[*Table]*names
	plans   map[*capture.Relation]*plan // nil plan: the relation is not mapped

	base capture.LSN // added to the positions of changes

	lastRelation *capture.Relation
	lastPlan     *plan

	bare     plan           // of Remove, which sees no row
	removal  capture.Change // of Remove
	encoder  encoder
	key      []byte
	oldKey   []byte
	encoded  []byte   // values of the row, one behind the other
	values   [][]byte // by column of the plan; nil: WAL does not have it
	members  image    // of the aggregate's image
	place    []int    // by column of the plan: index in members; −1: not there
	vanished []int    // members that are no column any more
	changes  []change
	reason   []byte
	id       []byte
}

// New returns a transformer for a mapping that is bound. The identity becomes
// part of the event ids.
func New(m *Mapping, id capture.Identity) *Transformer {
	t := &Transformer{mapping: m, names: make(map[*Table]*names), plans: make(map[*capture.Relation]*plan)}
	for _, table := range m.Tables {
		t.names[table] = newNames(table, id)
	}
	return t
}

// Rebase says what was added to the positions of all changes to come: the Since of a
// column is one of WAL.
func (t *Transformer) Rebase(base capture.LSN) { t.base = base }

// Table returns the mapped table of a relation, or nil.
func (t *Transformer) Table(rel *capture.Relation) *Table {
	if rel == t.lastRelation && t.lastPlan != nil {
		return t.lastPlan.table
	}
	return t.mapping.find(rel.Schema, rel.Name)
}

var errUnmapped = errors.New("the table is not mapped")

// plan returns the plan of a relation; nil for one that is not mapped.
func (t *Transformer) plan(rel *capture.Relation) (*plan, error) {
	if rel == t.lastRelation {
		return t.lastPlan, nil
	}
	if rel.Problem != "" {
		return nil, &UnmappableError{Problem: rel.Problem}
	}
	p, ok := t.plans[rel]
	if !ok {
		if table := t.Table(rel); table != nil {
			var err error
			if p, err = compile(table, t.names[table], rel); err != nil {
				return nil, err
			}
		}
		if len(t.plans) >= maxPlans {
			clear(t.plans)
		}
		t.plans[rel] = p
	}
	t.lastRelation, t.lastPlan = rel, p
	return p, nil
}

// subject is one aggregate as a change meets it.
type subject struct {
	plan    *plan
	change  *capture.Change
	out     *Output
	states  States
	key     []byte
	entry   Entry
	op      capture.Op
	cause   Cause
	related []byte
	next    uint16 // index of the next event
	kept    []byte // key, owned by out; nil until the first event
}

// Apply appends the events of an insert, update or delete of a mapped table to
// out and puts the new state of its aggregate into st. A change at or below the
// place of its aggregate is passed over; one of which only some events have been
// folded into the state yields the rest of them.
//
// A change that can't be completed, because the state does not have a large
// column that an update left out, is noted in st and the row asked for by
// [States.Again].
func (t *Transformer) Apply(out *Output, c *capture.Change, st States) error {
	p, err := t.plan(c.Relation)
	switch {
	case err != nil:
	case p == nil:
		err = errUnmapped
	default:
		err = t.apply(p, out, c, st)
	}
	if err != nil {
		return fmt.Errorf("%s: table %s.%s: %w", c.Pos, c.Relation.Schema, c.Relation.Name, err)
	}
	return nil
}

func (t *Transformer) apply(p *plan, out *Output, c *capture.Change, st States) error {
	err := checkTuples(c)
	if err != nil {
		return err
	}
	s := subject{plan: p, change: c, out: out, states: st, op: c.Op}
	switch c.Op {
	case capture.OpInsert:
		return t.insert(&s)
	case capture.OpUpdate:
		return t.update(&s)
	case capture.OpDelete:
		if err := p.identified(c.Old); err != nil {
			return err
		}
		if t.key, err = p.appendKey(t.key[:0], c.Old, nil); err != nil {
			return fmt.Errorf("old row: %w", err)
		}
		s.key = t.key
		return t.delete(&s)
	}
	return fmt.Errorf("operation %s is none of a row", c.Op)
}

// checkTuples makes sure that a tuple is empty or has a value for each column.
func checkTuples(c *capture.Change) error {
	columns := len(c.Relation.Columns)
	if n := len(c.New); n != columns && (n != 0 || c.Op != capture.OpDelete) {
		return fmt.Errorf("the new row has %d values, the table %d columns", n, columns)
	}
	if n := len(c.Old); n != columns && (n != 0 || c.OldFull) {
		return fmt.Errorf("the old row has %d values, the table %d columns", n, columns)
	}
	return nil
}

// KeyOf appends the aggregate id of the row that a change is about: for a delete
// the old one, else the new one.
func (t *Transformer) KeyOf(c *capture.Change, dst []byte) ([]byte, error) {
	p, err := t.plan(c.Relation)
	if err == nil && p == nil {
		err = errUnmapped
	}
	if err == nil {
		row, other := c.New, c.Old
		if c.Op == capture.OpDelete {
			row, other = c.Old, nil
		}
		dst, err = p.appendKey(dst, row, other)
	}
	if err != nil {
		return dst, fmt.Errorf("%s: table %s.%s: %w", c.Pos, c.Relation.Schema, c.Relation.Name, err)
	}
	return dst, nil
}

// identified makes sure that an old row has the key.
func (p *plan) identified(old []capture.Value) error {
	for _, at := range p.key {
		if at < len(old) && old[at].Kind == capture.Absent {
			return &UnmappableError{Problem: fmt.Sprintf("key column %q is not in the row: the replica identity of that time did not have it", p.keyName(at))}
		}
	}
	return nil
}

// kept makes sure that an update without an old row has kept the key.
func (p *plan) kept() error {
	if p.covered {
		return nil
	}
	return &UnmappableError{Problem: "an update may have changed the key, and does not say from what: the replica identity of that time did not have it"}
}

// appendKey appends the aggregate id of a row. A key value that an update left
// out (a large text as key) is taken from the other row.
func (p *plan) appendKey(dst []byte, row, other []capture.Value) ([]byte, error) {
	var room [4][]byte
	parts := room[:0]
	for _, at := range p.key {
		var v capture.Value
		if at < len(row) {
			v = row[at]
		}
		if v.Kind == capture.Unchanged && at < len(other) {
			v = other[at]
		}
		switch v.Kind {
		case capture.Text:
			parts = append(parts, v.Data)
		case capture.Null:
			return dst, fmt.Errorf("key column %q is null: choose columns that are NOT NULL as key", p.keyName(at))
		default:
			return dst, fmt.Errorf("key column %q is not in the row: it must be part of the replica identity", p.keyName(at))
		}
	}
	return AppendKey(dst, parts...), nil
}

// keyName is the name of a key column.
func (p *plan) keyName(at int) string { return p.rel.Columns[at].Name }

// fits reports whether an image that a change at the position has made can stand for
// a value of a column that has been what it is since then.
func (t *Transformer) fits(since, made capture.LSN) bool {
	return since == 0 || made >= t.base && made-t.base >= since
}

// load reads the entry of s.key and finds the index of the next event, at least
// first. It reports false if the change lies below the aggregate's place.
func (s *subject) load(first uint16) (bool, error) {
	e, _, err := s.states.Get(s.plan.table.ID, s.key)
	if err != nil {
		return false, fmt.Errorf("state of aggregate %q: %w", s.key, err)
	}
	s.entry, s.next = e, first
	order := e.Place.Pos.Compare(s.change.Pos)
	if order == 0 {
		s.next = max(first, e.Place.Index+1)
	}
	return order <= 0, nil
}

// seen reports whether the state already has events of this very change.
func (s *subject) seen() bool {
	return s.entry.Place.Pos == s.change.Pos && s.entry.Place.Index > 0
}

// put stores the entry.
func (s *subject) put() error {
	if err := s.states.Put(s.plan.table.ID, s.key, s.entry); err != nil {
		return fmt.Errorf("put state of aggregate %q: %w", s.key, err)
	}
	return nil
}

// note stores that a change touched an aggregate that does not exist for the
// state. A deleted one keeps its version.
func (s *subject) note() error {
	if s.seen() {
		return nil
	}
	s.entry = Entry{Version: s.entry.Version, Place: Place{Pos: s.change.Pos}, XID: s.change.XID}
	return s.put()
}

// again asks for the row to be read from the table.
func (s *subject) again() error {
	if err := s.states.Again(s.plan.table.ID, s.key); err != nil {
		return fmt.Errorf("ask for aggregate %q again: %w", s.key, err)
	}
	return nil
}

// emit appends an event and moves the entry on to it. Data and state are owned
// by the output.
func (t *Transformer) emit(s *subject, eventType string, data, state []byte) {
	if s.kept == nil {
		s.kept = s.out.copy(s.key)
	}
	s.entry = Entry{
		Version: s.entry.Version + 1,
		Place:   Place{Pos: s.change.Pos, Index: s.next},
		XID:     s.change.XID,
		Image:   state,
	}
	s.next++
	prefix := s.plan.names.idPrefix
	var id EventID
	id, t.id = hashID(append(t.id[:0], prefix...), s.entry.Place, s.key)
	s.out.Events = append(s.out.Events, Event{
		ID: id, Type: eventType, Table: s.plan.table, Key: s.kept,
		Version: s.entry.Version, Place: s.entry.Place, XID: s.change.XID, Time: s.change.Time,
		Op: s.op, Cause: s.cause, Related: s.related, Context: s.out.keepContext(s.change.Context),
		Data: data, State: state,
	})
}

// contextReason returns the reason that the context gives, or null.
func contextReason(c *capture.Change) []byte {
	if c.Context == nil || len(c.Context.Reason) == 0 {
		return null
	}
	return c.Context.Reason
}

// reasonOf returns the reason of a change that has a new row: that of the reason
// column, else that of the context.
func (t *Transformer) reasonOf(p *plan, c *capture.Change) ([]byte, error) {
	if p.reason < 0 || p.reason >= len(c.New) {
		return contextReason(c), nil
	}
	v := c.New[p.reason]
	if v.Kind == capture.Unchanged && c.OldFull {
		v = c.Old[p.reason]
	}
	if v.Kind != capture.Text {
		return contextReason(c), nil
	}
	var err error
	if t.reason, err = t.encoder.append(t.reason[:0], p.codec, v); err != nil {
		return nil, fmt.Errorf("column %q: %w", p.table.Reason, err)
	}
	if bytes.Equal(t.reason, null) { // a JSON null in a json column
		return contextReason(c), nil
	}
	return t.reason, nil
}
