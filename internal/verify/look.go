package verify

import (
	"bytes"
	"fmt"

	"backstory/capture"
)

// look is the comparison of one key. Its rules are in DESIGN.md.
type look struct {
	key string

	// What this look found, in this order: the row, the state, the latest topic,
	// and then every event of the key on the way from base to newest.
	row    []byte // image of the row; nil: the table does not have it
	state  StateEntry
	latest version
	base   uint64 // version of the fold before the row was read
	newest uint64 // version of the fold at the end

	// truth is what the row must be: the newest version whose transaction the
	// row's snapshot saw. While there is none, trail has the versions that may
	// become it in a later look.
	truth *version
	trail []version

	stateMet, latestMet bool // the version that it has has come by
	found               []Difference
	again               bool // the key has to be looked at again before anything is told
}

// sight decides what a snapshot saw.
type sight struct {
	snapshot *capture.Snapshot
	horizon  capture.LSN // what committed below is visible to every snapshot
	before   capture.LSN // a place in WAL from before the snapshot
}

// saw is the visibility rule: the row of a snapshot can be held against a version
// only if the snapshot saw the transaction that made it. A version that a backfill
// read out of the table was there before its watermark.
func (s *sight) saw(v *version) bool {
	pos := v.place.Pos
	switch {
	case v.number == 0, pos.LSN < s.horizon:
		return true
	case v.xid == 0:
		return pos.LSN < s.before
	}
	return s.snapshot.Visible(v.xid)
}

// begin takes the fold as it was before the row was read.
func (l *look) begin(base *version, s *sight) {
	l.base = base.number
	trail := l.trail
	if l.truth, l.trail = nil, nil; len(trail) == 0 {
		l.meet(base, s)
		return
	}
	for i := range trail { // its last one is the base
		l.meet(&trail[i], s)
	}
}

// meet takes a version that the events brought.
func (l *look) meet(v *version, s *sight) {
	l.newest = v.number
	if v.number == l.state.Version && !l.stateMet {
		l.stateMet = true
		l.compareState(v)
	}
	if v.number == l.latest.number && !l.latestMet {
		l.latestMet = true
		l.compareLatest(v)
	}
	own := v.own()
	switch {
	case s.saw(v):
		l.truth, l.trail = &own, nil
	case l.truth == nil:
		l.trail = append(l.trail, own)
	case v.xid == 0:
		l.again = true // a backfill read the row before this look or after it
	}
}

// judge concludes the look. It reports whether the key is settled: all four were
// compared, and what was found can be told.
func (l *look) judge() bool {
	l.judgeVersions()
	switch {
	case l.truth == nil, l.state.Again, l.again:
		return false
	case l.truth.broken:
		return l.judgeBroken()
	}
	l.compareRow(Events, l.truth.exists, l.truth.image)
	return !l.again
}

// judgeVersions compares who has come how far. The state is asked after everything
// below the watermark is committed, the latest topic is read after that and the
// events topic at last; what becomes durable in the opposite order can only be
// newer at each step.
func (l *look) judgeVersions() {
	l.judgeVersion(State, l.state.Version, l.base, l.stateMet)
	least, of := l.base, Events
	if l.state.Version > least && l.state.Version <= l.newest {
		least, of = l.state.Version, State
	}
	if l.latest.number < least && of == State {
		l.add(Difference{Problem: Behind, Field: "version", Values: []Value{{Latest, number(l.latest.number)}, {State, number(least)}}})
		return
	}
	l.judgeVersion(Latest, l.latest.number, l.base, l.latestMet)
}

func (l *look) judgeVersion(side Side, has, base uint64, met bool) {
	d := Difference{Field: "version", Values: []Value{{side, number(has)}, {Events, number(l.newest)}}}
	switch {
	case has < base && has == 0:
		d.Problem, d.Detail = Missing, fmt.Sprintf("the %s does not have the aggregate", side)
		d.Values[0].Value = nil
	case has < base:
		d.Problem = Behind
	case has > l.newest && l.newest == 0:
		d.Problem, d.Detail = Missing, "the events do not have the aggregate"
		d.Values[1].Value = nil
	case has > l.newest, !met:
		d.Problem = Unfounded
	default:
		return
	}
	l.add(d)
}

