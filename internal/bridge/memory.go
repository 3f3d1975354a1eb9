package bridge

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// What the bridge keeps in the state beside the aggregates, by name:
//
//	lsn                     8 bytes: everything below is published and in the state
//	base                    8 bytes: what is added to the positions of the WAL; see rebase
//	moved                   there if the topics had more than a session of this state has left in them
//	fences                  8 bytes: own fences since the ends of the topics were remembered, if any
//	aggregate/NAME          JSON [registration]
//	mark/ID/TOPIC/PARTITION 32 bytes: end, offset of the newest record, its ce_id
//	former/ID               JSON list of transform.Former: sources that the topics had before
//	import/ID               JSON [importRun]
//	shape/ID                JSON [capture.Shape]: the table as it was when the newest row was mapped
//	old/SEQUENCE            image that an aggregate had before its key was changed, see [states]
//	newest, newest/window   how far the history goes that the state was made from, see [newest]
const (
	metaLSN    = "lsn"
	metaMoved  = "moved"
	metaFences = "fences"
	metaBase   = "base"
)

// registration ties an aggregate's name to its number in the state and to what
// must not change under it.
type registration struct {
	ID          uint16   `json:"id"`
	Table       string   `json:"table"`
	Key         []string `json:"key"`
	Events      string   `json:"events"`
	Latest      string   `json:"latest"`
	Fingerprint string   `json:"fingerprint"`
	Lineage     string   `json:"lineage"` // capture.TableInfo.Lineage
	Mapping     mapped   `json:"mapping"`
}

// changedMapping is a table whose mapping is not what it was.
type changedMapping struct {
	table   *transform.Table
	changes []string // for people
}

// memory reads and writes them.
type memory struct{ store *state.Store }

// lsn returns the position up to which the state has everything, and whether
// the bridge has ever streamed with this state.
func (m memory) lsn() (capture.LSN, bool, error) {
	v, ok := m.store.Meta(metaLSN)
	if !ok {
		return 0, false, nil
	}
	if len(v) != 8 {
		return 0, false, damaged(metaLSN)
	}
	return capture.LSN(binary.BigEndian.Uint64(v)), true, nil
}

func setLSN(b *state.Batch, lsn capture.LSN) {
	var v [8]byte
	binary.BigEndian.PutUint64(v[:], uint64(lsn))
	b.SetMeta(metaLSN, v[:])
}

// base returns what is added to the positions of the WAL.
func (m memory) base() (capture.LSN, error) {
	v, ok := m.store.Meta(metaBase)
	if !ok {
		return 0, nil
	}
	if len(v) != 8 {
		return 0, damaged(metaBase)
	}
	return capture.LSN(binary.BigEndian.Uint64(v)), nil
}

func setBase(b *state.Batch, base capture.LSN) {
	b.SetMeta(metaBase, binary.BigEndian.AppendUint64(nil, uint64(base)))
}

// moved reports whether a session that the state does not know of has been at
// the topics since the state's lsn was committed.
func (m memory) moved() bool {
	_, ok := m.store.Meta(metaMoved)
	return ok
}

func setMoved(b *state.Batch, moved bool) {
	var v []byte
	if moved {
		v = []byte{}
	}
	b.SetMeta(metaMoved, v)
}

// rebound reports whether the state's position is of another history than the
// server's, so that nothing can be streamed before the tables are compared.
func (m memory) rebound() bool {
	_, ok := m.store.Meta(state.MetaRebound)
	return ok
}

func setRebound(b *state.Batch) { b.SetMeta(state.MetaRebound, []byte{}) }

// fences is how many of the bridge's own fences the remembered ends of the topics do
// not have: those of processes that died before they remembered the ends anew. One
// that died before it could be counted looks like another instance's.
func (m memory) fences() (int64, error) {
	v, ok := m.store.Meta(metaFences)
	if !ok {
		return 0, nil
	}
	if len(v) != 8 {
		return 0, damaged(metaFences)
	}
	return int64(binary.BigEndian.Uint64(v)), nil
}

