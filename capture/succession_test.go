package capture

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseTimelineHistory(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		want       []timeline
		err        string
	}{
		{name: "one branch", text: "1\t0/3000148\tno recovery target specified\n", want: []timeline{{1, 0x3000148}}},
		{name: "several, with a comment", text: "# made by hand\n1\t0/3000148\tbefore 2026-01-01 00:00:00+00\n\n3\t1A/B374D848\tno recovery target specified\n",
			want: []timeline{{1, 0x3000148}, {3, 0x1A_B374D848}}},
		{name: "no reason, no end of line", text: "2\tFFFFFFFF/FFFFFFFF", want: []timeline{{2, 0xFFFFFFFF_FFFFFFFF}}},
		{name: "empty"},
		{name: "a position is missing", text: "1\n", err: "has no position"},
		{name: "no timeline", text: "x\t0/1\n", err: "no timeline"},
		{name: "no position", text: "1\t01\n", err: "no LSN"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseTimelineHistory(tt.text)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v, want an error with %q", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(timeline{})); err != nil || diff != "" {
				t.Errorf("%v, (-want +got):\n%s", err, diff)
			}
		})
	}
}
