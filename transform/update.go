package transform

import (
	"bytes"
	"fmt"
	"slices"

	"backstory/capture"
)

// change is a field whose value the image does not have.
type change struct {
	group  int    // index of the event among those of the table
	member int    // index in the image; −1: a new member
	name   []byte // JSON string
	value  []byte
}

// insert turns a new row into a Created event. If the state has the key already,
// because it missed a delete, the events of the difference tell what is new.
func (t *Transformer) insert(s *subject) error {
	var err error
	if t.key, err = s.plan.appendKey(t.key[:0], s.change.New, nil); err != nil {
		return fmt.Errorf("new row: %w", err)
	}
	s.key = t.key
	if more, err := s.load(1); err != nil || !more {
		return err
	}
	if err := t.encodeNew(s.plan, s.change); err != nil {
		return err
	}
	return t.write(s, s.plan.names.created)
}

// update turns a changed row into the events of the difference.
func (t *Transformer) update(s *subject) error {
	c := s.change
	var err error
	if t.key, err = s.plan.appendKey(t.key[:0], c.New, c.Old); err != nil {
		return fmt.Errorf("new row: %w", err)
	}
	if len(c.Old) == 0 {
		if err := s.plan.kept(); err != nil {
			return err
		}
	} else {
		if err := s.plan.identified(c.Old); err != nil {
			return err
		}
		if t.oldKey, err = s.plan.appendKey(t.oldKey[:0], c.Old, nil); err != nil {
			return fmt.Errorf("old row: %w", err)
		}
		if !bytes.Equal(t.key, t.oldKey) {
			return t.move(s)
		}
	}
	s.key = t.key
	if more, err := s.load(1); err != nil || !more {
		return err
	}
	if err := t.encodeNew(s.plan, c); err != nil {
		return err
	}
	return t.write(s, s.unmet())
}

// unmet is the type of the event of a row that was there before it was seen:
// Imported if its aggregate was never known, Created if it was deleted.
func (s *subject) unmet() string {
	if s.entry.Version > 0 {
		return s.plan.names.created
	}
	return s.plan.names.imported
}

// write brings the aggregate to the encoded row: by an event of the given type
// if it does not exist, else by the events of the difference.
func (t *Transformer) write(s *subject, absentType string) error {
	if !s.entry.Exists() {
		return t.create(s, absentType)
	}
	if err := t.match(s.plan, s.entry.Image); err != nil {
		return fmt.Errorf("image of aggregate %q: %w", s.key, err)
	}
	if err := t.compareOld(s); err != nil {
		return err
	}
	return t.differ(s, true)
}

// encodeNew encodes the new row into t.values, in the order of the plan's
// columns. A value that WAL does not have is nil.
func (t *Transformer) encodeNew(p *plan, c *capture.Change) error {
	t.encoded, t.values = t.encoded[:0], t.values[:0]
	for i := range p.columns {
		v := c.New[p.columns[i].at]
		if v.Kind == capture.Unchanged && c.OldFull {
			v = c.Old[p.columns[i].at]
		}
		if v.Kind == capture.Unchanged {
			t.values = append(t.values, nil)
			continue
		}
		text, err := t.encode(p, i, v)
		if err != nil {
			return err
		}
		t.values = append(t.values, text)
	}
	return nil
}

// encode appends a value of column i of the plan to t.encoded and returns its
// text, which stays where it is when t.encoded grows.
func (t *Transformer) encode(p *plan, i int, v capture.Value) ([]byte, error) {
	c := &p.columns[i]
	if v.Kind == capture.Absent {
		return nil, fmt.Errorf("field %s: the row does not have it", c.name)
	}
	start := len(t.encoded)
	var err error
	if t.encoded, err = t.encoder.append(t.encoded, c.codec, v); err != nil {
		return nil, fmt.Errorf("field %s: %w", c.name, err)
	}
	return t.encoded[start:len(t.encoded):len(t.encoded)], nil
}

// match parses an image into t.members and finds the plan's columns in it.
func (t *Transformer) match(p *plan, text []byte) error {
	var err error
	if t.members, err = t.members[:0].parse(text); err != nil {
		return err
	}
	t.vanished = t.vanished[:0]
	t.place = slices.Grow(t.place[:0], len(p.columns))[:len(p.columns)]
	for i := range t.place {
		t.place[i] = -1
	}
	next := 0 // members mostly stand in the order of the columns
	for m := range t.members {
		name := t.members[m].name
		i := next
		if i >= len(p.columns) || !bytes.Equal(p.columns[i].name, name) {
			i = p.find(name)
		}
		if i < 0 {
			t.vanished = append(t.vanished, m)
			continue
		}
		t.place[i] = m
		next = i + 1
	}
	return nil
}

