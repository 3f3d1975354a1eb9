package bridge

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"backstory/capture"
	"backstory/internal/failpoint"
	"backstory/internal/state"
	"backstory/transform"
)

// foldBatch bounds the aggregates of latest that are folded between two commits.
const foldBatch = 10_000

// recover brings the state level with the topics: fence, check what is
// remembered, fold latest, fold events, publish latest for what the events
// moved, commit. The slot is taken by now and nothing has been read from it.
func (b *Bridge) recover(ctx context.Context, start capture.LSN, remembered, created bool) error {
	if err := b.recheckTopics(ctx); err != nil {
		return err
	}
	if err := b.sink.Fence(ctx); err != nil {
		return fmt.Errorf("fence former sessions: %w", err)
	}
	fences, err := b.memory.fenced()
	if err != nil {
		return fmt.Errorf("remember the fence: %w", err)
	}
	failpoint.Hit("fenced")
	base, err := b.memory.base()
	if err != nil {
		return err
	}
	b.sink.Rebase(base)
	for i, t := range b.mapping.Tables {
		f := &fold{b: b, table: t, tr: transform.New(b.mapping, b.identity), fences: fences, last: i == len(b.mapping.Tables)-1,
			origins: origins{own: transform.SourceOf(b.identity, t.Schema, t.Name)}}
		if err := f.recover(ctx); err != nil {
			return fmt.Errorf("recover %s: %w", t.Aggregate, err)
		}
	}
	return b.checkSlot(ctx, start, remembered, created)
}

// recover folds both topics of the table into the state.
func (f *fold) recover(ctx context.Context) error {
	b, t := f.b, f.table
	if t.Adopts {
		if err := f.survey(ctx); err != nil {
			return err
		}
	}
	events, known, err := b.memory.marks(t, transform.Events)
	if err != nil {
		return err
	}
	latest, knownLatest, err := b.memory.marks(t, transform.Latest)
	if err != nil {
		return err
	}
	known = known || knownLatest
	remembered := slices.Concat(events, latest)
	if known {
		if err := b.sink.Check(ctx, remembered); err != nil {
			return fmt.Errorf("check the topics: %w", err)
		}
	} else if err := b.rebuildFrom(ctx, t, events); err != nil {
		return err
	}
	marks, err := f.latest(ctx, ends(latest))
	if err != nil {
		return err
	}
	if err := b.sink.Orphans(ctx, t, ends(latest)); err != nil {
		return fmt.Errorf("check the topics: %w", err)
	}
	moreMarks, err := f.events(ctx, ends(events))
	if err != nil {
		return err
	}
	marks = append(moreMarks, marks...)
	f.rebuilt = !known && f.folded > 0
	f.moved = known && ahead(marks, remembered, f.fences)
	if f.rebuilt {
		b.log.Info("state rebuilt from the topics, the table is compared with it", "table", t.Schema+"."+t.Name, "records", f.folded)
	}
	return f.finish(ctx, ends(events), marks)
}

// ahead reports whether a session that the state does not know of has been at
// the topics: each leaves at least the marker of its fence in every partition, as
// the bridge's own fences have done.
func ahead(now, remembered []transform.Mark, fences int64) bool {
	for i := range now {
		if now[i].End > remembered[i].End+fences {
			return true
		}
	}
	return false
}

// rebuildFrom sets the ends of the events marks to where a rebuild begins: below
// the ce_eventsoffset of the newest latest record all events are in latest.
func (b *Bridge) rebuildFrom(ctx context.Context, t *transform.Table, events []transform.Mark) error {
	newest, err := b.sink.Newest(ctx, t, transform.Latest)
	if err != nil {
		return fmt.Errorf("newest records of %s: %w", t.Topics.Latest, err)
	}
	for p, s := range newest {
		if s != nil {
			events[p].End = s.EventsOffset
		}
	}
	return nil
}

func ends(marks []transform.Mark) []int64 {
	offsets := make([]int64, len(marks))
	for i, m := range marks {
		offsets[i] = m.End
	}
	return offsets
}

// fold takes the records of one table's topics into the state.
type fold struct {
	b      *Bridge
	table  *transform.Table
	tr     *transform.Transformer
	fences int64 // own ones that the remembered ends do not have
	last   bool  // of the tables
	batch  *state.Batch
	folded int
	image  []byte      // scratch
	base   capture.LSN // the highest that a record tells of
	// origins are the sources of the records.
	origins origins
	// rebuilt: the state was lost; moved: a session that it does not know of has
	// been at the topics.
	rebuilt, moved bool
	// newest are the aggregates that the events moved beyond latest, each with
	// its newest event; order has them as they came.
	newest map[string]*transform.Event
	order  []string
}

