package verify

import (
	"testing"

	"backstory/capture"
	"backstory/transform"
)

// A difference is explained by a change of columns only if the column is younger than
// the version, whatever was added to positions since.
func TestFormExplains(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		base, since capture.LSN
		gone        bool // the field is no column any more
		at          capture.LSN
		want        bool
	}{
		{"there from the beginning", 0, 0, false, 10, false},
		{"younger", 0, 11, false, 10, true},
		{"as old", 0, 10, false, 10, false},
		{"older", 0, 9, false, 10, false},
		{"there from the beginning, version of before the base", 1000, 0, false, 10, false},
		{"younger, version of before the base", 1000, 5, false, 10, true},
		{"older, version with the base", 1000, 9, false, 1010, false},
		{"younger, version with the base", 1000, 11, false, 1010, true},
		{"no column, and none has gone", 0, 0, true, 10, false},
		{"column gone since", 0, 11, true, 10, true},
		{"column gone before", 0, 9, true, 10, false},
	}
	for _, tt := range tests {
		f := &form{base: tt.base, since: map[string]capture.LSN{"a": tt.since}}
		if tt.gone {
			f.since, f.gone = nil, tt.since
		}
		v := &version{place: transform.Place{Pos: capture.Position{LSN: tt.at, Kind: capture.KindChange}}}
		if got := f.explains([]field{{name: "a"}}, v); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}
