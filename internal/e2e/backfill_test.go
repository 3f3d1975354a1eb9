package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// command runs the program to its end and returns its exit code and output.
func (r *rig) command(name string, args ...string) (code int, stdout, stderr string) {
	r.tb.Helper()
	path, err := r.program, error(nil)
	if path == "" {
		path, err = binary()
	}
	if err != nil {
		r.tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.tb.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{name, "--config", filepath.Join(r.dir, "backstory.yaml")}, args...)...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = r.dir, &out, &errs, append(os.Environ(), r.env...)
	err = cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		r.tb.Fatalf("%s %v: %v", name, args, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// succeeds runs the program and wants exit code 0.
func (r *rig) succeeds(name string, args ...string) string {
	r.tb.Helper()
	code, out, errs := r.command(name, args...)
	if code != 0 {
		r.tb.Fatalf("%s %v: exit code %d, want 0\n%s\n%s", name, args, code, out, errs)
	}
	return out
}

// backfillResult is the last line of backfill --json.
type backfillResult struct {
	Done   bool `json:"done"`
	Tables []struct {
		Rows   int64 `json:"rows"`
		Events int   `json:"events"`
		Equal  int64 `json:"rows_equal"`
		DryRun *struct {
			Events   map[string]int    `json:"events"`
			Examples []json.RawMessage `json:"examples"`
		} `json:"dry_run"`
	} `json:"tables"`
}

// backfills runs backfill --json to its end and returns the result.
func (r *rig) backfills(args ...string) (b backfillResult) {
	r.tb.Helper()
	lines := strings.Split(strings.TrimSpace(r.succeeds("backfill", append(args, "--json")...)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &b); err != nil {
		r.tb.Fatalf("%v: %s", err, lines[len(lines)-1])
	}
	if !b.Done || len(b.Tables) != 1 {
		r.tb.Fatalf("backfill %v: %s, want the result of one table", args, lines[len(lines)-1])
	}
	return b
}

// An import that is killed in the middle, again and again, while writers write,
// goes on at its last chunk: every row once, no stale value over a newer one.
// BACKSTORY_TEST_IMPORT_ROWS makes it as large as wanted, without a bound of its
// pace and with a bridge that is measured.
func TestImportKilled(t *testing.T) {
	t.Parallel()
	const small = 60_000
	rows := int64(number(t, "BACKSTORY_TEST_IMPORT_ROWS", small))
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), int(rows))
	var slow []string
	if rows == small {
		slow = []string{"--backfill.chunk_rows=500", "--backfill.rows_per_second=15000"}
	}
	p := r.start(slow...)
	p.streaming()
	begun := time.Now()
	stop := r.writing(2, rows, 2*time.Millisecond, false)
	for range 5 {
		before := p.imported()
		testenv.Eventually(t, 5*time.Minute, func() error {
			if now := p.imported(); now < before+rows/10 {
				return fmt.Errorf("%d rows, want %d", now, before+rows/10)
			}
			return nil
		})
		t.Logf("killed at %d rows after %s, peak %d MB", p.imported(), time.Since(begun).Round(time.Second), p.peak()>>20)
		p.kill()
		p = r.start(slow...)
		p.streaming()
		if now := p.imported(); now == 0 {
			t.Error("the import began anew")
		}
	}
	testenv.Eventually(t, 10*time.Minute, func() error {
		s, err := p.status()
		if err == nil && s.Tables[0].Backfill.Phase != "done" {
			err = errors.New("the backfill is " + s.Tables[0].Backfill.Phase)
		}
		return err
	})
	took := time.Since(begun)
	t.Logf("%d rows imported in %s, beside %d changes", rows, took.Round(time.Second), stop())
	p.drained(5 * time.Minute)
	t.Logf("peak %d MB", p.peak()>>20)
	if rows > small { // the history of so many rows does not fit into memory; verify has it on disk
		result := r.equal(rows)
		t.Logf("verified: %+v", result.Compared)
		p.stop()
		return
	}
	p.stop()
	r.compare()
}

// peak is the bridge's largest resident memory so far, in bytes; 0 where the
// system does not tell.
func (p *process) peak() int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var n int64
			if _, err := fmt.Sscan(kb, &n); err == nil {
				return n << 10
			}
		}
	}
	return 0
}

// imported is the number of rows that the table's backfill has applied.
func (p *process) imported() int64 {
	p.r.tb.Helper()
	s, err := p.status()
	if err != nil {
		p.r.tb.Fatal(err)
	}
	return s.Tables[0].Backfill.Rows
}

