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
func (b *Bridge) recover(ctx context.Context) error {
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
	return nil
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
	marks, err := f.foldLatest(ctx, ends(latest))
	if err != nil {
		return err
	}
	if err := b.sink.Orphans(ctx, t, ends(latest)); err != nil {
		return fmt.Errorf("check the topics: %w", err)
	}
	moreMarks, err := f.foldEvents(ctx, ends(events))
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
	newest sighting    // of all records
	// origins are the sources of the records.
	origins origins
	// rebuilt: the state was lost; moved: a session that it does not know of has
	// been at the topics.
	rebuilt, moved bool
	// events are the newest of the aggregates that the events topic moved beyond
	// latest; order has their keys as they came.
	events map[string]*transform.Event
	order  []string
}

// foldLatest folds full images, committing as it goes: the state stays at or below
// the topic.
func (f *fold) foldLatest(ctx context.Context, from []int64) ([]transform.Mark, error) {
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

// foldEvents folds what the events topic has beyond latest. Nothing is committed
// here: what the events moved must be in latest first, else a crash would leave
// a state that is ahead of the topic. It is at most what was in flight.
func (f *fold) foldEvents(ctx context.Context, from []int64) ([]transform.Mark, error) {
	f.batch, f.events = f.b.store.Begin(), map[string]*transform.Event{}
	marks, err := f.b.sink.Fold(ctx, f.table, transform.Events, from, func(s *transform.Stored) error {
		f.folded++
		moved, err := f.apply(s)
		if err != nil {
			return err
		}
		if moved {
			f.keep(&s.Event)
		}
		return f.tr.Moved(s, states{Batch: f.batch})
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
	if f.origins.here(s) {
		f.newest.see(s, f.table)
	}
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
	if _, ok := f.events[key]; !ok {
		f.order = append(f.order, key)
	}
	f.events[key] = &c
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
		run, err := f.b.memory.owed(f.table.ID)
		if err == nil {
			err = setRun(f.batch, f.table.ID, run)
		}
		if err != nil {
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
	if err := f.place(); err != nil {
		f.b.store.Drop(f.batch)
		return err
	}
	if err := f.b.store.Commit(f.batch); err != nil {
		return err
	}
	failpoint.Hit("recovered")
	return nil
}

// place takes into the state what the records tell of positions: the base that was
// added to them, and how far they go.
func (f *fold) place() error {
	base, err := f.b.memory.base()
	if err != nil {
		return err
	}
	if f.base > base {
		setBase(f.batch, f.base)
	}
	if !f.newest.found || f.newest.base < base {
		return nil
	}
	known, err := f.b.memory.newest()
	if err != nil {
		return err
	}
	floor, floored := f.b.memory.floor()
	switch {
	case f.newest.base > base:
		known = newest{} // its positions are of before a repair
		setFloor(f.batch, f.newest.low)
	case floored:
		setFloor(f.batch, min(floor, f.newest.low))
	}
	now := known.join(f.newest.newest(f.b.identity))
	if now == known {
		return nil
	}
	if now.commit == (commit{}) {
		f.batch.SetMeta(metaWindow, nil) // the commits before are not known any more
	}
	setNewest(f.batch, now)
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
		event := *f.events[key]
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