func setFences(b *state.Batch, n int64) {
	b.SetMeta(metaFences, binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// fenced counts a fence and returns the number.
func (m memory) fenced() (int64, error) {
	n, err := m.fences()
	if err != nil {
		return 0, err
	}
	b := m.store.Begin()
	setFences(b, n+1)
	return n + 1, m.store.Commit(b)
}

// renewed takes the markers of a renewed session into the remembered ends. Nothing
// may be under way.
func (m memory) renewed(tables []*transform.Table) error {
	b := m.store.Begin()
	for _, t := range tables {
		for _, topic := range []transform.Topic{transform.Events, transform.Latest} {
			marks, _, err := m.marks(t, topic)
			if err != nil {
				m.store.Drop(b)
				return err
			}
			for _, mark := range marks {
				mark.End, mark.LastAt = mark.End+1, -1
				m.setMark(b, markName(t.ID, topic, mark.Partition), mark)
			}
		}
	}
	return m.store.Commit(b)
}

func markName(table uint16, topic transform.Topic, partition int32) string {
	return fmt.Sprintf("mark/%d/%s/%d", table, topic, partition)
}

// marks returns what is remembered of a topic, one for each partition of it;
// ok is false where nothing is remembered of any.
func (m memory) marks(t *transform.Table, topic transform.Topic) (marks []transform.Mark, ok bool, err error) {
	for p := range t.Topics.Partitions {
		mark, found, err := m.mark(markName(t.ID, topic, p))
		if err != nil {
			return nil, false, err
		}
		ok = ok || found
		mark.Table, mark.Topic, mark.Partition = t, topic, p
		marks = append(marks, mark)
	}
	return marks, ok, nil
}

// mark returns what is remembered of one partition; its place is for the caller
// to fill in.
func (m memory) mark(name string) (mark transform.Mark, ok bool, err error) {
	mark.LastAt = -1
	v, ok := m.store.Meta(name)
	if !ok {
		return mark, false, nil
	}
	if len(v) != 32 {
		return mark, false, damaged(name)
	}
	mark.End = int64(binary.BigEndian.Uint64(v))
	mark.LastAt = int64(binary.BigEndian.Uint64(v[8:]))
	copy(mark.Last[:], v[16:])
	return mark, true, nil
}

// setMark remembers the end of a partition. A mark without a record keeps the
// record that was remembered before.
func (m memory) setMark(b *state.Batch, name string, mark transform.Mark) {
	var v [32]byte
	if mark.LastAt < 0 {
		if old, ok := m.store.Meta(name); ok && len(old) == len(v) {
			copy(v[:], old)
		} else {
			binary.BigEndian.PutUint64(v[8:], uint64(mark.LastAt))
		}
	} else {
		binary.BigEndian.PutUint64(v[8:], uint64(mark.LastAt))
		copy(v[16:], mark.Last[:])
	}
	binary.BigEndian.PutUint64(v[:], uint64(mark.End))
	b.SetMeta(name, v[:])
}

// changes says, for people, why the table is to be compared with the state.
func (r registration) changes(now registration) (found []string) {
	if r.Fingerprint != now.Fingerprint {
		found = r.Mapping.changes(now.Mapping)
	}
	if r.Lineage != now.Lineage {
		found = append(found, "the table, its publication or its place in it was replaced or altered: the stream may have a gap")
	}
	return found
}

// recall gives each table its number without writing anything; tables that the
// state does not know get numbers that it does not use.
func (m memory) recall(tables []*transform.Table) error {
	for i, t := range tables {
		r, ok, err := m.registration(t.Aggregate)
		if err != nil {
			return err
		}
		t.ID = r.ID
		if !ok {
			t.ID = math.MaxUint16 - uint16(i) //nolint:gosec // a mapping has few tables
		}
	}
	return nil
}

func (m memory) registration(aggregate string) (r registration, ok bool, err error) {
	v, ok := m.store.Meta("aggregate/" + aggregate)
	if !ok {
		return registration{}, false, nil
	}
	if err := json.Unmarshal(v, &r); err != nil {
		return registration{}, false, damaged("aggregate/" + aggregate)
	}
	return r, true, nil
}

// stayed refuses a mapping that gives another slot a table which this state has
// from its own. The other slot begins with the changes from now on: what this one
// has not published yet would become the differences of a comparison.
func (m memory) stayed(elsewhere []*transform.Table) error {
	for _, t := range elsewhere {
		_, ok, err := m.registration(t.Aggregate)
		if err != nil {
			return err
		}
		if ok {
			return &Refusal{
				Thing:   "mapping of aggregate " + t.Aggregate,
				Problem: fmt.Sprintf("the state of this slot has table %s, and the mapping gives it to slot %d", t, t.Slot),
				Cure: "put its slot back; or move it: let the former mapping publish all changes while nobody writes the table, stop, " +
					"move the state directory of the slot that it leaves away (it is rebuilt from the topics) and take the table out of that slot's publication",
			}
		}
	}
	return nil
}

func putJSON(b *state.Batch, name string, v any) error {
	j, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("state: %s: %w", name, err)
	}
	b.SetMeta(name, j)
	return nil
}

func damaged(name string) error {
	return &Refusal{Thing: "state", Problem: "its entry " + name + " can't be read",
		Cure: "move the state directory away: it is rebuilt from the topics at the next start"}
}