// A slot that was dropped while the bridge was down is mended by a repair, which
// publishes exactly what differs, and nothing when it is repeated.
func TestLostSlotIsRepaired(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 5000)
	p := r.start()
	p.streaming()
	r.commit(2, 3000, 5000, false, 0)
	p.drained(time.Minute)
	p.stop()

	conn := r.connect()
	if err := audit.BeginGap(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	r.exec(`SELECT pg_drop_replication_slot($1)`, r.slot())
	r.commit(2, 10_000, 5000, false, 0)
	want, err := audit.EndGap(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if want < 1000 {
		t.Fatalf("only %d differences: the test proves little", want)
	}
	if code, _, errs := r.command("run"); code != 3 || !strings.Contains(errs, "backfill --reconcile") {
		t.Errorf("run without its slot: exit code %d, %s; want 3 and the cure", code, tail(errs, 400))
	}

	dry := r.backfills("--reconcile", "--dry-run")
	counted := 0
	for _, n := range dry.Tables[0].DryRun.Events {
		counted += n
	}
	if dry.Tables[0].Events != want || counted != want || len(dry.Tables[0].DryRun.Examples) == 0 {
		t.Errorf("the dry run counts %d events, %v, want %d", dry.Tables[0].Events, dry.Tables[0].DryRun.Events, want)
	}
	if got := r.backfills("--reconcile").Tables[0].Events; got != want {
		t.Errorf("the repair published %d events, want %d", got, want)
	}
	r.compare()
	if got := r.backfills("--reconcile").Tables[0].Events; got != 0 {
		t.Errorf("the second repair published %d events", got)
	}
	if got := r.backfills("--once").Tables[0].Events; got != 0 {
		t.Errorf("a backfill after it published %d events", got)
	}
	p = r.start()
	p.streaming()
	r.commit(1, 500, 5000, true, 0)
	p.drained(time.Minute)
	p.stop()
	r.compare()
}

// The running bridge is asked, and says clearly what it can't do.
func TestBackfillBesideTheStream(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 3000)
	if code, _, errs := r.command("backfill"); code != 1 || !strings.Contains(errs, "no bridge answers") {
		t.Errorf("without a bridge: exit code %d, %s", code, errs)
	}
	p := r.start()
	p.drained(time.Minute)
	for _, tt := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"unknown table", []string{"orders"}, 2, "table orders is not in the mapping, which has public.products"},
		{"condition", []string{"--where", "id BETWEEN"}, 2, "syntax error"},
		{"condition that is more", []string{"--where", "true) TO PROGRAM 'true' --"}, 2, "syntax error"},
		{"column", []string{"products", "--where", "colour = 'red'"}, 2, `column "colour" does not exist`},
		{"nothing to pause", []string{"--pause"}, 3, "no table is being read"},
		{"chunk", []string{"--chunk-rows", "-1"}, 2, "chunk_rows"},
		{"once beside a bridge", []string{"--once"}, 3, "another process uses it"},
	} {
		code, out, errs := r.command("backfill", tt.args...)
		if code != tt.code || !strings.Contains(errs, tt.says) || out != "" {
			t.Errorf("%s: exit code %d, %q, %q; want %d and %q", tt.name, code, out, errs, tt.code, tt.says)
		}
	}
	if b := r.backfills(); b.Tables[0].Rows != 3000 || b.Tables[0].Equal != 3000 || b.Tables[0].Events != 0 {
		t.Errorf("of a table that has not changed: %+v", b)
	}
	if b := r.backfills("products", "--where", "id BETWEEN 11 AND 20"); b.Tables[0].Rows != 10 {
		t.Errorf("of a part: %+v, want 10 rows", b)
	}
	code, _, errs := r.command("backfill", "products", "--where", "1 / (id - 2500) > -1", "--chunk-rows", "1000")
	if code != 1 || !strings.Contains(errs, "division by zero") || !strings.Contains(errs, "the stream goes on") {
		t.Errorf("a condition that fails at a row: exit code %d, %s", code, errs)
	}
	p.kill() // the failure is durable: the next start must not run into it
	p = r.start()
	p.streaming()
	r.pauses(p)
	r.commit(1, 300, 3000, false, 0)
	p.drained(time.Minute)
	p.stop()
	r.compare()
}

// pauses pauses a slow backfill over a restart and resumes it.
func (r *rig) pauses(p *process) {
	r.tb.Helper()
	r.succeeds("backfill", "--detach", "--rows-per-second", "2000", "--chunk-rows", "100")
	if code, _, errs := r.command("backfill"); code != 3 || !strings.Contains(errs, "is being read already") {
		r.tb.Errorf("a second backfill: exit code %d, %s", code, errs)
	}
	testenv.Eventually(r.tb, 30*time.Second, func() error {
		if p.imported() == 0 {
			return errors.New("no row is read")
		}
		return nil
	})
	r.succeeds("backfill", "--pause", "products")
	phase := func(want string) {
		r.tb.Helper()
		testenv.Eventually(r.tb, 30*time.Second, func() error {
			s, err := p.status()
			if err == nil && s.Tables[0].Backfill.Phase != want {
				err = fmt.Errorf("phase %s, want %s", s.Tables[0].Backfill.Phase, want)
			}
			return err
		})
	}
	phase("paused")
	p.stop()
	*p = *r.start()
	phase("paused")
	rows := p.imported()
	if rows == 0 || rows >= 3000 {
		r.tb.Errorf("paused after %d rows", rows)
	}
	r.succeeds("backfill", "--resume")
	phase("done")
}
