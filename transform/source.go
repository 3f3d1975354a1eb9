package transform

import (
	"net/url"
	"strconv"

	"backstory/capture"
)

// SourceOf returns the source of a table's records, as ce_source says it: a URI
// path of the database cluster's system id, the database, and the table. Another
// one is another source, also if it is a copy of this one.
func SourceOf(id capture.Identity, schema, table string) string {
	return "/postgres/" + strconv.FormatUint(id.System, 10) + "/" + url.PathEscape(id.Database) +
		"/" + url.PathEscape(schema) + "." + url.PathEscape(table)
}

// Former is a source other than the table's present one whose records stand in its
// topics rightly: the table was renamed, or its rows were moved to another server.
type Former struct {
	Source string `json:"source"`
	// Events and Latest say where its records end, as an offset for each partition
	// of the topic: one at or above it was written after the source was left. nil:
	// not known, so a record of it may stand anywhere.
	Events []int64 `json:"events,omitempty"`
	Latest []int64 `json:"latest,omitempty"`
}

// Wrote reports whether a record of the source may stand at an offset.
func (f *Former) Wrote(topic Topic, partition int32, offset int64) bool {
	ends := f.Events
	if topic == Latest {
		ends = f.Latest
	}
	return int(partition) >= len(ends) || offset < ends[partition]
}

// FormerOf returns what is known of a former source; nil if it is not one.
func (t *Table) FormerOf(source string) *Former {
	for i := range t.Former {
		if t.Former[i].Source == source {
			return &t.Former[i]
		}
	}
	return nil
}
