package bridge

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// mending is a comparison that a repair begins by itself; see [Bridge.Mend].
type mending struct {
	request BackfillRequest
	tables  []*transform.Table
}

// enrolment is one table of the mapping on its way into the state.
type enrolment struct {
	m        memory
	table    *transform.Table
	info     capture.TableInfo
	id       capture.Identity
	seen     capture.LSN // capture.Prepared.Seen
	mending  *BackfillRequest
	old, now registration
	known    bool // the state has old
	was      *capture.Shape
	shape    capture.Shape
}

// register gives each table of the mapping its number and refuses one whose
// aggregate was made with another table, key or topic. Where the mapping changed
// in any other way, or the stream has a gap because the table or its publication
// was replaced, the table's import begins anew, as one that repairs; those tables
// are reported. With it go the shapes that the tables have by now. All is committed at
// once: a change that is only remembered would never be repaired.
func (m memory) register(tables []*transform.Table, p *capture.Prepared, mend mending) (changed []changedMapping, shapes []capture.Shape, err error) {
	last := uint16(0)
	if v, ok := m.store.Meta("tables"); ok && len(v) == 2 {
		last = binary.BigEndian.Uint16(v)
	}
	b := m.store.Begin()
	defer func() {
		if err != nil {
			m.store.Drop(b)
		}
	}()
	for _, t := range tables {
		e := enrolment{m: m, table: t, info: infoOf(p.Tables, t), id: p.Identity, seen: p.Seen}
		if slices.Contains(mend.tables, t) {
			e.mending = &mend.request
		}
		if err := e.read(); err != nil {
			return nil, nil, err
		}
		if !e.known {
			last++
			e.now.ID = last
		}
		t.ID = e.now.ID
		found, err := e.enrol(b)
		if err != nil {
			return nil, nil, err
		}
		if e.known && e.old.Lineage != e.now.Lineage {
			b.SetMeta(metaWindow, nil) // what the stream brings again may be of another table
		}
		if len(found) > 0 {
			changed = append(changed, changedMapping{t, found})
		}
		shapes = append(shapes, e.shape)
	}
	b.SetMeta("tables", binary.BigEndian.AppendUint16(nil, last))
	return changed, shapes, m.store.Commit(b)
}

// infoOf is the mapped table in the catalog; zero if it is not there.
func infoOf(infos []capture.TableInfo, t *transform.Table) capture.TableInfo {
	for _, info := range infos {
		if info.Schema == t.Schema && info.Name == t.Name {
			return info
		}
	}
	return capture.TableInfo{}
}

// read fills in what the state has of the table, and what it is to have.
func (e *enrolment) read() (err error) {
	t := e.table
	print := t.Fingerprint()
	e.now = registration{Table: t.Schema + "." + t.Name, Key: t.Key, Events: t.Topics.Events,
		Latest: t.Topics.Latest, Fingerprint: hex.EncodeToString(print[:]), Mapping: mappedOf(t), Lineage: e.info.Lineage}
	e.shape = e.info.Shape
	if e.old, e.known, err = e.m.registration(t.Aggregate); err != nil || !e.known {
		return err
	}
	e.now.ID = e.old.ID
	if e.was, err = e.m.shape(e.old.ID); err != nil {
		return err
	}
	e.shape = e.info.Shape.Follow(e.was, e.seen, time.Now().Unix())
	return nil
}

// enrol writes the table's registration and shape, and the comparison that it is owed.
// found says, for people, why it is.
func (e *enrolment) enrol(b *state.Batch) (found []string, err error) {
	if err := e.m.setShape(b, e.now.ID, &e.shape); err != nil {
		return nil, err
	}
	if former := e.renamed(); former != nil {
		if err := addFormer(b, e.table, *former); err != nil {
			return nil, err
		}
	}
	if err := e.forget(b); err != nil {
		return nil, err
	}
	run, err := e.m.owed(e.now.ID)
	if err != nil {
		return nil, err
	}
	if run.Passing.above(e.seen) {
		run.Passing = passing{}
	}
	owes := false
	if e.known {
		if found, err = e.changes(&run); err != nil {
			return nil, err
		}
		owes = len(found) > 0
	}
	if e.mending != nil {
		run.Passing.Unmapped = e.seen
		run.Reconcile = e.known
		run.ChunkRows, run.RowsPerSecond = e.mending.ChunkRows, e.mending.RowsPerSecond
		owes = true
	}
	if owes {
		if err := setRun(b, e.now.ID, run); err != nil {
			return nil, err
		}
	}
	return found, putJSON(b, "aggregate/"+e.table.Aggregate, e.now)
}

