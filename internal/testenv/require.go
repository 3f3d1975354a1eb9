package testenv

import (
	"os"
	"slices"
	"strings"
	"sync"
)

// unavailable ends a test that can't have its server: it fails where the server
// is required, else it is skipped.
func unavailable(tb TB, server string, err error) {
	tb.Helper()
	required := strings.Split(os.Getenv("BACKSTORY_TEST_REQUIRE"), ",")
	if slices.Contains(required, server) {
		tb.Fatalf("needs a real %s, which BACKSTORY_TEST_REQUIRE demands: %v", server, err)
	}
	tb.Skipf("needs a real %s: %v", server, err)
}

// used collects what real servers this process has had, for the report of a
// whole run: each is a line in the file that BACKSTORY_TEST_SERVERS names.
var used struct {
	sync.Mutex
	names []string
}

// note records that server was used.
func note(tb TB, server string) {
	tb.Helper()
	tb.Log("testenv: " + server)
	used.Lock()
	defer used.Unlock()
	path := os.Getenv("BACKSTORY_TEST_SERVERS")
	if path == "" || slices.Contains(used.names, server) {
		return
	}
	used.names = append(used.names, server)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		tb.Errorf("note the server %s: %v", server, err)
		return
	}
	if _, err := f.WriteString(server + "\n"); err != nil {
		tb.Errorf("note the server %s: %v", server, err)
	}
	if err := f.Close(); err != nil {
		tb.Errorf("note the server %s: %v", server, err)
	}
}
