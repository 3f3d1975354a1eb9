package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is a line of go test -json, and of the build output that comes with it.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// report counts top-level tests, fuzz targets and examples; a package that
// can't be built, or dies outside of a test, counts as failed.
type report struct {
	w       io.Writer
	output  map[string]*strings.Builder // of running tests, by package and test
	skips   map[string]int              // reason → tests
	broken  map[string]bool             // packages in which a test failed
	passed  int
	failed  int
	skipped int
}

func newReport(w io.Writer) *report {
	return &report{w: w, output: map[string]*strings.Builder{}, skips: map[string]int{}, broken: map[string]bool{}}
}

// read takes what go test says until its end. Lines that are not JSON are shown.
func (r *report) read(in io.Reader) error {
	s := bufio.NewReader(in)
	for {
		line, err := s.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(r.w, "%s", line)
			} else {
				r.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read go test: %w", err)
		}
	}
}

func (r *report) take(e event) {
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.w, e.Output)
	case "output":
		r.collect(e)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
			return
		}
		r.endTest(e)
	}
}

func (r *report) collect(e event) {
	if e.Test == "" {
		if ends(e.Output) {
			fmt.Fprint(r.w, e.Output)
		} else {
			r.buffer(e).WriteString(e.Output)
		}
		return
	}
	r.buffer(e).WriteString(e.Output)
}

// ends tells the line that go test prints for a package at its end.
func ends(line string) bool {
	for _, p := range []string{"ok  \t", "FAIL\t", "?   \t", "---\t"} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return false
}

func (r *report) buffer(e event) *strings.Builder {
	key := e.Package + " " + e.Test
	b := r.output[key]
	if b == nil {
		b = new(strings.Builder)
		r.output[key] = b
	}
	return b
}

func (r *report) endTest(e event) {
	text := r.buffer(e).String()
	delete(r.output, e.Package+" "+e.Test)
	if e.Action == "fail" {
		r.broken[e.Package] = true
		fmt.Fprint(r.w, text)
	}
	if e.Action == "skip" {
		r.skips[reason(text)]++
	}
	if strings.Contains(e.Test, "/") {
		return
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
	case "skip":
		r.skipped++
	}
}

// endPackage shows what a package printed outside of its tests if it failed for
// another reason than a test that has been shown.
func (r *report) endPackage(e event) {
	text := r.buffer(e).String()
	prefix := e.Package + " "
	if e.Action == "fail" && !r.broken[e.Package] {
		r.failed++
		fmt.Fprint(r.w, text)
		for _, key := range slices.Sorted(maps.Keys(r.output)) { // tests that a crash cut off
			if strings.HasPrefix(key, prefix) && key != prefix {
				fmt.Fprint(r.w, r.output[key])
			}
		}
	}
	maps.DeleteFunc(r.output, func(key string, _ *strings.Builder) bool { return strings.HasPrefix(key, prefix) })
}

// reason is what t.Skip said: the text of the last line with a place in a file.
func reason(text string) string {
	found := "no reason given"
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if _, rest, ok := strings.Cut(line, ".go:"); ok {
			if _, said, ok := strings.Cut(rest, ": "); ok {
				found = said
			}
		}
	}
	return found
}

func (r *report) summary(servers []string) {
	fmt.Fprintln(r.w)
	for _, why := range slices.Sorted(maps.Keys(r.skips)) {
		fmt.Fprintf(r.w, "skipped %d: %s\n", r.skips[why], why)
	}
	if len(servers) == 0 {
		fmt.Fprintln(r.w, "real servers: none took part; install Postgres and Java 17 to test against them")
	}
	for _, s := range servers {
		fmt.Fprintln(r.w, "real server:", s)
	}
	if r.passed == 0 {
		fmt.Fprintln(r.w, "no test passed: that is no success")
	}
	fmt.Fprintf(r.w, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}