// latest folds full images, committing as it goes: the state stays at or below
// the topic.
func (f *fold) latest(ctx context.Context, from []int64) ([]transform.Mark, error) {
	f.batch = f.b.store.Begin()
	marks, err := f.b.sink.Fold(ctx, f.table, transform.Latest, from, func(s *transform.Stored) error {
		f.folded++
		if _, err := f.apply(s); err != nil {
			return err
		}
		if f.batch.Len() < foldBatch {
			return nil
		}
		if err := f.b.store.Commit(f.batch); err != nil {
			return err
		}
		f.batch = f.b.store.Begin()
		return nil
	})
	if err != nil {
		f.b.store.Drop(f.batch)
		return nil, fmt.Errorf("fold %s: %w", f.table.Topics.Latest, err)
	}
	failpoint.Hit("latest-read")
	if err := f.b.store.Commit(f.batch); err != nil {
		return nil, err
	}
	failpoint.Hit("latest-folded")
	return marks, nil
}

// events folds what the events topic has beyond latest. Nothing is committed
// here: what the events moved must be in latest first, else a crash would leave
// a state that is ahead of the topic. It is at most what was in flight.
func (f *fold) events(ctx context.Context, from []int64) ([]transform.Mark, error) {
	f.batch, f.newest = f.b.store.Begin(), map[string]*transform.Event{}
	marks, err := f.b.sink.Fold(ctx, f.table, transform.Events, from, func(s *transform.Stored) error {
		f.folded++
		moved, err := f.apply(s)
		if err != nil {
			return err
		}
		if moved {
			f.keep(&s.Event)
		}
		return f.tr.Moved(s, states{f.batch})
	})
	if err != nil {
		f.b.store.Drop(f.batch)
		return nil, fmt.Errorf("fold %s: %w", f.table.Topics.Events, err)
	}
	return marks, nil
}

// apply folds one record and reports whether it moved the aggregate.
func (f *fold) apply(s *transform.Stored) (bool, error) {
	e, _, err := f.batch.Get(f.table.ID, s.Key)
	if err != nil {
		return false, err
	}
	f.base = max(f.base, s.Base)
	f.origins.meet(s)
	moved, image, err := transform.Fold(&e, s, f.image[:0])
	if err != nil {
		return false, fmt.Errorf("partition %d, offset %d: %w", s.Partition, s.Offset, err)
	}
	if !moved {
		return false, nil
	}
	f.image = image
	return true, f.batch.Put(f.table.ID, s.Key, e)
}

// keep remembers a copy of an aggregate's newest event, without its data.
func (f *fold) keep(e *transform.Event) {
	c := *e
	c.Table, c.Data, c.State = f.table, nil, nil
	c.Key, c.Related = bytes.Clone(e.Key), bytes.Clone(e.Related)
	if e.Context != nil {
		context := *e.Context
		context.Reason = bytes.Clone(context.Reason)
		c.Context = &context
	}
	key := string(c.Key)
	if _, ok := f.newest[key]; !ok {
		f.order = append(f.order, key)
	}
	f.newest[key] = &c
}

// finish publishes latest for the aggregates that the events moved, then commits
// the fold with the marks, and with what follows from it: once the marks are
// remembered, nothing tells any more that there was something to fold.
func (f *fold) finish(ctx context.Context, below []int64, marks []transform.Mark) error {
	err := f.remember(marks)
	if err == nil {
		err = f.republish(ctx, below, &marks)
	}
	if err == nil {
		err = f.remember(marks)
	}
	if err != nil {
		f.b.store.Drop(f.batch)
		return err
	}
	for _, m := range marks {
		f.b.memory.setMark(f.batch, markName(f.table.ID, m.Topic, m.Partition), m)
	}
	if f.rebuilt {
		if err := setRun(f.batch, f.table.ID, importRun{Reconcile: true}); err != nil {
			f.b.store.Drop(f.batch)
			return err
		}
	}
	if f.moved {
		setMoved(f.batch, true)
	}
	if f.last {
		setFences(f.batch, 0)
	}
	base, err := f.b.memory.base()
	if err != nil {
		f.b.store.Drop(f.batch)
		return err
	}
	if f.base > base {
		setBase(f.batch, f.base)
	}
	if err := f.b.store.Commit(f.batch); err != nil {
		return err
	}
	failpoint.Hit("recovered")
	return nil
}

func (f *fold) republish(ctx context.Context, below []int64, marks *[]transform.Mark) error {
	if len(f.order) == 0 {
		return nil
	}
	events := make([]transform.Event, 0, len(f.order))
	for _, key := range f.order {
		e, _, err := f.batch.Get(f.table.ID, []byte(key))
		if err != nil {
			return err
		}
		event := *f.newest[key]
		event.State = e.Image
		events = append(events, event)
	}
	pub, err := f.b.sink.EncodeState(events, below)
	if err != nil {
		return fmt.Errorf("encode %s: %w", f.table.Topics.Latest, err)
	}
	defer pub.Release()
	failpoint.Hit("events-folded")
	if err := pub.Latest(ctx); err != nil {
		return fmt.Errorf("publish %s: %w", f.table.Topics.Latest, err)
	}
	failpoint.Hit("latest-republished")
	*marks = append(*marks, pub.Marks()...)
	return nil
}

