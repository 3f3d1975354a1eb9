package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"backstory/internal/child"
	"backstory/internal/e2e/audit"
	"backstory/internal/e2e/stored"
	"backstory/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// scratch has the program under test. It is held as long as the process lives,
// since its lock goes with it, and swept by a later run.
var scratch *child.Scratch

// binary is the program under test, built once.
var binary = sync.OnceValues(func() (string, error) {
	var err error
	if scratch, err = child.NewScratch("e2e"); err != nil {
		return "", err
	}
	path := filepath.Join(scratch.Dir, "backstory")
	args := []string{"build", "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "backstory/cmd/backstory")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return path, nil
})

// rig is a legacy database, a Kafka and a place for the bridge's files.
type rig struct {
	tb      testing.TB
	dsn     string
	brokers []string
	dir     string
	http    string
	topics  [2]string
	program string   // empty: binary
	env     []string // of the bridge, beside the test's own
}

// newRig makes a table with standing rows, audited. Its topics are its own; on
// three brokers they have three replicas.
func newRig(tb testing.TB, pg *testenv.PG, brokers []string, rows int) *rig {
	tb.Helper()
	r := &rig{tb: tb, dsn: pg.Database(tb), brokers: brokers, dir: tb.TempDir(), http: freeAddr(tb)}
	prefix, _, _ := strings.Cut(filepath.Base(r.dsn), "?")
	r.topics = [2]string{prefix + ".events", prefix + ".latest"}
	r.configure()
	if err := audit.Install(tb.Context(), r.connect(), rows); err != nil {
		tb.Fatal(err)
	}
	return r
}

// second is another instance of the bridge: the same slot and topics, a state of
// its own.
func (r *rig) second(brokers []string) *rig {
	r.tb.Helper()
	other := *r
	other.brokers, other.dir, other.http = brokers, r.tb.TempDir(), freeAddr(r.tb)
	other.configure()
	return &other
}

// configure writes the bridge's files.
func (r *rig) configure() {
	r.tb.Helper()
	mapping := fmt.Sprintf(audit.Mapping, min(len(r.brokers), 3))
	r.write("products.yaml", strings.NewReplacer("product.events", r.topics[0], "product.latest", r.topics[1]).Replace(mapping))
	r.write("backstory.yaml", fmt.Sprintf(`
source: {dsn: %q, slot: %s, publication: backstory}
kafka: {brokers: [%s]}
state: {dir: state}
http: {listen: %q}
mapping: products.yaml
`, r.dsn, r.slot(), strings.Join(r.brokers, ", "), r.http))
}

func freeAddr(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (r *rig) write(name, content string) {
	r.tb.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o600); err != nil {
		r.tb.Fatal(err)
	}
}

func (r *rig) connect() *pgx.Conn {
	r.tb.Helper()
	conn, err := pgx.Connect(r.tb.Context(), r.dsn)
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() { _ = conn.Close(context.Background()) }) // the test is over
	return conn
}

// exec runs a statement of the legacy application.
func (r *rig) exec(sql string, args ...any) {
	r.tb.Helper()
	conn := r.connect()
	if _, err := conn.Exec(r.tb.Context(), sql, args...); err != nil {
		r.tb.Fatalf("%s: %v", sql, err)
	}
	_ = conn.Close(r.tb.Context()) // nothing hangs on it
}

// process is a running bridge.
type process struct {
	r      *rig
	cmd    *exec.Cmd
	stderr *transcript
	done   chan struct{} // closed when it has ended
	err    error
}

// start runs the bridge; it is killed when the test ends.
func (r *rig) start(args ...string) *process {
	r.tb.Helper()
	path := r.program
	if path == "" {
		var err error
		if path, err = binary(); err != nil {
			r.tb.Fatal(err)
		}
	}
	p := &process{r: r, stderr: new(transcript), done: make(chan struct{})}
	p.cmd = exec.Command(path, append([]string{"run", "--config", filepath.Join(r.dir, "backstory.yaml")}, args...)...)
	p.cmd.Dir, p.cmd.Stderr, p.cmd.Env = r.dir, p.stderr, append(os.Environ(), r.env...)
	if err := p.cmd.Start(); err != nil {
		r.tb.Fatal(err)
	}
	go func() { // ends with the process
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	r.tb.Cleanup(func() {
		p.kill()
		if r.tb.Failed() {
			r.tb.Logf("bridge %d said:\n%s", p.cmd.Process.Pid, tail(p.stderr.String(), 8000))
		}
	})
	return p
}

// transcript is what a process says; it may be read while it is written.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// said is what the bridge has written to its log so far.
func (p *process) said() string { return p.stderr.String() }

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// kill ends the bridge by SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// stop ends the bridge by SIGTERM and wants exit code 0.
func (p *process) stop() {
	p.r.tb.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.r.tb.Fatalf("the bridge ended before it was told to: %v\n%s", p.err, tail(p.stderr.String(), 4000))
	}
	if code := p.wait(time.Minute); code != 0 {
		p.r.tb.Fatalf("exit code %d after SIGTERM, want 0\n%s", code, tail(p.stderr.String(), 4000))
	}
}

// wait returns the exit code.
func (p *process) wait(limit time.Duration) int {
	p.r.tb.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.r.tb.Fatalf("the bridge has not ended within %s\n%s", limit, tail(p.stderr.String(), 4000))
		return 0
	}
}