// compareState holds the entry of the state against the same version of the fold.
func (l *look) compareState(v *version) {
	s := &l.state
	if v.number == 0 || v.broken {
		return
	}
	if s.Digest == nil || !v.exists {
		l.compareExistence(State, s.Digest != nil, v.exists, s.Image, v.image)
	} else if !bytes.Equal(s.Digest, digest(v.image)) {
		l.compareImages(State, s.Image, Events, v.image)
	}
	if s.Noted {
		return // position and xid are those of a change that made no version
	}
	if s.Place != v.place {
		l.add(Difference{Problem: HeadersDiffer, Field: "position", Values: []Value{{State, sequence(s.Place)}, {Events, sequence(v.place)}}})
	}
	if s.XID != v.xid {
		l.add(Difference{Problem: HeadersDiffer, Field: "xid", Values: []Value{{State, number(uint64(s.XID))}, {Events, number(uint64(v.xid))}}})
	}
}

// compareLatest holds the record of the latest topic against the same version of
// the fold.
func (l *look) compareLatest(v *version) {
	r := &l.latest
	if v.number == 0 {
		return
	}
	if !v.broken {
		if r.exists != v.exists {
			l.compareExistence(Latest, r.exists, v.exists, r.image, v.image)
		} else if !bytes.Equal(r.image, v.image) {
			l.compareImages(Latest, r.image, Events, v.image)
		}
	}
	for _, h := range []struct {
		name      string
		same      bool
		have, fit []byte
	}{
		{"position", r.place == v.place, sequence(r.place), sequence(v.place)},
		{"xid", r.xid == v.xid, number(uint64(r.xid)), number(uint64(v.xid))},
		{"id", r.id == v.id, quoted(r.id.String()), quoted(v.id.String())},
	} {
		if !h.same {
			l.add(Difference{Problem: HeadersDiffer, Field: h.name, Values: []Value{{Latest, h.have}, {Events, h.fit}}})
		}
	}
	if r.below > v.offset && r.partition == v.partition {
		l.add(Difference{Problem: WrongOffset, Field: "ce_eventsoffset", Values: []Value{{Latest, number(uint64(r.below))}},
			Detail: fmt.Sprintf("the event that the record contains stands at offset %d: a state rebuilt from here would lack it", v.offset)})
	}
}

// judgeBroken concludes for an aggregate of which events are missing: what is left
// is compared without them.
func (l *look) judgeBroken() bool {
	if l.latest.number != l.truth.number || l.state.Version != l.truth.number {
		return len(l.found) > 0 // else look at it when it is at rest
	}
	if (l.state.Digest != nil) != l.latest.exists {
		l.compareExistence(State, l.state.Digest != nil, l.latest.exists, l.state.Image, l.latest.image)
		l.found[len(l.found)-1].Values[1].Side = Latest
	} else if l.latest.exists && !bytes.Equal(l.state.Digest, digest(l.latest.image)) {
		l.compareImages(State, l.state.Image, Latest, l.latest.image)
	}
	l.compareRow(Latest, l.latest.exists, l.latest.image)
	return !l.again
}

// compareRow holds the row against what must be there by side.
func (l *look) compareRow(side Side, exists bool, image []byte) {
	if (l.row != nil) != exists {
		l.compareExistence(Table, l.row != nil, exists, l.row, image)
		l.found[len(l.found)-1].Values[1].Side = side
		return
	}
	if exists {
		l.compareFields(Table, l.row, side, image, true)
	}
}

func (l *look) compareExistence(side Side, has, must bool, image, fold []byte) {
	if has == must {
		return
	}
	l.add(Difference{Problem: Missing, Values: []Value{{side, raw(image)}, {Events, raw(fold)}}})
	if has && image == nil {
		l.again = true // the state has told a digest only
	}
}

// compareImages is for two images that are known to differ.
func (l *look) compareImages(a Side, left []byte, b Side, right []byte) {
	if left == nil {
		l.add(Difference{Problem: ValueDiffers})
		l.again = true
		return
	}
	l.compareFields(a, left, b, right, false)
}

func (l *look) compareFields(a Side, left []byte, b Side, right []byte, loose bool) {
	fields, err := unequal(left, right, loose)
	if err != nil {
		l.add(Difference{Problem: ValueDiffers, Values: []Value{{a, raw(left)}, {b, raw(right)}}, Detail: err.Error()})
		return
	}
	for _, f := range fields {
		d := Difference{Problem: ValueDiffers, Field: f.name, Values: []Value{{a, raw(f.left)}, {b, raw(f.right)}}}
		if f.name == "" && !loose {
			d.Detail = "the members stand in another order"
		}
		l.add(d)
	}
}

func (l *look) add(d Difference) {
	d.Key = l.key
	if d.Where == "" && len(d.Values) > 0 && d.Values[0].Side == Latest {
		d.Where = fmt.Sprintf("latest topic, partition %d, offset %d", l.latest.partition, l.latest.offset)
	}
	l.found = append(l.found, d)
}
