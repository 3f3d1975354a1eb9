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
	from, to := *s, *s
	from.key, from.op, from.cause = t.oldKey, capture.OpDelete, KeyChanged
	to.key, to.op, to.cause = t.key, capture.OpInsert, KeyChanged
	more, err := from.load(1)
	if err != nil {
		return err
	}
	moreTo, err := to.load(2)
	if err != nil {
		return err
	}
	image, made := from.oldImage(more)
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
	return t.arrive(&to, from.key, image, made)
}

// oldImage returns the image that the aggregate had before the change gives it
// another key, and where it was made; nil if the state never knew it. If the end of
// the aggregate is in the state already, and more of it is not open, the image is the
// one that Moved has kept, and where it was made is not known: 0. That one is of no use
// any more when the change is in the state.
func (s *subject) oldImage(open bool) (image []byte, made capture.LSN) {
	if open && !s.seen() {
		return s.entry.Image, s.entry.Place.Pos.LSN
	}
	image = s.states.OldImage(s.change.Pos)
	if image != nil {
		s.states.SetOldImage(s.change.Pos, nil)
	}
	return image, 0
}

// arrive is the second half of move. Values that WAL left out come from the
// image of the old key, never from a former life of the new one.
func (t *Transformer) arrive(s *subject, oldKey, oldImage []byte, made capture.LSN) error {
	if err := t.encodeNew(s.plan, s.change); err != nil {
		return err
	}
	arrived := oldImage == nil && s.seen() // with all its values
	if arrived {
		oldImage, oldKey = s.entry.Image, s.key
	}
	filled := false
	if oldImage != nil {
		if err := t.match(s.plan, oldImage); err != nil {
			return fmt.Errorf("image of aggregate %q: %w", oldKey, err)
		}
		for i, v := range t.values {
			if m := t.place[i]; v == nil && m >= 0 && (arrived || t.fits(s.plan.columns[i].since, made)) {
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

// Moved is to be called, at recovery, for each record of an events topic that
// Fold was given, whether it was applied or not. If the event is the end of an
// aggregate whose key was changed, and the state does not yet have the beginning
// of its successor, the image of the old key is kept: the change will be
// redelivered, and may need values that neither the WAL nor the aggregates of the
// state have any more. It stands apart from the entries, because the successor's
// place must stay below changes of it that come again too.
func (t *Transformer) Moved(s *Stored, st States) error {
	if s.Cause != KeyChanged || s.Op != capture.OpDelete {
		return nil
	}
	e, _, err := st.Get(s.Table.ID, s.Related)
	if err != nil {
		return fmt.Errorf("state of aggregate %q: %w", s.Related, err)
	}
	if e.Place.Pos.Compare(s.Place.Pos) >= 0 {
		return nil
	}
	data, err := ParseData(s.Data)
	if err != nil {
		return fmt.Errorf("event %s of aggregate %q: %w", s.ID, s.Key, err)
	}
	st.SetOldImage(s.Place.Pos, data.Old)
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
	if s.entry.Version == 0 && !reconcile {
		s.cause = NoCause
	}
	if more && !s.entry.Exists() {
		return t.createWhole(&s, s.unmet())
	}
	if err := t.encodeNew(p, c); err != nil {
		return err
	}
	if !more {
		return t.late(&s)
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
		_, incomplete, err := t.collect(s, true)
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
	t.bare, t.removal = plan{table: table, names: t.names[table], reason: -1}, at
	s := subject{plan: &t.bare, change: &t.removal, out: out, states: st, key: key, op: at.Op, cause: cause}
	more, err := s.load(1)
	if err == nil && more && s.entry.Exists() {
		err = t.end(&s)
	}
	if err != nil {
		return fmt.Errorf("%s: table %s: %w", at.Pos, table, err)
	}
	return nil
}