// renamed is the source that the table's records were of before it was renamed; nil if
// it was not.
func (e *enrolment) renamed() *transform.Former {
	if e.was == nil {
		return nil
	}
	return renamedFrom(e.table, e.was, &e.info, e.id)
}

// renamedFrom is the source that a table had under another name; nil if it has had the
// one that it has.
func renamedFrom(t *transform.Table, was *capture.Shape, info *capture.TableInfo, id capture.Identity) *transform.Former {
	if was.Table != info.Shape.Table || was.Schema == t.Schema && was.Name == t.Name {
		return nil
	}
	return &transform.Former{Source: transform.SourceOf(id, was.Schema, was.Name)}
}

// forget takes what a run passes over out of it where its positions are those of
// another history: they lie above the end of WAL.
func (e *enrolment) forget(b *state.Batch) error {
	run, ok, err := e.m.run(e.now.ID)
	if err != nil || !ok || !run.Passing.above(e.seen) {
		return err
	}
	run.Passing = passing{}
	return setRun(b, e.now.ID, run)
}

// changes says why the table is to be compared with the state, and what of WAL the
// run then passes over; it refuses what would tear the history of an aggregate apart.
func (e *enrolment) changes(run *importRun) (found []string, err error) {
	if err := e.sameAggregate(); err != nil {
		return nil, err
	}
	found = e.old.changes(e.now)
	if e.old.Lineage != e.now.Lineage {
		run.Passing.Doubted = e.seen
	}
	if e.was == nil {
		return found, nil
	}
	problem := e.shape.KeyChange(e.was)
	switch {
	case problem == "":
	case e.mending == nil:
		return nil, &Refusal{Thing: "table " + e.table.String(), Problem: problem + ": the keys of its rows may print differently now",
			Cure: capture.KeyChangeCure}
	default:
		run.Passing.All = e.seen
		found = append(found, problem)
	}
	return found, nil
}

// sameAggregate refuses what would tear the history of an aggregate apart. A table, or
// a column of its key, that was only renamed is the same; the former name is kept.
func (e *enrolment) sameAggregate() error {
	e.follow()
	for _, d := range []struct{ what, old, now string }{
		{"table", e.old.Table, e.now.Table},
		{"key", fmt.Sprint(e.old.Key), fmt.Sprint(e.now.Key)},
		{"events topic", e.old.Events, e.now.Events},
		{"latest topic", e.old.Latest, e.now.Latest},
	} {
		if d.old != d.now {
			return &Refusal{
				Thing:   "mapping of aggregate " + e.table.Aggregate,
				Problem: fmt.Sprintf("its %s was %s and is now %s", d.what, d.old, d.now),
				Cure:    "its history would be torn apart: put it back, or give the table a new aggregate name and new topics",
			}
		}
	}
	return nil
}

// follow makes the remembered names those of now where they mean what they meant: the
// catalog's own numbers tell. No byte of an event depends on them.
func (e *enrolment) follow() {
	if e.was == nil || e.was.Table != e.shape.Table {
		return
	}
	sameKey := e.shape.SameKey(e.was)
	if e.old.Table == e.now.Table && (slices.Equal(e.old.Key, e.now.Key) || !sameKey) {
		return
	}
	key := e.now.Key
	if sameKey {
		key = e.old.Key
	}
	print := e.table.FingerprintAs(e.was.Schema, e.was.Name, key)
	if e.old.Fingerprint == hex.EncodeToString(print[:]) {
		e.old.Fingerprint = e.now.Fingerprint
	}
	e.old.Table = e.now.Table
	if sameKey {
		e.old.Key = e.now.Key
	}
}

func shapeName(table uint16) string { return fmt.Sprintf("shape/%d", table) }

// shape returns the remembered shape of a table; nil if there is none.
func (m memory) shape(table uint16) (*capture.Shape, error) {
	v, ok := m.store.Meta(shapeName(table))
	if !ok {
		return nil, nil
	}
	var s capture.Shape
	if err := json.Unmarshal(v, &s); err != nil {
		return nil, damaged(shapeName(table))
	}
	return &s, nil
}

// setShape remembers the shape of a table; a zero one is none.
func (m memory) setShape(b *state.Batch, table uint16, s *capture.Shape) error {
	if s.Table == 0 {
		return nil
	}
	return putJSON(b, shapeName(table), s)
}
