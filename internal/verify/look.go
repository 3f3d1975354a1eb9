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
	first  uint64 // the first version that came by
	newest uint64 // version of the fold at the end

	latestBefore uint64 // version of the latest topic before the row was read
	latestSeen   bool   // the row's snapshot saw the transaction of latest
	images       bool   // the state was asked for images
	removed      bool   // retention may have taken events of the key

	// truth is what the row must be: the newest version whose transaction the
	// row's snapshot saw. While there is none, trail has the versions that may
	// become it in a later look.
	truth *version
	trail []version

	stateMet, latestMet bool // the version that it has has come by
	found               []Difference
	form                *form // nil: not known
	former              bool  // the row has the columns of before
	again               bool  // the key has to be looked at again before anything is told
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
	l.latestSeen = s.saw(&l.latest)
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
	if l.first == 0 {
		l.first = v.number
	}
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
	switch {
	case l.removed && l.withoutEvents():
		return l.judgeWithoutEvents()
	case l.removed && l.overtaken():
		return false
	}
	l.judgeVersions()
	switch {
	case l.truth == nil, l.state.Again, l.again:
		return false
	case l.truth.broken:
		return l.judgeBroken()
	}
	l.compareRow(Events, l.truth)
	return !l.again
}

// overtaken reports whether the row, the state or the latest topic are of before the
// first event that is left, which has just come, or of one that retention took
// before it was read. The next look begins at a later one.
func (l *look) overtaken() bool {
	if l.base == 0 && l.first > 1 && l.truth != nil && l.truth.number == 0 {
		return true
	}
	unmet := func(version uint64, met bool) bool { return !met && version > l.base && version < l.newest }
	return unmet(l.state.Version, l.stateMet) || unmet(l.latest.number, l.latestMet)
}

// withoutEvents reports whether the key was compared without any event.
func (l *look) withoutEvents() bool {
	return l.newest == 0 && (l.state.Version > 0 || l.latest.number > 0)
}

// judgeWithoutEvents concludes for an aggregate whose events retention has taken,
// all of them: the other three are compared. What the latest topic had before the
// look is settled, so the state can't be behind that; and the latest topic, read
// last, can't be behind the state.
func (l *look) judgeWithoutEvents() bool {
	latest, state := l.latest.number, l.state.Version
	versions := Difference{Problem: Behind, Field: "version", Values: []Value{{Latest, number(latest)}, {State, number(state)}}}
	switch {
	case latest == 0:
		versions.Problem, versions.Values[0].Value, versions.Detail = Missing, nil, "the latest does not have the aggregate"
		l.add(versions)
		return true
	case state == 0 && l.latestBefore > 0:
		versions.Problem, versions.Values[1].Value, versions.Detail = Missing, nil, "the state does not have the aggregate"
		l.add(versions)
		return true
	case latest < state, state < l.latestBefore:
		l.add(versions)
		return true
	case latest != state, !l.latestSeen, l.state.Again:
		return false
	}
	if !l.state.Noted {
		l.compareHeaders(State, l.headersOfState(), Latest, &l.latest)
	}
	l.compareStateToLatest()
	l.compareRow(Latest, &l.latest)
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
	if v.number == 0 {
		return
	}
	switch {
	case s.Digest == nil || !v.exists:
		l.compareExistence(State, s.Digest != nil, v.exists, s.Image, v.image)
	case v.broken && s.Image != nil:
		l.compareKnown(State, s.Image, v.image)
	case !v.broken && !bytes.Equal(s.Digest, digest(v.image)):
		l.compareImages(State, s.Image, Events, v.image)
	}
	if !s.Noted { // else position and xid are those of a change that made no version
		l.compareHeaders(State, l.headersOfState(), Events, v)
	}
}

// headersOfState has what the state keeps of the headers.
func (l *look) headersOfState() *version { return &version{place: l.state.Place, xid: l.state.XID} }

// compareLatest holds the record of the latest topic against the same version of
// the fold.
func (l *look) compareLatest(v *version) {
	r := &l.latest
	if v.number == 0 {
		return
	}
	switch {
	case r.exists != v.exists:
		l.compareExistence(Latest, r.exists, v.exists, r.image, v.image)
	case v.broken && v.exists:
		l.compareKnown(Latest, r.image, v.image)
	case !v.broken && !bytes.Equal(r.image, v.image):
		l.compareImages(Latest, r.image, Events, v.image)
	}
	l.compareHeaders(Latest, r, Events, v)
	if r.below > v.offset && r.partition == v.partition {
		l.add(Difference{Problem: WrongOffset, Field: "ce_eventsoffset", Values: []Value{{Latest, number(uint64(r.below))}},
			Detail: fmt.Sprintf("the event that the record contains stands at offset %d: a state rebuilt from here would lack it", v.offset)})
	}
}