// checkSlot refuses to stream where slot and state don't fit. It is asked after
// the fold, since a slot ahead of the state is right if another instance
// confirmed what it had published: then it has left more in the topics than the
// state remembered. A repair follows, because only that one knew which rows were
// to be read again.
func (b *Bridge) checkSlot(ctx context.Context, start capture.LSN, remembered, created bool) error {
	slot, err := b.db.SlotStatus(ctx)
	if err != nil {
		return fmt.Errorf("look at the slot: %w", err)
	}
	thing := "slot " + slot.Name
	switch {
	case b.repair && (created || !remembered || b.memory.rebound() || slot.Confirmed > start || start > slot.Current):
		b.log.Warn("changes are lost to the stream, the tables are compared with the state", "lsn", slot.Confirmed, "state_lsn", start)
		return b.rebase(ctx, slot.Confirmed)
	case b.memory.rebound():
		return repairOwed(thing, start)
	case !remembered:
		return b.begin(ctx, slot)
	case start > slot.Current:
		return &Refusal{Thing: thing,
			Problem: fmt.Sprintf("the state has everything up to %s, but the server's WAL ends at %s: it has gone back, or source.dsn leads to an older copy of it", start, slot.Current),
			Cure: "if the database was restored from a backup, run `backstory backfill --reconcile`: it compares the table with the state and " +
				"publishes the differences; else point source.dsn to the server that the state was made from"}
	case slot.Confirmed <= start:
		return b.remember(start)
	case !b.memory.moved():
		return &Refusal{Thing: thing,
			Problem: fmt.Sprintf("it was moved to %s while the state ends at %s: the changes between are lost to the stream", slot.Confirmed, start),
			Cure:    "run `backstory backfill --reconcile`: it compares the table with the state and publishes the differences"}
	}
	b.log.Warn("another instance has confirmed beyond the state, the tables are compared with it", "lsn", slot.Confirmed, "state_lsn", start)
	return b.compareAll(slot.Confirmed)
}

// repairOwed refuses to stream with a state that was bound to another timeline or
// server, by a repair that has not come to its end.
func repairOwed(thing string, start capture.LSN) error {
	return &Refusal{Thing: thing,
		Problem: fmt.Sprintf("a repair has ended before it could compare the tables with the state, whose position %s is of another timeline or server", start),
		Cure:    "run `backstory backfill --reconcile` again: it compares the table with the state and publishes the differences"}
}

// begin remembers where a new state starts. One that was rebuilt from the topics
// has positions: they must not lie beyond the server's WAL.
func (b *Bridge) begin(ctx context.Context, slot capture.SlotStatus) error {
	base, err := b.memory.base()
	if err != nil {
		return err
	}
	top, err := b.top(ctx)
	if err != nil {
		return err
	}
	if top > slot.Current+base {
		return &Refusal{Thing: "slot " + slot.Name,
			Problem: fmt.Sprintf("the topics tell of changes up to %s, but the server's WAL ends at %s: it has gone back, or source.dsn leads to an older copy of it", top, slot.Current+base),
			Cure: "if the database was restored from a backup, run `backstory backfill --reconcile`: it compares the table with the state and " +
				"publishes the differences; else point source.dsn to the server that the topics were written from"}
	}
	return b.remember(slot.Confirmed)
}

// top is the highest position that the state has.
func (b *Bridge) top(ctx context.Context) (top capture.LSN, err error) {
	err = b.store.Each(ctx, func(_ uint16, _ []byte, e transform.Entry) error {
		top = max(top, e.Place.Pos.LSN)
		return nil
	})
	return top, err
}

// rebase begins anew at lsn, with every table to be compared with the state. In a
// database that was restored from a backup, or moved to another server, the positions of the WAL start again
// below those that the topics have, and every change would be passed over as one
// that is known. Then a base is added to all positions from now on, which keeps
// them above. Records carry it, so that a state that is lost later finds the same
// one: with another one, changes that come again would not be recognised.
func (b *Bridge) rebase(ctx context.Context, lsn capture.LSN) error {
	base, err := b.memory.base()
	if err != nil {
		return err
	}
	top, err := b.top(ctx)
	switch {
	case err != nil:
		return err
	case top == 0: // a new state: there is nothing to repair
		return b.remember(lsn)
	case top >= lsn+base:
		base = top + 1 - lsn
		batch := b.store.Begin()
		setBase(batch, base)
		if err := b.store.Commit(batch); err != nil {
			return err
		}
	}
	return b.compareAll(lsn)
}

// compareAll has every table compared with the state, which streams from lsn on.
func (b *Bridge) compareAll(lsn capture.LSN) error {
	for _, t := range b.mapping.Tables {
		if err := b.again(t); err != nil {
			return err
		}
	}
	return b.remember(lsn)
}

// remember commits lsn as the place that the state has everything up to.
func (b *Bridge) remember(lsn capture.LSN) error {
	batch := b.store.Begin()
	setLSN(batch, lsn)
	setMoved(batch, false)
	batch.SetMeta(state.MetaRebound, nil)
	return b.store.Commit(batch)
}
