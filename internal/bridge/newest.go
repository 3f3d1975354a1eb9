package bridge

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// What the state remembers of the newest that it has, by name:
//
//	newest         see [newest.encode]
//	newest/window  8 bytes: from here on the state knows of every commit; then the tables, 2 bytes each
//	newest/began   8 bytes: where the timeline that the state is tied to began
//	newest/floor   8 bytes: there if the topics brought a base that the state did not have; see [memory.floor]
const (
	metaNewest = "newest"
	metaWindow = "newest/window"
	metaBegan  = "newest/began"
	metaFloor  = "newest/floor"
)

// commit names a transaction with a change of a mapped table: no other history of
// the same database has the very same one at the same place.
type commit struct {
	lsn   capture.LSN // of its commit record; a position of the server, without base
	xid   uint32
	time  int64  // of the commit, microseconds since 1970; 0: not known
	table uint16 // of one of its changes
}

// newest is what state and topics have of the newest history, in positions of the
// server, without base.
type newest struct {
	timeline int32       // that it is of; 0: nothing is known
	top      capture.LSN // the highest position of an event, or of a change that was noted
	commit   commit      // the newest that was taken from the stream; zero: none is known
}

// newestBytes is the length of what encode makes.
const newestBytes = 4 + 8 + 8 + 4 + 8 + 2

// encode writes timeline, top, and LSN, xid, time and table of the commit, all in
// big endian.
func (n *newest) encode() []byte {
	v := make([]byte, 0, newestBytes)
	v = binary.BigEndian.AppendUint32(v, uint32(n.timeline))
	v = binary.BigEndian.AppendUint64(v, uint64(n.top))
	v = binary.BigEndian.AppendUint64(v, uint64(n.commit.lsn))
	v = binary.BigEndian.AppendUint32(v, n.commit.xid)
	v = binary.BigEndian.AppendUint64(v, uint64(n.commit.time))
	return binary.BigEndian.AppendUint16(v, n.commit.table)
}

// newest returns what is remembered; zero if nothing is.
func (m memory) newest() (newest, error) {
	v, ok := m.store.Meta(metaNewest)
	if !ok {
		return newest{}, nil
	}
	if len(v) != newestBytes {
		return newest{}, damaged(metaNewest)
	}
	return newest{
		timeline: int32(binary.BigEndian.Uint32(v)),
		top:      capture.LSN(binary.BigEndian.Uint64(v[4:])),
		commit: commit{
			lsn:   capture.LSN(binary.BigEndian.Uint64(v[12:])),
			xid:   binary.BigEndian.Uint32(v[20:]),
			time:  int64(binary.BigEndian.Uint64(v[24:])),
			table: binary.BigEndian.Uint16(v[32:]),
		},
	}, nil
}

func setNewest(b *state.Batch, n newest) { b.SetMeta(metaNewest, n.encode()) }

// window returns from where on the state knows of every transaction that changed a
// table of the mapping; ok is false if it does not know that of the tables.
func (m memory) window(tables []*transform.Table) (from capture.LSN, ok bool) {
	v, found := m.store.Meta(metaWindow)
	if !found || len(v) < 8 {
		return 0, false
	}
	return capture.LSN(binary.BigEndian.Uint64(v)), bytes.Equal(v[8:], tableIDs(tables))
}

// began is where the timeline began that the state is tied to; ok is false if that is
// not known.
func (m memory) began() (at capture.LSN, ok bool) {
	v, found := m.store.Meta(metaBegan)
	if !found || len(v) != 8 {
		return 0, false
	}
	return capture.LSN(binary.BigEndian.Uint64(v)), true
}

func setBegan(b *state.Batch, at capture.LSN) {
	b.SetMeta(metaBegan, binary.BigEndian.AppendUint64(nil, uint64(at)))
}

// floor is a position at or above the one from which the base of the topics counts,
// where they have one that this state did not know: another instance has repaired them,
// or the state was lost. What the state knows of positions is of before. ok is false if
// that is not so.
func (m memory) floor() (at capture.LSN, ok bool) {
	v, found := m.store.Meta(metaFloor)
	if !found || len(v) != 8 {
		return 0, false
	}
	return capture.LSN(binary.BigEndian.Uint64(v)), true
}