// compareHeaders compares what two sides say of the same version. The state keeps
// neither id nor time.
func (l *look) compareHeaders(a Side, have *version, b Side, fit *version) {
	l.header("position", have.place == fit.place, Value{a, sequence(have.place)}, Value{b, sequence(fit.place)})
	l.header("xid", have.xid == fit.xid, Value{a, number(uint64(have.xid))}, Value{b, number(uint64(fit.xid))})
	if a == State {
		return
	}
	l.header("id", have.id == fit.id, Value{a, quoted(have.id.String())}, Value{b, quoted(fit.id.String())})
	l.header("time", have.time == fit.time, Value{a, clock(have.time)}, Value{b, clock(fit.time)})
}

func (l *look) header(name string, same bool, values ...Value) {
	if !same {
		l.add(Difference{Problem: HeadersDiffer, Field: name, Values: values})
	}
}

// judgeBroken concludes for an aggregate of which events are missing. What the
// others have in common is compared in whole, what the events know of it was. One
// that never rests is compared by that alone.
func (l *look) judgeBroken() bool {
	atRest := l.latest.number == l.state.Version
	if !atRest && !l.images {
		return len(l.found) > 0 // the second look asks the state for images
	}
	if atRest {
		l.compareStateToLatest()
	}
	switch v := l.truth; {
	case l.latest.number == v.number:
		l.compareRow(Latest, &l.latest)
	case l.row == nil || !v.exists:
		l.compareRow(Events, v)
	case l.state.Version == v.number && l.state.Image != nil:
		of := *v
		of.exists, of.image = true, l.state.Image
		l.compareRow(State, &of)
	default:
		fields, err := unlike(l.row, v.image, true)
		l.addFields(fields, err, Table, l.row, v.image)
	}
	return !l.again
}

// compareStateToLatest compares two sides of the same version.
func (l *look) compareStateToLatest() {
	s, r := &l.state, &l.latest
	if (s.Digest != nil) != r.exists {
		l.compareExistence(State, s.Digest != nil, r.exists, s.Image, r.image)
		l.found[len(l.found)-1].Values[1].Side = Latest
	} else if r.exists && !bytes.Equal(s.Digest, digest(r.image)) {
		l.compareImages(State, s.Image, Latest, r.image)
	}
}

// compareKnown compares an image with what the events know of it.
func (l *look) compareKnown(side Side, image, known []byte) {
	fields, err := unlike(image, known, false)
	l.addFields(fields, err, side, image, known)
}

// compareRow holds the row against what must be there by a side's version.
func (l *look) compareRow(side Side, v *version) {
	exists, image := v.exists, v.image
	if (l.row != nil) != exists {
		l.compareExistence(Table, l.row != nil, exists, l.row, image)
		l.found[len(l.found)-1].Values[1].Side = side
		return
	}
	if !exists {
		return
	}
	if fields, err := unequal(l.row, image, true); err == nil && len(fields) > 0 && l.form.explains(fields, v) {
		l.former = true
		return
	}
	l.compareFields(Table, l.row, side, image, true)
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

// addFields tells of the fields in which a side is unlike the events.
func (l *look) addFields(fields []field, err error, side Side, image, known []byte) {
	if err != nil {
		l.add(Difference{Problem: ValueDiffers, Values: []Value{{side, raw(image)}, {Events, raw(known)}}, Detail: err.Error()})
	}
	for _, f := range fields {
		l.add(Difference{Problem: ValueDiffers, Field: f.name, Values: []Value{{side, raw(f.left)}, {Events, raw(f.right)}}})
	}
}

func (l *look) add(d Difference) {
	d.Key = l.key
	if d.Where == "" && len(d.Values) > 0 && d.Values[0].Side == Latest {
		d.Where = fmt.Sprintf("latest topic, partition %d, offset %d", l.latest.partition, l.latest.offset)
	}
	l.found = append(l.found, d)
}
