package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// Adopt permits the first session of Run to take in the records of other sources
// that the topics have, and with them the topics: the rows were moved to another
// server. It goes with Repair, and is called before Run.
func (b *Bridge) Adopt() { b.adopts(true) }

func (b *Bridge) adopts(on bool) {
	for _, t := range b.mapping.Tables {
		t.Adopts = on
	}
}

// Recognize gives the tables of the mapping what the state knows of their former
// sources, and the names that they had before. It is called when the database was
// looked at, and before the topics are: they are refused if they tell of a source that
// no table had.
func (b *Bridge) Recognize(found []capture.TableInfo, id capture.Identity) error {
	if err := b.memory.recallFormer(b.mapping.Tables); err != nil {
		return err
	}
	for _, t := range b.mapping.Tables {
		r, ok, err := b.memory.registration(t.Aggregate)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		was, err := b.memory.shape(r.ID)
		if err != nil || was == nil {
			if err != nil {
				return err
			}
			continue
		}
		info := infoOf(found, t)
		if former := renamedFrom(t, was, &info, id); former != nil && t.FormerOf(former.Source) == nil {
			t.Former = append(slices.Clone(t.Former), *former)
		}
	}
	return nil
}

// RecallFormer gives the tables of a mapping what a state knows of their former
// sources, for those who look at the topics without a bridge.
func RecallFormer(store *state.Store, tables []*transform.Table) error {
	return memory{store}.recallFormer(tables)
}

func formerName(table uint16) string { return fmt.Sprintf("former/%d", table) }

// recallFormer is asked by the names of the aggregates: numbers are not needed.
func (m memory) recallFormer(tables []*transform.Table) error {
	for _, t := range tables {
		t.Former = nil // what a batch would have added that was never committed
		r, ok, err := m.registration(t.Aggregate)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if t.Former, err = m.former(r.ID); err != nil {
			return err
		}
	}
	return nil
}

// former are the former sources of a table that are remembered.
func (m memory) former(table uint16) (former []transform.Former, err error) {
	v, ok := m.store.Meta(formerName(table))
	if !ok {
		return nil, nil
	}
	if err := json.Unmarshal(v, &former); err != nil {
		return nil, damaged(formerName(table))
	}
	return former, nil
}

// addFormer adds former sources to those that the records of a table may be of, and
// has the batch remember them. One that is known is replaced. The table has its
// number.
func addFormer(b *state.Batch, t *transform.Table, former ...transform.Former) error {
	t.Former = slices.Clone(t.Former) // readers of the topics may have the old ones
	for _, f := range former {
		if known := t.FormerOf(f.Source); known != nil {
			*known = f
		} else {
			t.Former = append(t.Former, f)
		}
	}
	return putJSON(b, formerName(t.ID), t.Former)
}

// samePartitions refuses topics with another number of partitions than the records
// were written with, whatever the mapping says: the state has a mark of each.
func (m memory) samePartitions(tables []*transform.Table) error {
	for _, t := range tables {
		for _, topic := range []transform.Topic{transform.Events, transform.Latest} {
			if n := m.partitions(t.ID, topic); n != 0 && n != t.Topics.Partitions {
				name := t.Topics.Events
				if topic == transform.Latest {
					name = t.Topics.Latest
				}
				return &Refusal{
					Thing:   "topic " + name,
					Problem: fmt.Sprintf("its records were written with %d partitions, and now there are %d", n, t.Topics.Partitions),
					Cure: fmt.Sprintf("keys would move to other partitions: restore both topics and the mapping with %d partitions; or give the table "+
						"new topics, move the state directory away and start again, which publishes every row anew", n),
				}
			}
		}
	}
	return nil
}

// partitions is how many partitions of a topic are remembered; 0 before the first
// recovery.
func (m memory) partitions(table uint16, topic transform.Topic) (n int32) {
	for {
		if _, ok := m.store.Meta(markName(table, topic, n)); !ok {
			return n
		}
		n++
	}
}

// origins are the sources other than a table's own whose records a fold has met.
type origins struct {
	own   string
	found []string // sources, the first one first
}

// here reports whether a record was made in the table's own database, whatever the
// table's name was: its position is one of this server's WAL.
func (o *origins) here(s *transform.Stored) bool {
	return strings.HasPrefix(s.Source, o.own[:strings.LastIndexByte(o.own, '/')+1]) || s.Source == ""
}

// meet notes what a record tells. That it was handed out means that its source may
// be in the topic.
func (o *origins) meet(s *transform.Stored) {
	o.add(s.Source)
	for _, f := range s.Former {
		o.add(f)
	}
}

func (o *origins) add(source string) {
	if source != o.own && source != "" && !slices.Contains(o.found, source) {
		o.found = append(o.found, source)
	}
}

// former are the sources that the table is to remember from now on. One that is
// adopted ends with the marks, which are those of all partitions.
func (o *origins) former(t *transform.Table, marks []transform.Mark) (former []transform.Former) {
	for _, source := range o.found {
		switch f := (transform.Former{Source: source}); {
		case t.Adopts:
			f.Events, f.Latest = endsOf(marks, transform.Events), endsOf(marks, transform.Latest)
			former = append(former, f)
		case t.FormerOf(source) == nil:
			former = append(former, f)
		}
	}
	return former
}

// endsOf are the ends of a topic's partitions; of two marks of one the higher.
func endsOf(marks []transform.Mark, topic transform.Topic) []int64 {
	var ends []int64
	for _, m := range marks {
		if m.Topic != topic {
			continue
		}
		for int(m.Partition) >= len(ends) {
			ends = append(ends, 0)
		}
		ends[m.Partition] = max(ends[m.Partition], m.End)
	}
	return ends
}

// survey meets the newest records of both topics: of a topic whose records are all
// in the state the fold meets none.
func (f *fold) survey(ctx context.Context) error {
	for _, topic := range []transform.Topic{transform.Events, transform.Latest} {
		newest, err := f.b.sink.Newest(ctx, f.table, topic)
		if err != nil {
			return fmt.Errorf("newest records of topic %s of %s: %w", topic, f.table, err)
		}
		for _, s := range newest {
			if s != nil {
				f.origins.meet(s)
			}
		}
	}
	return nil
}

// remember has the batch remember the sources that were met. They are known before
// anything is published, since records tell of them; where they end, when all is.
func (f *fold) remember(marks []transform.Mark) error {
	former := f.origins.former(f.table, marks)
	if len(former) == 0 {
		return nil
	}
	if f.table.Adopts {
		// Its positions are of another server: the tables must be compared, by a
		// later repair if this one does not come to it.
		f.batch.SetMeta(state.MetaRebound, []byte{})
	}
	return addFormer(f.batch, f.table, former...)
}
