package verify

import (
	"backstory/sink"
	"backstory/transform"
)

// origin checks that the records of both topics are of the table's own source, or of
// one that the topics had before, and then not behind its end.
type origin struct {
	own    string
	table  *transform.Table // with the former sources that the bridge knows
	report func(Difference)
}

func (o *origin) check(s *sink.Scanned, side Side, d Difference) {
	if s.Source == o.own {
		return
	}
	former := o.table.FormerOf(s.Source)
	if former != nil && former.Wrote(s.Topic, s.Partition, s.Offset) {
		return
	}
	d.Problem, d.Field, d.Values = WrongSource, "source", []Value{{side, quoted(s.Source)}}
	d.Detail = "the table's own is " + o.own
	if former != nil {
		d.Detail += ", which had taken the topic over before"
	}
	o.report(d)
}
