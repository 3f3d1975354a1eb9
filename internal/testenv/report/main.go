// Command report runs go test and tells what a person wants to know of it: what
// failed, in full; what was skipped and why; which real servers took part; and
// as its last line "N passed, N failed, N skipped".
//
//	go run ./internal/testenv/report [flags of go test] ./...
//
// It exits with 1 if something failed, and also if no test passed: a run without
// tests is no success.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	servers, err := os.CreateTemp("", "backstory-servers-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(servers.Name())
	defer servers.Close()

	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Env = append(os.Environ(), "BACKSTORY_TEST_SERVERS="+servers.Name())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	r := newReport(os.Stdout)
	if err := r.read(out); err != nil {
		return 0, err
	}
	failed := cmd.Wait() != nil
	text, err := os.ReadFile(servers.Name())
	if err != nil {
		return 0, err
	}
	r.summary(lines(string(text)))
	if failed || r.failed > 0 || r.passed == 0 {
		return 1, nil
	}
	return 0, nil
}

// lines are the different lines of text, sorted.
func lines(text string) []string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(s string) bool { return s == "" })
}
