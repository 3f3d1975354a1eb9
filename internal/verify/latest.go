package verify

import (
	"bytes"
	"fmt"

	"backstory/sink"
	"backstory/transform"
)

// latest keeps the newest record of each key of the latest topic. What it says is
// compared with the other sides later; here only with the record before it.
type latest struct {
	scratch *scratch
	table   *transform.Table
	report  func(Difference)
	times   *times
	origin  *origin
	read    int64
}

func (l *latest) take(s *sink.Scanned) error {
	l.read++
	d := Difference{Key: string(s.Key), Where: place(l.table.Topics.Latest, s)}
	if s.Problem != "" {
		d.Problem, d.Detail = NotOurs, s.Problem
		l.report(d)
		return nil
	}
	if s.Home != s.Partition {
		d.Problem, d.Detail = WrongPartition, fmt.Sprintf("the key belongs to partition %d", s.Home)
		l.report(d)
	}
	l.origin.check(s, Latest, d)
	l.times.check(s, Latest, false, d)
	old, err := l.scratch.get(newestLatest, s.Key)
	if err != nil {
		return err
	}
	v := version{
		number: s.Version, place: s.Place, xid: s.XID, id: s.ID, partition: s.Partition, offset: s.Offset,
		below: s.EventsOffset, time: s.Time, exists: s.State != nil, image: s.State,
	}
	l.order(&old, &v, d)
	return l.scratch.put(newestLatest, s.Key, &v)
}

// order compares a record with the one before it of the same key. The same record
// may stand there twice: a recovery publishes again what may be missing.
func (l *latest) order(old, v *version, d Difference) {
	switch {
	case v.number < old.number:
		d.Problem, d.Field, d.Values = VersionBack, "version", []Value{{Latest, number(v.number)}}
		d.Detail = fmt.Sprintf("the record at offset %d has version %d", old.offset, old.number)
		l.report(d)
	case v.number == old.number && (v.id != old.id || v.exists != old.exists || !bytes.Equal(v.image, old.image)):
		d.Problem, d.Field, d.Values = VersionAgain, "version", []Value{{Latest, number(v.number)}}
		d.Detail = fmt.Sprintf("the record at offset %d has the same version and says something else", old.offset)
		l.report(d)
	}
}
