package bridge

import (
	"context"
	"fmt"

	"backstory/capture"
	"backstory/internal/failpoint"
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
		failpoint.Hit("chunk-applied")
		if j.durable {
			if err := s.drain(ctx); err != nil {
				return err
			}
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
		c.Pos.LSN += s.base
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
		if err := s.see(ctx, j, key); err != nil {
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
	if j.run == nil || j.dry != nil {
		return nil
	}
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	run := *j.run
	s.tallies[j.table.ID].fill(&run)
	return setRun(p.batch, j.table.ID, run)
}

// counts is the visibility rule: a row, or its absence, says something of the
// aggregate only if the last change that the stream brought of it came from a
// transaction that the chunk's snapshot saw. Comparing LSNs is not enough: a
// commit record is in WAL before its transaction becomes visible.
func (s *stream) counts(j *job, e *transform.Entry) bool {
	t := s.emptied[j.table.ID]
	horizon := j.horizon + s.base
	return j.saw(horizon, e.Place.Pos, e.XID) && j.saw(horizon, t.pos, t.xid)
}

// saw reports whether a change is visible to the chunk; 0 is the xid of what no
// transaction has done.
func (j *job) saw(horizon capture.LSN, pos capture.Position, xid uint32) bool {
	return xid == 0 || pos.LSN < horizon || j.chunk.Snapshot.Visible(xid)
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
	if j.run != nil {
		s.tallyOf(j).rows.Add(1)
	}
	if !s.counts(j, &e) {
		if j.run != nil && j.run.Reconcile && j.dry == nil {
			return p.batch.Again(j.table.ID, key)
		}
		return nil
	}
	if j.dry != nil && j.keys != nil {
		return nil // it was counted when its chunk was read
	}
	if j.dry != nil {
		return j.dry.row(s, j, c, p)
	}
	before := len(p.out.Events)
	if err := s.tr.Row(&p.out, c, &p.view, s.repairing(j)); err != nil {
		return err
	}
	if j.run != nil && j.run.Schema {
		relabel(p.out.Events[before:])
	}
	s.count(j, len(p.out.Events)-before)
	if err := s.looked(p, j, key); err != nil {
		return err
	}
	return s.sendFull(ctx)
}

// repairing reports whether the state knew the table before the run began.
func (s *stream) repairing(j *job) bool {
	if j.run != nil {
		return j.run.Reconcile
	}
	return s.repairs[j.table.ID] != nil
}

func (s *stream) tallyOf(j *job) *tally {
	if j.dry != nil {
		return &j.dry.tally
	}
	return s.tallies[j.table.ID]
}

// count takes in what a row has made. Rows that are read again were counted when
// they were read first.
func (s *stream) count(j *job, events int) {
	t := s.tallyOf(j)
	t.events.Add(int64(events))
	if events == 0 && j.run != nil {
		t.equal.Add(1)
	}
}

// row counts what a row would make.
func (d *DryRun) row(s *stream, j *job, c *capture.Change, p *piece) error {
	var out transform.Output
	if err := s.tr.Row(&out, c, dryStates{states{Batch: p.batch}}, true); err != nil {
		return err
	}
	d.add(out.Events)
	s.count(j, len(out.Events))
	return nil
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
		Pos: capture.Position{LSN: j.chunk.Watermark + s.base, Kind: capture.KindBackfill, Index: uint32(ordinal)}}
	if e.Exists() {
		if err := s.remove(j, key, at, p); err != nil {
			return err
		}
	}
	if j.dry != nil {
		return nil
	}
	if err := s.looked(p, j, key); err != nil {
		return err
	}
	return s.sendFull(ctx)
}

// remove deletes an aggregate whose row is gone.
func (s *stream) remove(j *job, key []byte, at capture.Change, p *piece) error {
	t := s.tallyOf(j)
	t.gone.Add(1)
	t.events.Add(1)
	if j.dry == nil {
		cause := transform.Reconciliation
		if j.run != nil && j.run.Schema {
			cause = transform.SchemaChange
		}
		return s.tr.Remove(&p.out, j.table, key, at, cause, &p.view)
	}
	var out transform.Output
	if err := s.tr.Remove(&out, j.table, key, at, transform.Reconciliation, dryStates{states{Batch: p.batch}}); err != nil {
		return err
	}
	j.dry.add(out.Events)
	return nil
}

// see notes for the sweep of a run that the aggregate has a row.
func (s *stream) see(ctx context.Context, j *job, key []byte) error {
	if j.seen == nil {
		return nil
	}
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	return p.batch.See(j.seen, j.table.ID, key)
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

// track takes in what a job says of its run: whether the table's large columns are
// in doubt.
func (s *stream) track(j *job) {
	switch {
	case j.run == nil || j.dry != nil:
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
