package verify

import (
	"bytes"
	"fmt"

	"backstory/capture"
	"backstory/sink"
	"backstory/transform"
)

// events checks the records of the events topic, each for itself and against the
// one before it, and keeps their fold.
type events struct {
	scratch  *scratch
	identity capture.Identity
	table    *transform.Table
	report   func(Difference)
	times    *times
	origin   *origin
	commits  sample
	// start is where the log of a partition begins, where the mapping lets retention
	// take events; else 0, and an event that is missing is missing.
	start   func(partition int32) int64
	read    int64
	cut     int64          // aggregates whose first events retention has taken
	known   map[int32]bool // partitions that have shown an event of this identity
	members [2][]transform.Member
	fold    []byte
}

func place(topic string, s *sink.Scanned) string {
	return fmt.Sprintf("topic %s, partition %d, offset %d", topic, s.Partition, s.Offset)
}

// take checks one record and returns the version that its aggregate has then; ok
// is false if the record did not move it. The image is valid until the following
// call.
func (f *events) take(s *sink.Scanned) (v version, ok bool, err error) {
	f.read++
	d := Difference{Key: string(s.Key), Where: place(f.table.Topics.Events, s)}
	if s.Problem != "" {
		d.Problem, d.Detail = NotOurs, s.Problem
		f.report(d)
		return v, false, nil
	}
	f.home(s, d)
	f.origin.check(s, Events, d)
	if err := f.id(s, d); err != nil {
		return v, false, err
	}
	f.times.check(s, Events, f.known[s.Partition], d)
	if f.known[s.Partition] {
		f.commits.take(s, d)
	}
	old, err := f.scratch.get(foldOfEvents, s.Key)
	if err != nil {
		return v, false, err
	}
	if s.Version <= old.number {
		d.Problem, d.Field, d.Values = VersionAgain, "version", []Value{{Events, number(s.Version)}}
		d.Detail = fmt.Sprintf("the aggregate has come to version %d at offset %d before", old.number, old.offset)
		f.report(d)
		return v, false, nil
	}
	f.order(s, &old, d)
	v, err = f.next(s, &old, d)
	if err != nil {
		return v, false, err
	}
	return v, true, f.scratch.put(foldOfEvents, s.Key, &v)
}

// home checks the partition.
func (f *events) home(s *sink.Scanned, d Difference) {
	if s.Home != s.Partition {
		d.Problem, d.Detail = WrongPartition, fmt.Sprintf("the key belongs to partition %d", s.Home)
		f.report(d)
	}
}

// id checks that no two events have the same id. One that follows from position
// and key is the event's alone, since positions rise. Events of a former identity
// of the database (a timeline that was left) have ids that can't be worked out
// here: they lie before all others of their partition, and are compared with
// each other.
func (f *events) id(s *sink.Scanned, d Difference) error {
	d.Field, d.Values = "id", []Value{{Events, quoted(s.ID.String())}}
	if want := transform.NewEventID(f.identity, f.table.Aggregate, s.Key, s.Place); s.ID == want {
		f.known[s.Partition] = true
		return nil
	} else if f.known[s.Partition] {
		d.Problem, d.Detail = WrongID, "the id that follows from its position and key is "+want.String()
		f.report(d)
		return nil
	}
	twice, err := f.scratch.has(strangeIDs, s.ID[:])
	if err != nil {
		return err
	}
	if twice {
		d.Problem, d.Detail = WrongID, "another event has the same id"
		f.report(d)
	}
	return f.scratch.mark(strangeIDs, s.ID[:])
}

// order checks version and position against the event before.
func (f *events) order(s *sink.Scanned, old *version, d Difference) {
	switch {
	case s.Version <= old.number+1:
	case f.removed(s, old):
		if old.number == 0 {
			f.cut++
		}
	default:
		gap := d
		gap.Problem, gap.Field = GapInVersions, "version"
		gap.Values = []Value{{Events, number(s.Version)}}
		gap.Detail = fmt.Sprintf("version %d is missing", old.number+1)
		if s.Version > old.number+2 {
			gap.Detail = fmt.Sprintf("versions %d to %d are missing", old.number+1, s.Version-1)
		}
		f.report(gap)
	}
	if old.number > 0 && s.Place.Compare(old.place) <= 0 {
		d.Problem, d.Field = OutOfOrder, "position"
		d.Values = []Value{{Events, sequence(s.Place)}}
		d.Detail = fmt.Sprintf("version %d at offset %d has %s", old.number, old.offset, sequence(old.place))
		f.report(d)
	}
}