// compareOld compares the old row of a table with identity FULL to the image
// that has been matched. The state stays the truth for the events; the output
// says that they differ.
func (t *Transformer) compareOld(s *subject) error {
	c := s.change
	if !c.OldFull || s.seen() {
		return nil
	}
	for i := range s.plan.columns {
		v, m := c.Old[s.plan.columns[i].at], t.place[i]
		if m < 0 || v.Kind != capture.Text && v.Kind != capture.Null || !t.comparable(s, i) {
			continue
		}
		old, err := t.encode(s.plan, i, v)
		if err != nil {
			return fmt.Errorf("old row: %w", err)
		}
		if bytes.Equal(old, t.members[m].value) {
			continue
		}
		if s.out.Mismatches == 0 {
			s.out.Mismatch = Mismatch{
				Table: s.plan.table, Pos: c.Pos, Key: s.out.copy(s.key),
				Column: c.Relation.Columns[s.plan.columns[i].at].Name,
			}
		}
		s.out.Mismatches++
		return nil
	}
	return nil
}

// comparable reports whether an old row and the image must have the same value of
// column i of the plan. A column that is younger than the image need not, nor one
// that was added with a default: of that, the old row of a row that is older says NULL.
func (t *Transformer) comparable(s *subject, i int) bool {
	column := &s.plan.columns[i]
	filled := s.plan.rel.Columns[column.at].Filled && s.change.Old[column.at].Kind == capture.Null
	return !filled && t.fits(column.since, s.entry.Place.Pos.LSN)
}

// create makes the event that gives the aggregate its first state, or notes the
// change if a value is missing.
func (t *Transformer) create(s *subject, eventType string) error {
	size := len(`{"old":{},"new":{},"reason":}`)
	for i, v := range t.values {
		if v == nil {
			if err := s.note(); err != nil {
				return err
			}
			return s.again()
		}
		size += len(s.plan.columns[i].name) + len(v) + 2
	}
	reason, err := t.reasonOf(s.plan, s.change)
	if err != nil {
		return err
	}
	data := append(s.out.reserve(size+len(reason)), createdHead...)
	separator := byte('{')
	for i, v := range t.values {
		data = append(data, separator)
		data = append(data, s.plan.columns[i].name...)
		data = append(data, ':')
		data = append(data, v...)
		separator = ','
	}
	return t.created(s, eventType, append(data, '}'), reason)
}

// createdHead begins the data of an event that gives an aggregate its first state.
const createdHead = `{"old":{},"new":`

// created ends what begins with createdHead and an image, and makes the event.
func (t *Transformer) created(s *subject, eventType string, data, reason []byte) error {
	start, end := len(createdHead), len(data)
	data = append(data, `,"reason":`...)
	data = append(data, reason...)
	data = s.out.keep(append(data, '}'))
	t.emit(s, eventType, data, data[start:end:end])
	return s.put()
}

// createWhole is encodeNew and create at once for a row that has all its values and
// an aggregate that does not exist: there is nothing to compare them with, so they
// are written where they stay.
func (t *Transformer) createWhole(s *subject, eventType string) error {
	reason, err := t.reasonOf(s.plan, s.change)
	if err != nil {
		return err
	}
	// The room is what mostly suffices: escapes may need more.
	size := len(createdHead) + len(`{},"reason":}`) + len(reason)
	for i := range s.plan.columns {
		c := &s.plan.columns[i]
		text := len(s.change.New[c.at].Data)
		size += len(c.name) + text + text/16 + 8
	}
	data := append(s.out.reserve(size), createdHead...)
	separator := byte('{')
	for i := range s.plan.columns {
		c := &s.plan.columns[i]
		data = append(data, separator)
		data = append(data, c.name...)
		data = append(data, ':')
		v := s.change.New[c.at]
		if v.Kind != capture.Text && v.Kind != capture.Null {
			return fmt.Errorf("field %s: the row does not have it", c.name)
		}
		if data, err = t.encoder.append(data, c.codec, v); err != nil {
			return fmt.Errorf("field %s: %w", c.name, err)
		}
		separator = ','
	}
	return t.created(s, eventType, append(data, '}'), reason)
}

