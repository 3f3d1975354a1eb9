package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		in      string
		servers []string
		want    string
	}{
		{
			name: "pass, fail with output, skip with reason",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"noise of a passed test\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB/sub","Output":"    b_test.go:3: got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestB/sub"}
{"Action":"fail","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:9: needs a real kafka: no java\n"}
{"Action":"skip","Package":"p","Test":"TestC"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
`,
			servers: []string{"Postgres 15"},
			want: `    b_test.go:3: got 1, want 2
FAIL	p	0.1s

skipped 1: needs a real kafka: no java
real server: Postgres 15
1 passed, 1 failed, 1 skipped
`,
		},
		{
			name: "a package that does not build",
			in: `{"ImportPath":"p","Action":"build-output","Output":"p.go:1: syntax error\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}
{"Action":"fail","Package":"p"}
`,
			servers: []string{"Postgres 15"},
			want: `p.go:1: syntax error
FAIL	p [build failed]

real server: Postgres 15
no test passed: that is no success
0 passed, 1 failed, 0 skipped
`,
		},
		{
			name: "a crash in a test",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oops\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
`,
			want: `FAIL	p	0.1s
panic: oops

real servers: none took part; install Postgres and Java 17 to test against them
no test passed: that is no success
0 passed, 1 failed, 0 skipped
`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			r := newReport(&out)
			if err := r.read(strings.NewReader(tt.in)); err != nil {
				t.Fatal(err)
			}
			r.summary(tt.servers)
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
		})
	}
}
