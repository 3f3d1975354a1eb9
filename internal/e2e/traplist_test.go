package e2e_test

import (
	"os"
	"regexp"
	"testing"

	"backstory/internal/e2e/named"
)

// The list of traps in DESIGN.md names tests that exist, at least one for each,
// and every test that is named after a trap.
func TestTrapListNamesTests(t *testing.T) {
	t.Parallel()
	design, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := make(map[string]bool)
	rows := regexp.MustCompile(`(?m)^\| ([^|]+) \| ([^|]+) \|$`).FindAllStringSubmatch(string(design), -1)
	if len(rows) < 40 {
		t.Fatalf("the list has %d rows: it is not read as it is written", len(rows))
	}
	for _, row := range rows {
		if row[1] == "trap" {
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