// differ makes the events of the difference between the matched image and the
// encoded row: one for each rule whose fields differ, in the order of the rules,
// and the …Updated event behind them. A value that WAL left out is that of the
// image if the image may fill it, and was made while the column was the one that it
// is; else, or if the image does not have it, the row has to be read again.
func (t *Transformer) differ(s *subject, fill bool) error {
	filled, incomplete, err := t.collect(s, fill)
	if err != nil {
		return err
	}
	if len(t.changes) > 0 {
		reason, err := t.reasonOf(s.plan, s.change)
		if err != nil {
			return err
		}
		for from := 0; from < len(t.changes); {
			to := from + 1
			for to < len(t.changes) && t.changes[to].group == t.changes[from].group {
				to++
			}
			t.emitChanges(s, t.changes[from:to], reason)
			from = to
		}
	}
	if incomplete {
		s.entry.XID = s.change.XID // a chunk that does not see this change must not count
		if err := s.again(); err != nil {
			return err
		}
	}
	if filled {
		s.reportFilled(s.key)
	}
	if len(t.changes) == 0 && !incomplete {
		return nil
	}
	return s.put()
}

// collect fills t.changes, ordered by group and within a group by column;
// columns that the table has no more come last and become null. It reports
// whether the image filled a value that WAL left out, and whether one is missing
// for good.
func (t *Transformer) collect(s *subject, fill bool) (filled, incomplete bool, err error) {
	p, made := s.plan, s.entry.Place.Pos.LSN
	t.changes = t.changes[:0]
	sorted := true
	for i, v := range t.values {
		m := t.place[i]
		switch {
		case v == nil && m >= 0 && fill && t.fits(p.columns[i].since, made):
			filled = true
			continue
		case v == nil:
			incomplete = true
			continue
		case m >= 0 && bytes.Equal(v, t.members[m].value):
			continue
		}
		c := change{group: p.columns[i].group, member: m, name: p.columns[i].name, value: v}
		sorted = sorted && (len(t.changes) == 0 || t.changes[len(t.changes)-1].group <= c.group)
		t.changes = append(t.changes, c)
	}
	for _, m := range t.vanished {
		gone := t.members[m]
		if bytes.Equal(gone.value, null) {
			continue
		}
		group, err := p.table.groupOf(gone.name)
		if err != nil {
			return false, false, err
		}
		t.changes = append(t.changes, change{group: group, member: m, name: gone.name, value: null})
		sorted = false
	}
	if !sorted {
		slices.SortStableFunc(t.changes, func(a, b change) int { return a.group - b.group })
	}
	return filled, incomplete, nil
}

// groupOf is group for a field that is given as a JSON string.
func (t *Table) groupOf(name []byte) (int, error) {
	var text []byte
	for i, r := range t.Rules {
		for _, field := range r.When {
			var err error
			if text, err = appendString(text[:0], []byte(field)); err != nil {
				return 0, fmt.Errorf("field %q: %w", field, err)
			}
			if bytes.Equal(text, name) {
				return i, nil
			}
		}
	}
	return len(t.Rules), nil
}

// emitChanges makes the event of one group of changes and folds them into
// t.members, from which the state after it is written.
func (t *Transformer) emitChanges(s *subject, changes []change, reason []byte) {
	size := len(`{"old":{},"new":{},"reason":}`) + len(reason)
	for i := range changes {
		c := &changes[i]
		size += 2*(len(c.name)+2) + len(c.value)
		if c.member >= 0 {
			size += len(t.members[c.member].value)
		}
	}
	data := append(s.out.reserve(size), `{"old":{`...)
	empty := len(data)
	for i := range changes {
		if c := &changes[i]; c.member >= 0 {
			data = appendMember(data, empty, c.name, t.members[c.member].value)
		}
	}
	data = append(data, `},"new":{`...)
	empty = len(data)
	for i := range changes {
		c := &changes[i]
		data = appendMember(data, empty, c.name, c.value)
		t.members = t.members.set(c.member, c.name, c.value)
	}
	data = append(data, `},"reason":`...)
	data = append(data, reason...)
	data = s.out.keep(append(data, '}'))
	state := s.out.keep(t.members.append(s.out.reserve(t.members.size())))
	t.emit(s, s.plan.names.changed(changes[0].group), data, state)
}

// appendMember appends a member of an object whose first one stands at empty.
func appendMember(dst []byte, empty int, name, value []byte) []byte {
	if len(dst) > empty {
		dst = append(dst, ',')
	}
	dst = append(dst, name...)
	dst = append(dst, ':')
	return append(dst, value...)
}

// reportFilled tells the output that values of the aggregate came from the image
// of another one, or from its own.
func (s *subject) reportFilled(from []byte) {
	if s.kept == nil {
		s.kept = s.out.copy(s.key)
	}
	f := Filled{Table: s.plan.table, Key: s.kept, From: s.kept}
	if !bytes.Equal(from, s.key) {
		f.From = s.out.copy(from)
	}
	s.out.Filled = append(s.out.Filled, f)
}