// removed reports whether retention has taken the events between the record and
// the one before: the log begins behind that one.
func (f *events) removed(s *sink.Scanned, old *version) bool {
	before := int64(-1)
	if old.number > 0 {
		before = old.offset
	}
	return f.start(s.Partition) > before+1
}

func sequence(p transform.Place) []byte {
	return append(transform.AppendSequence([]byte{'"'}, p), '"')
}

// next folds the event onto the version before. Where events are missing before it,
// the fold begins anew with what the event says.
func (f *events) next(s *sink.Scanned, old *version, d Difference) (version, error) {
	gap := s.Version != old.number+1
	v := version{
		number: s.Version, place: s.Place, xid: s.XID, id: s.ID, partition: s.Partition, offset: s.Offset, time: s.Time,
		broken: old.broken || gap,
	}
	data, err := transform.ParseData(s.Data)
	if err != nil {
		f.lose(&v, old, d, err)
		return v, nil
	}
	if !gap {
		f.compareOld(old, &data, d)
	}
	whole := string(data.Old) == "{}" && !old.exists // the event says all there is
	if v.broken && (whole || string(data.New) == "{}") {
		v.broken = false
	}
	if string(data.New) == "{}" {
		return v, nil
	}
	base := old.image
	if gap || !old.exists && string(data.Old) != "{}" {
		base = nothingKnown
	}
	e := transform.Entry{Version: s.Version - 1, Place: transform.Place{Index: 1}, Image: base}
	applied, buf, err := transform.Fold(&e, &s.Stored, f.fold[:0])
	f.fold = buf
	if err == nil && !applied {
		err = fmt.Errorf("its position is %s", sequence(s.Place))
	}
	if err != nil {
		f.lose(&v, old, d, err)
		return v, nil
	}
	v.exists, v.image = true, e.Image
	return v, nil
}

// nothingKnown is the image of an aggregate of which no event has said anything.
var nothingKnown = []byte("{}")

// lose gives the fold of an aggregate up, until an event says the whole row.
func (f *events) lose(v, old *version, d Difference, err error) {
	v.broken, v.exists = true, old.exists
	if v.exists {
		v.image = nothingKnown
	}
	f.unfoldable(d, err)
}

func (f *events) unfoldable(d Difference, err error) {
	d.Problem, d.Detail = Unfoldable, err.Error()
	f.report(d)
}

// compareOld checks the old values of an event against the image before it: those
// of the changed fields, all of a deleted aggregate, none of a new one. Of an image
// that is not known in whole, what is known is compared.
func (f *events) compareOld(old *version, data *transform.Data, d Difference) {
	d.Problem = WrongOld
	image := old.image
	if !old.exists {
		image = []byte("{}")
	}
	if string(data.New) == "{}" {
		if old.exists && bytes.Equal(data.Old, image) {
			return
		}
	}
	was, err := transform.Members(f.members[0][:0], image)
	f.members[0] = was
	said, err2 := transform.Members(f.members[1][:0], data.Old)
	f.members[1] = said
	if err != nil || err2 != nil {
		f.unfoldable(d, fmt.Errorf("its old values are no object as the bridge writes it: %s", data.Old))
		return
	}
	changed := was // of a deleted aggregate
	if string(data.New) != "{}" {
		if changed, err = transform.Members(nil, data.New); err != nil {
			return // Fold says it
		}
	}
	if old.broken {
		f.compareKnown(was, said, changed, d)
		return
	}
	f.compareMembers(was, said, changed, d)
}

// compareKnown compares what the event said of changed members with what was, where
// that is known.
func (f *events) compareKnown(was, said, changed []transform.Member, d Difference) {
	for _, m := range changed {
		if before := member(was, m.Name); before != nil {
			f.compareMember(m.Name, before, member(said, m.Name), d)
		}
	}
}

// compareMembers compares what the event said with what was, for the changed
// members; it may say nothing of others.
func (f *events) compareMembers(was, said, changed []transform.Member, d Difference) {
	for _, m := range changed {
		f.compareMember(m.Name, member(was, m.Name), member(said, m.Name), d)
	}
	for _, m := range said {
		if member(changed, m.Name) == nil {
			d.Detail = "the event does not change the field"
			f.compareMember(m.Name, nil, m.Value, d)
		}
	}
}

func (f *events) compareMember(name, was, said []byte, d Difference) {
	if bytes.Equal(was, said) && (was == nil) == (said == nil) {
		return
	}
	d.Field = unquote(name)
	d.Values = []Value{{Events, raw(said)}, {Events, raw(was)}}
	if d.Detail == "" {
		d.Detail = "the first is the event's old value, the second the value before it"
	}
	f.report(d)
}
