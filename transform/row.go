package transform

import (
	"fmt"

	"backstory/capture"
)

// delete turns a deleted row into a Deleted event. One that the state does not
// know is noted: a chunk that was read before must not bring it back.
func (t *Transformer) delete(s *subject) error {
	if more, err := s.load(1); err != nil || !more {
		return err
	}
	if !s.entry.Exists() {
		return s.note()
	}
	if s.change.OldFull {
		if err := t.match(s.plan, s.entry.Image); err != nil {
			return fmt.Errorf("image of aggregate %q: %w", s.key, err)
		}
		t.encoded = t.encoded[:0]
		if err := t.compareOld(s); err != nil {
			return err
		}
	}
	return t.end(s)
}

// end makes the Deleted event of an aggregate that exists. Its reason is the
// context's: there is no new row.
func (t *Transformer) end(s *subject) error {
	reason := contextReason(s.change)
	size := len(`{"old":,"new":{},"reason":}`) + len(s.entry.Image) + len(reason)
	data := append(s.out.reserve(size), `{"old":`...)
	data = append(data, s.entry.Image...)
	data = append(data, `,"new":{},"reason":`...)
	data = append(data, reason...)
	data = s.out.keep(append(data, '}'))
	t.emit(s, s.plan.names.deleted, data, nil)
	return s.put()
}

// move turns an update that changes the key into the end of the aggregate
// t.oldKey (event 1) and the beginning of the aggregate t.key (event 2), each
// naming the other. The two may lie in different partitions, so that after a
// crash either may be there without the other.
func (t *Transformer) move(s *subject) error {
	from := *s
	from.key, from.op, from.cause = t.oldKey, capture.OpDelete, KeyChanged
	more, err := from.load(1)
	if err != nil {
		return err
	}
	var image []byte // of the old key, as it was before this change
	if more && !from.seen() && from.entry.Exists() {
		image = from.entry.Image
	}
	to := *s
	to.key, to.op, to.cause = t.key, capture.OpInsert, KeyChanged
	moreTo, err := to.load(2)
	if err != nil {
		return err
	}
	if more {
		from.related = from.out.copy(to.key)
		if err := t.delete(&from); err != nil {
			return err
		}
	}
	if !moreTo {
		return nil
	}
	to.related = to.out.copy(from.key)
	return t.arrive(&to, from.key, image)
}

// arrive is the second half of move. Values that WAL left out come from the
// image of the old key; if the old key's end is all that a crash let through,
// from the note that Moved has left; never from a former life of the new key.
func (t *Transformer) arrive(s *subject, oldKey, oldImage []byte) error {
	if err := t.encodeNew(s.plan, s.change); err != nil {
		return err
	}
	awaited := s.entry.Place == Place{Pos: s.change.Pos} // a note of this change
	switch {
	case s.seen():
		oldImage, oldKey = s.entry.Image, s.key // its own row is complete already
	case oldImage == nil && awaited:
		oldImage = s.entry.Image
	}
	filled := false
	if oldImage != nil {
		if err := t.match(s.plan, oldImage); err != nil {
			return fmt.Errorf("image of aggregate %q: %w", oldKey, err)
		}
		for i, v := range t.values {
			if m := t.place[i]; v == nil && m >= 0 {
				t.values[i] = t.members[m].value
				filled = true
			}
		}
	}
	if err := t.settle(s); err != nil {
		return err
	}
	if filled {
		s.reportFilled(oldKey)
	}
	return nil
}

// settle brings the aggregate of a new key to the encoded row, which has nothing
// to do with the image of a former life.
func (t *Transformer) settle(s *subject) error {
	if !s.entry.Exists() {
		return t.create(s, s.plan.names.created)
	}
	if err := t.match(s.plan, s.entry.Image); err != nil {
		return fmt.Errorf("image of aggregate %q: %w", s.key, err)
	}
	return t.differ(s, false)
}

