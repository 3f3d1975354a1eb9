package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"backstory/internal/testenv"
	"backstory/internal/verify"
)

// verified runs the verification beside the bridge and returns its result and
// exit code.
func (r *rig) verified(args ...string) (result *verify.Result, code int) {
	r.tb.Helper()
	path, err := binary()
	if err != nil {
		r.tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.tb.Context(), 30*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"verify", "--json", "--config", filepath.Join(r.dir, "backstory.yaml")}, args...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err = cmd.Run()
	if code = cmd.ProcessState.ExitCode(); code != 0 && code != 4 {
		r.tb.Fatalf("verify: %v\n%s", err, said.String())
	}
	r.tb.Logf("verify used %s of CPU and %d MiB", cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime(),
		cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss>>10)
	var results []*verify.Result
	if err := json.Unmarshal(out.Bytes(), &results); err != nil || len(results) != 1 {
		r.tb.Fatalf("verify: %d results, %v\n%s", len(results), err, tail(out.String(), 4000))
	}
	return results[0], code
}

// equal wants a verification that has compared everything and found nothing.
func (r *rig) equal(rows int64) *verify.Result {
	r.tb.Helper()
	result, code := r.verified()
	if code != 0 || !result.Equal || result.Found > 0 {
		r.tb.Fatalf("exit code %d, %d differences, want none:\n%s", code, result.Found, differences(result))
	}
	c := &result.Compared
	if c.Rows < rows || c.Keys < c.Rows || c.StateKeys < c.Rows || c.Events < c.Keys || c.LatestRecords < c.StateKeys {
		r.tb.Fatalf("not everything was compared: %+v", c)
	}
	return result
}

func differences(r *verify.Result) string {
	lines := make([]string, len(r.Differences))
	for i := range r.Differences {
		lines[i] = r.Differences[i].String()
	}
	return strings.Join(lines, "\n")
}

// Nothing is different while writers update, move, delete, re-create and truncate,
// some of them on few hot keys. BACKSTORY_TEST_VERIFY_ROWS and _RUNS make it as
// large as wanted; then -timeout has to follow.
func TestVerifyBesideWriters(t *testing.T) {
	t.Parallel()
	rows := number(t, "BACKSTORY_TEST_VERIFY_ROWS", 20_000)
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), rows)
	p := r.start()
	p.streaming()
	p.drained(10 * time.Minute)
	begun := time.Now()
	all := r.writing(2, int64(rows), 5*time.Millisecond, false)
	hot := r.writing(2, 5, time.Millisecond, rows <= 20_000)
	for i := range number(t, "BACKSTORY_TEST_VERIFY_RUNS", 5) {
		result := r.equal(0)
		t.Logf("run %d, %s: %d looks repeated; %s", i+1, result.Ended.Sub(result.Began).Round(time.Millisecond), result.Compared.LookedAgain, result)
	}
	took := time.Since(begun)
	changes := all() + hot()
	t.Logf("%d changes in %s meanwhile, %.0f/s", changes, took, float64(changes)/took.Seconds())
	p.drained(time.Minute)
	result := r.equal(0)
	p.stop()
	t.Logf("at rest: %s", result)
}
