package verify

import (
	"strings"
	"testing"

	"backstory/sink"
	"backstory/transform"
)

// A record of another source is a difference, unless the source was there before, as a
// record of the own one says. Without a record of its own the topic says nothing.
func TestSources(t *testing.T) {
	t.Parallel()
	record := func(source string, former ...string) *sink.Scanned {
		return &sink.Scanned{Stored: transform.Stored{Source: source, Former: former}}
	}
	for _, tt := range []struct {
		name    string
		records []*sink.Scanned
		want    string // sources that are told of
	}{
		{"own", []*sink.Scanned{record("own"), record("own")}, ""},
		{"another among them", []*sink.Scanned{record("own"), record("other"), record("own"), record("other")}, "other"},
		{"former", []*sink.Scanned{record("former"), record("own", "former"), record("former")}, ""},
		{"former and another", []*sink.Scanned{record("former"), record("other"), record("own", "former", "older")}, "other"},
		{"adopted, and nothing since", []*sink.Scanned{record("former"), record("former")}, ""},
		{"without a source", []*sink.Scanned{record(""), record("own")}, " "},
	} {
		o := &sources{own: "own"}
		for _, s := range tt.records {
			o.see(s, Difference{Where: "place"})
		}
		var told []Difference
		o.report(func(d Difference) { told = append(told, d) })
		switch {
		case tt.want == "" && len(told) > 0, tt.want != "" && len(told) != 1:
			t.Errorf("%s: got %v", tt.name, told)
		case tt.want != "" && (told[0].Problem != WrongSource || told[0].Where != "place" || !strings.Contains(told[0].Detail, tt.want)):
			t.Errorf("%s: got %+v", tt.name, told[0])
		}
	}
}
