package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"backstory/internal/pgserver"
)

// demonstrate starts the demo with a place for temporary files of its own, and
// returns it with that place.
func demonstrate(t *testing.T, args ...string) (cmd *exec.Cmd, tmp string) {
	t.Helper()
	if _, ok, err := pgserver.Installed(t.Context(), ""); err != nil || !ok {
		t.Skipf("no Postgres is installed, and tests fetch none for the demo (%v)", err)
	}
	tmp, err := os.MkdirTemp("", "demo") // not t.TempDir, which the server's user cannot enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(tmp); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(tmp, 0o755); err != nil { //nolint:gosec // the server runs as another user
		t.Fatal(err)
	}
	cmd = program(t, t.TempDir(), append([]string{"demo"}, args...)...)
	cmd.Env = append(cmd.Env, "TMPDIR="+tmp)
	return cmd, tmp
}

// swept wants nothing to be left of the demo.
func swept(t *testing.T, tmp string) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(tmp, "*")); err != nil || len(left) > 0 {
		t.Errorf("the demo left %v (%v)", left, err)
	}
}

func TestDemoForPrograms(t *testing.T) {
	t.Parallel()
	cmd, tmp := demonstrate(t, "--json", "--duration=3s", "--rate=40")
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %s", line)
		}
	}
	var last struct{ Summary *summary }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Summary == nil {
		t.Fatalf("the last line is no summary (%v): %s", err, lines[len(lines)-1])
	}
	s := last.Summary
	if s.Events["ProductImported.v1"] != 8 || s.Events["PriceChanged.v1"] == 0 || s.Differences == nil || len(s.Differences) > 0 {
		t.Errorf("got %+v, want 8 imports, changes of prices, and no difference", s)
	}
	if got, want := len(lines)-1, s.EventsTopic+s.LatestTopic; got != want {
		t.Errorf("%d records were shown, %d are in the topics", got, want)
	}
	swept(t, tmp)
}

// Whatever ends the demo, it ends in order: Ctrl-C, a supervisor, a closed
// terminal, a reader of its output that has seen enough.
func TestDemoEndsInOrder(t *testing.T) {
	t.Parallel()
	// Under nohup SIGHUP is ignored, by children too, and the demo then goes on as it
	// should. One that is caught here is not.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	for name, end := range map[string]func(*exec.Cmd, *os.File) error{
		"SIGINT":     func(cmd *exec.Cmd, _ *os.File) error { return cmd.Process.Signal(syscall.SIGINT) },
		"SIGTERM":    func(cmd *exec.Cmd, _ *os.File) error { return cmd.Process.Signal(syscall.SIGTERM) },
		"SIGHUP":     func(cmd *exec.Cmd, _ *os.File) error { return cmd.Process.Signal(syscall.SIGHUP) },
		"no readers": func(_ *exec.Cmd, out *os.File) error { return out.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, tmp := demonstrate(t, "--rate=20")
			out, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd.Stdout = in
			var log bytes.Buffer
			cmd.Stderr = &log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
			seen := bufio.NewScanner(out)
			for seen.Scan() && !strings.Contains(seen.Text(), "PriceChanged") {
			}
			if name != "no readers" {
				go func() { // ends with the program
					for seen.Scan() {
					}
				}()
			}
			if err := end(cmd, out); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v\n%s", err, log.String())
			}
			t.Logf("ended after %s", time.Since(began))
			swept(t, tmp)
		})
	}
}
