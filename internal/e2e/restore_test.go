package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"backstory/internal/testenv"
)

// A database that comes back from a backup writes its WAL again at positions that
// the topics have. The bridge refuses it; a repair brings the topics to the table,
// and changes after it are published, also after the state was lost. A copy whose WAL
// has grown beyond the state's position is refused as well, and before anything of it
// is published.
func TestRestoredBackup(t *testing.T) {
	t.Parallel()
	for name, written := range map[string]int64{"its WAL ends below the state": 100, "its WAL has grown beyond the state": 6000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			restoredBackup(t, written)
		})
	}
}

// restoredBackup is TestRestoredBackup with so many changes on the copy before the
// bridge looks.
func restoredBackup(t *testing.T, written int64) {
	pg := testenv.Postgres(t, testenv.Fresh())
	r := newRig(t, pg, testenv.Kafka(t).Brokers(), 500)
	p := r.start()
	p.streaming()
	r.commit(1, 300, 500, false, 0)
	p.drained(time.Minute)
	p.stop()

	data := filepath.Join(filepath.Dir(pg.Server(t).Log()), "data")
	backup := data + ".backup"
	pg.Stop(t)
	copyDir(t, data, backup)
	pg.Restart(t)
	p = r.start()
	p.streaming()
	r.commit(1, 3000, 500, false, 0)
	p.drained(time.Minute)
	p.stop()

	pg.Stop(t)
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup, data); err != nil {
		t.Fatal(err)
	}
	pg.Restart(t)
	r.commit(1, written, 500, false, 0)
	before := len(r.records(r.topics[0]))
	if code, _, errs := r.command("run"); code != 3 || !strings.Contains(errs, "backfill --reconcile") {
		t.Fatalf("run on a restored database: exit code %d, %s; want 3 and the cure", code, tail(errs, 600))
	}
	if now := len(r.records(r.topics[0])); now != before {
		t.Errorf("%d events of the copy were published before it was refused", now-before)
	}
	if b := r.backfills("--reconcile"); b.Tables[0].Events == 0 {
		t.Error("the repair published nothing")
	}
	p = r.start()
	p.streaming()
	r.commit(1, 300, 500, false, 0)
	p.drained(time.Minute)
	r.equal(400)
	p.stop()

	if err := os.RemoveAll(filepath.Join(r.dir, "state")); err != nil {
		t.Fatal(err)
	}
	p = r.start()
	p.streaming()
	r.commit(1, 300, 500, false, 0)
	p.drained(time.Minute)
	r.equal(400)
	p.stop()
}

// copyDir copies a directory with its owners, as a backup does.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v: %s", from, err, out)
	}
}
