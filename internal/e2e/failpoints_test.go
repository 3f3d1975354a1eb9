package e2e_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	r.program = filepath.Join(t.TempDir(), "backstory")
	out, err := exec.Command("go", "build", "-tags", "failpoints", "-o", r.program, "backstory/cmd/backstory").CombinedOutput()
	if err != nil {
		t.Fatalf("build with failpoints: %v\n%s", err, out)
	}
	p := r.start("--backfill.chunk_rows", "300")
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
			r.diesAt(place.after)
		}
		r.diesAt(place.name)
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

// diesAt runs the bridge until it has died at a place.
func (r *rig) diesAt(place string) {
	r.tb.Helper()
	r.env = []string{"BACKSTORY_TEST_FAILPOINT=" + place}
	defer func() { r.env = nil }()
	p := r.start("--backfill.chunk_rows", "300")
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