// status is the part of /status that the tests look at.
type status struct {
	Phase     string `json:"phase"`
	Confirmed string `json:"confirmed_lsn"`
	Tables    []struct {
		Again    int `json:"rows_to_read_again"`
		Backfill struct {
			Rows  int64  `json:"rows"`
			Phase string `json:"phase"`
		} `json:"backfill"`
	} `json:"tables"`
}

func (p *process) status() (s status, err error) {
	ctx, cancel := context.WithTimeout(p.r.tb.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.r.http+"/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// streaming waits until the bridge streams.
func (p *process) streaming() {
	p.r.tb.Helper()
	testenv.Eventually(p.r.tb, time.Minute, func() error {
		if err := p.alive(); err != nil {
			p.r.tb.Fatal(err)
		}
		s, err := p.status()
		if err == nil && s.Phase != "streaming" {
			err = errors.New("phase " + s.Phase)
		}
		return err
	})
}

func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("the bridge ended: %w\n%s", p.err, tail(p.stderr.String(), 4000))
	default:
		return nil
	}
}

// drained waits until everything committed so far is confirmed, every import is
// done and no row is to be read again.
func (p *process) drained(limit time.Duration) {
	p.r.tb.Helper()
	var text string
	conn := p.r.connect()
	if err := conn.QueryRow(p.r.tb.Context(), `SELECT pg_current_wal_lsn()::text`).Scan(&text); err != nil {
		p.r.tb.Fatal(err)
	}
	end, err := pglogrepl.ParseLSN(text)
	if err != nil {
		p.r.tb.Fatal(err)
	}
	testenv.Eventually(p.r.tb, limit, func() error {
		if err := p.alive(); err != nil {
			p.r.tb.Fatal(err)
		}
		return p.reached(end)
	})
}

func (p *process) reached(end pglogrepl.LSN) error {
	s, err := p.status()
	if err != nil {
		return err
	}
	for _, t := range s.Tables {
		if t.Backfill.Phase != "done" {
			return errors.New("the backfill is " + t.Backfill.Phase)
		}
		if t.Again > 0 {
			return fmt.Errorf("%d rows are to be read again", t.Again)
		}
	}
	confirmed, err := pglogrepl.ParseLSN(s.Confirmed)
	if err == nil && confirmed < end {
		err = fmt.Errorf("confirmed %s, want %s; phase %s", confirmed, end, s.Phase)
	}
	return err
}

// compare reads both topics and holds them against the audit, and the state
// against the latest topic. The bridge must have stopped.
func (r *rig) compare() *audit.Report {
	r.tb.Helper()
	return r.compareAs("Product", 1)
}

// compareAs is compare for the table of an aggregate on a slot; the audit speaks of
// products.
func (r *rig) compareAs(aggregate string, slot int) *audit.Report {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(r.tb.Context(), 3*time.Minute)
	defer cancel()
	conn := r.connect()
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		r.tb.Fatal(err)
	}
	history, notes, err := audit.ReadHistory(ctx, conn, version >= 140000)
	if err != nil {
		r.tb.Fatal(err)
	}
	events, partitions, err := audit.ReadTopic(ctx, r.brokers, r.topics[0])
	if err != nil {
		r.tb.Fatal(err)
	}
	latest, _, err := audit.ReadTopic(ctx, r.brokers, r.topics[1])
	if err != nil {
		r.tb.Fatal(err)
	}
	events, latest = slices.DeleteFunc(events, barrier), slices.DeleteFunc(latest, barrier)
	for i := range events {
		h := events[i].Headers
		if rest, ok := strings.CutPrefix(h["ce_type"], aggregate); ok {
			h["ce_type"] = "Product" + rest
		}
	}
	report := audit.Compare(history, events, latest, partitions)
	r.tb.Logf("%d committed row changes; %d keys, %d events, %d latest records", notes, report.Keys, report.Events, report.Latest)
	if report.Wrong > 0 {
		r.tb.Fatalf("%s", report)
	}
	dir := filepath.Join(r.dir, "state")
	if slot > 1 {
		dir = filepath.Join(dir, fmt.Sprintf("slot_%d", slot))
	}
	if err := stored.Compare(ctx, dir, aggregate, latest); err != nil {
		r.tb.Fatal(err)
	}
	return report
}

// barrier is a record that ends a former producer, such as that of the slot which a
// table has left; every consumer has to skip it.
func barrier(r audit.Record) bool {
	_, ok := r.Headers["backstory_barrier"]
	return ok
}

// writing lets n writers write until the returned function is called.
func (r *rig) writing(n int, keys int64, pause time.Duration, truncate bool) (stop func() int64) {
	ctx, cancel := context.WithCancel(r.tb.Context())
	var changes atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for i := range n {
		w := audit.Writer{DSN: r.dsn, Seed: 7, Serial: i, Keys: keys, Truncate: truncate, Pause: pause, Changes: &changes}
		g.Go(func() error { return w.Run(ctx) })
	}
	r.tb.Cleanup(cancel)
	return func() int64 {
		r.tb.Helper()
		cancel()
		if err := g.Wait(); err != nil {
			r.tb.Fatal(err)
		}
		return changes.Load()
	}
}

// number is a size that may be set from outside, for a run by hand.
func number(tb testing.TB, name string, normal int) int {
	tb.Helper()
	text := os.Getenv(name)
	if text == "" {
		return normal
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return n
}
