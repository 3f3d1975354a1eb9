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

// Retention that the mapping asks for takes no row out of the comparison: what is
// left of the events is checked, and the result says of how many aggregates they
// are gone. The same topics, without the key, are different.
func TestVerifyWithRetention(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 60)
	r.edit("products.yaml", "partitions: 6", "partitions: 6, retention: 90d")
	p := r.start()
	p.drained(time.Minute)
	r.exec(`UPDATE products SET stock = 5 WHERE id <= 20`)
	p.drained(time.Minute)
	f := r.newForger()
	for partition := range int32(6) {
		f.remove(0, partition, f.firstOf(0, partition, 2).Offset+1) // of a key that has two events, the first is gone
	}
	some := r.emptied()
	if c := some.Compared; c.EventsCut == 0 || c.Rows != 60 {
		t.Errorf("compared %+v, want 60 rows, some of them without their first event", c)
	}
	for partition := range int32(6) {
		f.remove(0, partition, -1) // all that there are
	}
	r.exec(`UPDATE products SET stock = 6 WHERE id = 7; DELETE FROM products WHERE id = 8`)
	p.drained(time.Minute)
	most := r.emptied()
	if c := most.Compared; c.EventsGone < 50 || c.EventsCut != 2 || c.Events != 2 {
		t.Errorf("compared %+v, want two aggregates with an event and all others with none", c)
	}
	if out := r.succeeds("verify"); !strings.Contains(out, "retention has taken all events of ") {
		t.Errorf("verify does not say what it could not compare:\n%s", out)
	}
	p.stop()
	p = r.start() // its state is as good as before
	p.streaming()
	r.edit("products.yaml", ", retention: 90d", "")
	if result, code := r.verified(); code != 4 || result.Equal {
		t.Errorf("without retention in the mapping: exit code %d, equal %t", code, result.Equal)
	}
	p.stop()
}

// emptied is equal where the events topic has fewer records than there are keys.
func (r *rig) emptied() *verify.Result {
	r.tb.Helper()
	result, code := r.verified()
	if code != 0 || !result.Equal || result.NotCompared > 0 {
		r.tb.Fatalf("exit code %d, %d differences, want none:\n%s", code, result.Found, differences(result))
	}
	return result
}
