package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// places are where the bridge can die (package failpoint), each with what has to
// have happened before: of a recovery, that another process died with events
// ahead of latest, or that the state is gone.
var places = []struct{ name, after string }{
	{"chunk-read", "state lost"}, {"chunk-applied", "state lost"}, {"chunk-applied:2", "state lost"},
	{"encoded:3", ""},
	{"produce-under-way:5", ""}, {"produce-partly:5", ""}, {"events-published:3", ""},
	{"produce-under-way:6", ""}, {"produce-partly:6", ""}, {"latest-published:3", ""},
	{"state-committed:3", ""}, {"state-flushed", ""}, {"confirmed", ""},
	{"fence-begun", ""}, {"fence-joined", ""}, {"fence-aborted", ""}, {"fence-ended", ""}, {"fenced", ""},
	{"latest-read", ""}, {"latest-folded", ""},
	{"events-folded", "events-published:2"}, {"latest-republished", "events-published:2"}, {"recovered", "events-published:2"},
	{"events-folded", "produce-partly:3"}, {"latest-republished", "produce-partly:3"}, {"produce-partly", "produce-partly:3"},
	{"latest-read", "state lost"}, {"latest-folded", "state lost"}, {"recovered", "state lost"},
}

// The process dies at each durable step and between each two; what was committed
// is told exactly once all the same.
func TestDiesAtEveryStep(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 1000)
	r.program = failing(t)
	const chunks = "--backfill.chunk_rows=300"
	p := r.start(chunks)
	p.streaming()
	p.kill()
	var changes atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	writing, ctx := errgroup.WithContext(ctx)
	for i := range 2 {
		w := audit.Writer{DSN: r.dsn, Seed: 1, Serial: i, Keys: 200, Truncate: true, Changes: &changes, Pause: 5 * time.Millisecond}
		writing.Go(func() error { return w.Run(ctx) })
	}
	for _, place := range places {
		switch {
		case place.after == "state lost":
			if err := os.RemoveAll(filepath.Join(r.dir, "state")); err != nil {
				t.Fatal(err)
			}
		case place.after != "":
			r.diesAt(place.after, chunks)
		}
		r.diesAt(place.name, chunks)
	}
	stop()
	if err := writing.Wait(); err != nil {
		t.Fatal(err)
	}
	p = r.start()
	p.streaming()
	p.drained(2 * time.Minute)
	p.stop()
	r.compare()
}

// failing is the program with failpoints, built once.
func failing(tb testing.TB) string {
	tb.Helper()
	path, err := failingBinary()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

var failingBinary = sync.OnceValues(func() (string, error) {
	path, err := binary()
	if err != nil {
		return "", err
	}
	path += "-failing" // beside it
	out, err := exec.Command("go", "build", "-tags", "failpoints", "-o", path, "backstory/cmd/backstory").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build with failpoints: %w\n%s", err, out)
	}
	return path, nil
})

// diesAt runs the bridge until it has died at a place.
func (r *rig) diesAt(place string, flags ...string) {
	r.tb.Helper()
	r.env = []string{"BACKSTORY_TEST_FAILPOINT=" + place}
	defer func() { r.env = nil }()
	p := r.start(flags...)
	if code := p.wait(time.Minute); code != -1 {
		r.tb.Fatalf("exit code %d, want death at %s\n%s", code, place, tail(p.said(), 4000))
	}
}

// The program that users get has no trace of it.
func TestNoFailpointsInTheProgram(t *testing.T) {
	t.Parallel()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := exec.Command("go", "tool", "nm", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(symbols), "backstory/internal/bridge.") {
		t.Fatal("the symbols are not those of the program")
	}
	if strings.Contains(string(symbols), "internal/failpoint") {
		t.Error("the program has code of package failpoint")
	}
}