// Moved is to be called, at recovery, for each event that Fold has applied from
// an events topic. If the event is the end of an aggregate whose key was
// changed, and the beginning of its successor is not in the state, the
// successor is noted with the image of the old key: the redelivered change may
// need values from it that neither the WAL nor the state have any more.
func (t *Transformer) Moved(s *Stored, st States) error {
	if s.Cause != KeyChanged || s.Op != capture.OpDelete {
		return nil
	}
	e, _, err := st.Get(s.Table.ID, s.Related)
	if err != nil {
		return fmt.Errorf("state of aggregate %q: %w", s.Related, err)
	}
	if e.Exists() || e.Place.Pos.Compare(s.Place.Pos) >= 0 {
		return nil
	}
	data, err := ParseData(s.Data)
	if err != nil {
		return fmt.Errorf("event %s of aggregate %q: %w", s.ID, s.Key, err)
	}
	note := Entry{Version: e.Version, Place: Place{Pos: s.Place.Pos}, XID: s.XID, Image: data.Old}
	if err := st.Put(s.Table.ID, s.Related, note); err != nil {
		return fmt.Errorf("put state of aggregate %q: %w", s.Related, err)
	}
	return nil
}

// Row appends the events that bring the aggregate of a row read by a backfill
// (OpRead) to that row, and puts its new state into st: Imported if the state
// never knew it, Created if it was deleted, the events of the difference if it
// is different, nothing if it is equal. It is to be called only for rows that
// count, that is if the transaction of the entry's XID is visible to the chunk.
//
// Reconcile says that the state knew the table before the run began: then a row
// that it does not know is a difference too, and its Imported event says so by
// its cause.
func (t *Transformer) Row(out *Output, c *capture.Change, st States, reconcile bool) error {
	if err := t.row(out, c, st, reconcile); err != nil {
		return fmt.Errorf("%s: table %s.%s: %w", c.Pos, c.Relation.Schema, c.Relation.Name, err)
	}
	return nil
}

func (t *Transformer) row(out *Output, c *capture.Change, st States, reconcile bool) error {
	p, err := t.plan(c.Relation)
	switch {
	case err != nil:
		return err
	case p == nil:
		return errUnmapped
	case c.Op != capture.OpRead:
		return fmt.Errorf("operation %s is not that of a backfill", c.Op)
	}
	if err := checkTuples(c); err != nil {
		return err
	}
	s := subject{plan: p, change: c, out: out, states: st, op: c.Op, cause: Reconciliation}
	if t.key, err = p.appendKey(t.key[:0], c.New, nil); err != nil {
		return err
	}
	s.key = t.key
	more, err := s.load(1)
	if err != nil {
		return err
	}
	if err := t.encodeNew(p, c); err != nil {
		return err
	}
	if !more {
		return t.late(&s)
	}
	if s.entry.Version == 0 && !reconcile {
		s.cause = NoCause
	}
	return t.write(&s, s.unmet())
}

// late handles a row below the place of its aggregate. It yields no event, which
// would stand behind a newer one; if it differs it is read again.
func (t *Transformer) late(s *subject) error {
	if s.entry.Exists() {
		if err := t.match(s.plan, s.entry.Image); err != nil {
			return fmt.Errorf("image of aggregate %q: %w", s.key, err)
		}
		_, incomplete, err := t.collect(s.plan, true)
		if err != nil {
			return err
		}
		if len(t.changes) == 0 && !incomplete {
			return nil
		}
	}
	return s.again()
}

// Remove appends the Deleted event of an aggregate that exists and has no later
// place than at, of which position, time, xid, operation and context count. A
// TRUNCATE is one call for each key, in key order; a reconciling backfill calls
// it for a row that is no longer there.
func (t *Transformer) Remove(
	out *Output, table *Table, key []byte, at capture.Change, cause Cause, st States,
) error {
	p := plan{table: table, names: t.names[table], reason: -1}
	s := subject{
		plan: &p, change: &at, out: out, states: st, key: key, op: at.Op, cause: cause,
	}
	more, err := s.load(1)
	if err == nil && more && s.entry.Exists() {
		err = t.end(&s)
	}
	if err != nil {
		return fmt.Errorf("%s: table %s: %w", at.Pos, table, err)
	}
	return nil
}
