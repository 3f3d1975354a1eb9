package verify

import (
	"fmt"
	"slices"

	"backstory/sink"
)

// sources collects of which sources the records of both topics are. Those of a former
// one stand there rightly if a record of the table's own source names it; a topic that
// has no record of its own source yet tells of nothing to compare with.
type sources struct {
	own     string
	seen    bool // a record of the own source
	former  []string
	strange []*strangers // in the order in which they were met
}

// strangers are the records of one other source.
type strangers struct {
	source string
	first  Difference
	count  int64
}

// see takes in a record.
func (o *sources) see(s *sink.Scanned, d Difference) {
	if s.Source == o.own {
		o.seen = true
		for _, f := range s.Former {
			if !slices.Contains(o.former, f) {
				o.former = append(o.former, f)
			}
		}
		return
	}
	i := slices.IndexFunc(o.strange, func(k *strangers) bool { return k.source == s.Source })
	if i < 0 {
		i = len(o.strange)
		o.strange = append(o.strange, &strangers{source: s.Source, first: d})
	}
	o.strange[i].count++
}

// report tells of each source that no record of the own one names.
func (o *sources) report(report func(Difference)) {
	for _, k := range o.strange {
		if !o.seen || slices.Contains(o.former, k.source) {
			continue
		}
		d := k.first
		d.Problem, d.Field, d.Values = WrongSource, "source", nil
		d.Detail = fmt.Sprintf("it is of %s, as %d records are, and the table's own source is %s", k.source, k.count, o.own)
		report(d)
	}
}
