package e2e_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"backstory/internal/e2e/named"
)

// The lists in DESIGN.md name tests that exist, at least one for each trap and each
// promise, and every test that is named after a trap.
func TestTrapListNamesTests(t *testing.T) {
	t.Parallel()
	listed := namesTests(t, "DESIGN.md", "", 70)
	for _, room := range []string{"capture", "internal/e2e"} {
		traps, err := named.WithPrefix("../..", room, "TestTrap")
		if err != nil {
			t.Fatal(err)
		}
		for _, trap := range traps {
			if trap != "TestTrapListNamesTests" && !listed[room+"."+trap] {
				t.Errorf("%s.%s is not in the list", room, trap)
			}
		}
	}
}

// The list of what a crash can leave, in the design of the bridge, names a test
// for each state.
func TestCrashListNamesTests(t *testing.T) {
	t.Parallel()
	namesTests(t, "../bridge/DESIGN.md", "## What a crash can leave", 18)
}

// namesTests returns the tests that the last columns of a file's tables name, from a
// heading on. It wants at least so many rows, and tests that exist in each.
func namesTests(t *testing.T, path, heading string, atLeast int) (listed map[string]bool) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, design, ok := strings.Cut(string(text), heading)
	if !ok {
		t.Fatalf("%s has no %q", path, heading)
	}
	listed = make(map[string]bool)
	rows := regexp.MustCompile(`(?m)^\| ([^|]+) \|(?: .* \|)? ([^|]+) \|$`).FindAllStringSubmatch(design, -1)
	if len(rows) < atLeast {
		t.Fatalf("the lists of %s have %d rows: they are not read as they are written", path, len(rows))
	}
	for _, row := range rows {
		if row[2] == "test" {
			continue
		}
		tests := regexp.MustCompile("`([a-z0-9/]+)\\.(Test[^`]+)`").FindAllStringSubmatch(row[2], -1)
		if len(tests) == 0 {
			t.Errorf("%s: no test", row[1])
		}
		for _, test := range tests {
			listed[test[1]+"."+test[2]] = true
			if err := named.Check("../..", test[1], test[2]); err != nil {
				t.Errorf("%s: %v", row[1], err)
			}
		}
	}
	return listed
}
