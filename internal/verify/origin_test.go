package verify_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"backstory/internal/verify"
	"backstory/sink"
	"backstory/transform"
)

// A record of another source is told, whichever part of the source it is that differs
// and whichever topic it stands in; one of a source that the topics had before is not,
// unless it stands behind the end of that.
func TestSources(t *testing.T) {
	t.Parallel()
	const former = "/postgres/6/legacy/public.products"
	for _, tt := range []struct {
		name, source string
		topics       []transform.Topic
		former       []transform.Former
		found        int
	}{
		{"another cluster, an event", former, []transform.Topic{transform.Events}, nil, 1},
		{"another cluster, a latest record", former, []transform.Topic{transform.Latest}, nil, 1},
		{"another database", "/postgres/7/staging/public.products", []transform.Topic{transform.Events, transform.Latest}, nil, 2},
		{"another table", "/postgres/7/legacy/public.Products", []transform.Topic{transform.Events}, nil, 1},
		{"none", "", []transform.Topic{transform.Events}, nil, 1},
		{"a former one", former, []transform.Topic{transform.Events, transform.Latest}, []transform.Former{{Source: former}}, 0},
		{"a former one, before its end", former, []transform.Topic{transform.Events, transform.Latest},
			[]transform.Former{{Source: former, Events: []int64{1 << 40}, Latest: []int64{1 << 40}}}, 0},
		{"a former one, behind its end", former, []transform.Topic{transform.Events, transform.Latest},
			[]transform.Former{{Source: former, Events: []int64{0}, Latest: []int64{0}}}, 2},
		{"another than the former one", "/postgres/5/legacy/public.products", []transform.Topic{transform.Latest}, []transform.Former{{Source: former}}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, 12)
			w.former = tt.former
			k := key(5)
			w.freeze(k)
			for _, topic := range tt.topics {
				if !record(topic, func(s *sink.Scanned) bool { s.Source = tt.source; return true })(w, k) {
					t.Fatalf("%s has no record of %s", topic, k)
				}
			}
			r := w.verify()
			if r.Found != tt.found || r.Equal != (tt.found == 0) {
				t.Errorf("found %d, want %d:\n%s", r.Found, tt.found, told(r))
			}
			for i := range r.Differences {
				if d := &r.Differences[i]; d.Problem != verify.WrongSource || d.Key != k || !strings.Contains(d.String(), fmt.Sprintf("has %q", tt.source)) {
					t.Errorf("nobody planted this: %s", d)
				}
			}
			if behind := slices.ContainsFunc(r.Differences, func(d verify.Difference) bool { return strings.Contains(d.Detail, "had taken the topic over") }); behind != (tt.found > 0 && len(tt.former) > 0 && tt.source == former) {
				t.Errorf("told:\n%s", told(r))
			}
		})
	}
}