func setFloor(b *state.Batch, at capture.LSN) {
	b.SetMeta(metaFloor, binary.BigEndian.AppendUint64(nil, uint64(at)))
}

// setWindow remembers that from a position on every transaction is known.
func setWindow(b *state.Batch, from capture.LSN, tables []*transform.Table) {
	b.SetMeta(metaWindow, append(binary.BigEndian.AppendUint64(nil, uint64(from)), tableIDs(tables)...))
}

func tableIDs(tables []*transform.Table) []byte {
	ids := make([]uint16, len(tables))
	for i, t := range tables {
		ids[i] = t.ID
	}
	slices.Sort(ids)
	var v []byte
	for _, id := range ids {
		v = binary.BigEndian.AppendUint16(v, id)
	}
	return v
}

// sighting finds the newest record among those that a fold reads.
type sighting struct {
	found   bool
	base    capture.LSN // the highest; the rest is of the records that have it
	low     capture.LSN // the lowest position, without base
	record  sighted     // the one with the highest position
	change  sighted     // the one with the highest position of those that the stream brought
	streams bool        // there is such a one
}

// sighted is what decides of a record.
type sighted struct {
	place transform.Place
	xid   uint32
	time  int64
	id    transform.EventID
	key   []byte
	table *transform.Table
}

// see takes a record in. Positions under a former base are not comparable to those
// under a later one, which are newer.
func (s *sighting) see(r *transform.Stored, t *transform.Table) {
	switch {
	case s.found && r.Base < s.base:
		return
	case r.Base > s.base:
		*s = sighting{base: r.Base, record: sighted{key: s.record.key}, change: sighted{key: s.change.key}}
	}
	if at := r.Place.Pos.LSN - r.Base; !s.found || at < s.low {
		s.low = at
	}
	s.found = true
	s.record.raise(r, t)
	if r.Place.Pos.Kind == capture.KindChange && r.XID != 0 {
		s.streams = true
		s.change.raise(r, t)
	}
}

func (s *sighted) raise(r *transform.Stored, t *transform.Table) {
	if s.table == nil || r.Place.Compare(s.place) > 0 {
		*s = sighted{place: r.Place, xid: r.XID, time: r.Time, id: r.ID, key: append(s.key[:0], r.Key...), table: t}
	}
}

// Timelines that a record may be of though the server's is an earlier one: an old
// primary came back after fail-overs.
const (
	laterTimelines  = 64
	unknownTimeline = math.MaxInt32 // later than those
)

// timeline works out on which timeline the event was made, which its id tells.
func (s *sighted) timeline(now capture.Identity) int32 {
	for now.Timeline += laterTimelines; now.Timeline > 0; now.Timeline-- {
		if transform.NewEventID(now, s.table.Aggregate, s.key, s.place) == s.id {
			return now.Timeline
		}
	}
	return unknownTimeline
}

// newest is what the records say, in positions of the server. There is one at least.
func (s *sighting) newest(now capture.Identity) (n newest) {
	n.timeline, n.top = s.record.timeline(now), s.record.place.Pos.LSN-s.base
	if s.streams && s.change.timeline(now) == n.timeline {
		c := &s.change
		n.commit = commit{lsn: c.place.Pos.LSN - s.base, xid: c.xid, time: c.time, table: c.table.ID}
	}
	return n
}

// reach takes in the highest position of a piece, with its base; 0 if it has none.
func (n *newest) reach(top, base capture.LSN, timeline int32) {
	if top > base {
		n.timeline, n.top = timeline, max(n.top, top-base)
	}
}

// join returns the newer of both: that of the later timeline, of one timeline the
// highest positions.
func (n newest) join(m newest) newest {
	switch {
	case m.timeline > n.timeline:
		return m
	case m.timeline < n.timeline:
		return n
	}
	n.top = max(n.top, m.top)
	if m.commit.lsn > n.commit.lsn {
		n.commit = m.commit
	}
	return n
}
