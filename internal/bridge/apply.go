package bridge

import (
	"context"
	"fmt"

	"backstory/capture"
	"backstory/transform"
)

// repair is a reconciling run as the first stage sees it: until a row has
// counted, its large columns in the state may be stale, so an update that
// leaves them out asks for the row to be read again.
type repair struct {
	settled map[string]struct{} // keys whose second look has counted
}

// applyDue applies the chunks whose watermark the stream has reached: every
// transaction that a chunk's snapshot saw is in the state by then.
func (s *stream) applyDue(ctx context.Context) error {
	for len(s.due) > 0 && s.due[0].chunk.Watermark <= s.reached {
		j := s.due[0]
		s.due = s.due[1:]
		if err := s.apply(ctx, j); err != nil {
			return fmt.Errorf("apply rows of %s at watermark %s: %w", j.table.Aggregate, j.chunk.Watermark, err)
		}
		close(j.applied)
	}
	return nil
}

// apply maps the rows of a chunk against the state. The cursor goes into the
// piece of the last row, so it is durable no sooner than the rows.
func (s *stream) apply(ctx context.Context, j *job) error {
	s.track(j)
	found := map[string]struct{}{}
	for i := range j.chunk.Changes {
		c := &j.chunk.Changes[i]
		key, err := s.tr.KeyOf(c, s.key[:0])
		if err != nil {
			return err
		}
		s.key = key
		if j.keys != nil {
			found[string(key)] = struct{}{}
		}
		if err := s.applyRow(ctx, j, key, c); err != nil {
			return err
		}
	}
	for i, key := range j.keys {
		if _, ok := found[string(key)]; ok {
			continue
		}
		if err := s.applyAbsence(ctx, j, key, len(j.chunk.Changes)+i+1); err != nil {
			return err
		}
	}
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	return setRun(p.batch, j.table.ID, j.run)
}

// counts is the visibility rule: a row, or its absence, says something of the
// aggregate only if the last change that the stream brought of it came from a
// transaction that the chunk's snapshot saw. Comparing LSNs is not enough: a
// commit record is in WAL before its transaction becomes visible.
func (s *stream) counts(j *job, e *transform.Entry) bool {
	pos, xid := e.Place.Pos, e.XID
	if t, ok := s.emptied[j.table.ID]; ok && pos.Compare(t.pos) < 0 {
		pos, xid = t.pos, t.xid
	}
	return xid == 0 || pos.LSN < j.run.Horizon || j.chunk.Snapshot.Visible(xid)
}

func (s *stream) applyRow(ctx context.Context, j *job, key []byte, c *capture.Change) error {
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	e, _, err := p.batch.Get(j.table.ID, key)
	if err != nil {
		return err
	}
	if !s.counts(j, &e) {
		if j.run.Reconcile && !j.run.Done && j.keys == nil {
			return p.batch.Again(j.table.ID, key)
		}
		return nil
	}
	if err := s.tr.Row(&p.out, c, p.batch, j.run.Reconcile); err != nil {
		return err
	}
	if err := s.looked(p, j, key); err != nil {
		return err
	}
	return s.sendFull(ctx)
}

// applyAbsence takes in that a row that was looked up is not there. The ordinal
// goes on where that of the rows ends.
func (s *stream) applyAbsence(ctx context.Context, j *job, key []byte, ordinal int) error {
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	e, _, err := p.batch.Get(j.table.ID, key)
	if err != nil {
		return err
	}
	if !s.counts(j, &e) {
		return nil // it stays on the list
	}
	at := capture.Change{Op: capture.OpRead, Time: j.chunk.Time,
		Pos: capture.Position{LSN: j.chunk.Watermark, Kind: capture.KindBackfill, Index: uint32(ordinal)}}
	if e.Exists() {
		if err := s.tr.Remove(&p.out, j.table, key, at, transform.Reconciliation, p.batch); err != nil {
			return err
		}
	}
	if err := s.looked(p, j, key); err != nil {
		return err
	}
	return s.sendFull(ctx)
}

// looked takes a key that counted off the list.
func (s *stream) looked(p *piece, j *job, key []byte) error {
	if j.keys == nil {
		return nil
	}
	if r := s.repairs[j.table.ID]; r != nil {
		r.settled[string(key)] = struct{}{}
	}
	return p.batch.Done(j.table.ID, key)
}

// track begins and ends the doubt about a table's large columns.
func (s *stream) track(j *job) {
	switch {
	case j.run.Done:
		delete(s.repairs, j.table.ID)
	case j.run.Reconcile && s.repairs[j.table.ID] == nil:
		s.repairs[j.table.ID] = &repair{settled: map[string]struct{}{}}
	}
}

// doubt puts the aggregates whose large columns came from the state on the list
// of rows to read again, while their table is being repaired. from is where the
// change's entries in Filled begin.
func (s *stream) doubt(p *piece, from int) error {
	if len(s.repairs) == 0 {
		return nil
	}
	for _, f := range p.out.Filled[from:] {
		r := s.repairs[f.Table.ID]
		if r == nil {
			continue
		}
		if _, ok := r.settled[string(f.From)]; ok {
			r.settled[string(f.Key)] = struct{}{} // as right as what it was filled from
			continue
		}
		if err := p.batch.Again(f.Table.ID, f.Key); err != nil {
			return err
		}
	}
	return nil
}
