package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// get asks the bridge's HTTP server.
func (p *process) get(path string) (code int, body string, err error) {
	ctx, cancel := context.WithTimeout(p.r.tb.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.r.http+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// ready waits until the bridge says that changes flow.
func (p *process) ready() { p.says(http.StatusOK, "ready") }

// notReady waits until the bridge says that they do not, and why.
func (p *process) notReady(why ...string) { p.says(http.StatusServiceUnavailable, why...) }

func (p *process) says(want int, texts ...string) {
	p.r.tb.Helper()
	testenv.Eventually(p.r.tb, time.Minute, func() error {
		if err := p.alive(); err != nil {
			p.r.tb.Fatal(err)
		}
		code, said, err := p.get("/readyz")
		if err == nil && code != want {
			err = fmt.Errorf("readyz: %d %s, want %d", code, said, want)
		}
		for _, text := range texts {
			if err == nil && !strings.Contains(said, text) {
				err = fmt.Errorf("readyz: want %q in %s", text, said)
			}
		}
		return err
	})
}

// metric is the value of a metric of the only slot.
func (p *process) metric(name string) float64 {
	p.r.tb.Helper()
	_, all, err := p.get("/metrics")
	if err != nil {
		p.r.tb.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + name + `(?:\{slot="[^"]*"\})? (\S+)$`).FindStringSubmatch(all)
	if found == nil {
		p.r.tb.Fatalf("no metric %s in:\n%s", name, all)
	}
	value, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		p.r.tb.Fatal(err)
	}
	return value
}

// Postgres dies, or is stopped; then Kafka too; and they come back in either order.
// One process goes through all of it, says what it lacks, and goes on.
func TestServersAway(t *testing.T) {
	t.Parallel()
	pg, kafka := testenv.Postgres(t, testenv.Fresh()), testenv.Kafka(t, testenv.KafkaPrivate())
	r := newRig(t, pg, kafka.Brokers(), 100)
	p := r.start("--kafka.request_timeout=2s")
	p.drained(time.Minute)
	p.ready()

	pg.Kill9(t)
	p.notReady("reconnecting: ", "connection refused")
	const restarts = "backstory_session_restarts_total"
	testenv.Eventually(t, time.Minute, func() error {
		if n := p.metric(restarts); n < 7 {
			return fmt.Errorf("%v restarts", n)
		}
		return nil
	})
	if streams := p.metric("backstory_streaming"); streams != 0 {
		t.Errorf("the metric of streaming is %v, want 0", streams)
	}
	p.pausesGrow()
	pg.Restart(t)
	p.ready()
	r.commit(1, 300, 100, true, 0)
	p.drained(time.Minute)

	pg.Stop(t)
	p.notReady("reconnecting: ")
	pg.Restart(t)
	p.ready()

	for i, first := range []string{"postgres", "kafka"} {
		kafka.Kill9(t, 0)
		r.exec(`UPDATE products SET price = $1 WHERE id = 1`, i+1)
		p.notReady("kafka does not answer")
		pg.Kill9(t)
		p.notReady("")
		if first == "postgres" {
			pg.Restart(t)
			p.notReady("kafka")
			kafka.Restart(t, 0)
		} else {
			kafka.Restart(t, 0)
			p.notReady("reconnecting: ", "connection refused")
			pg.Restart(t)
		}
		p.ready()
		r.commit(1, 300, 100, true, 0)
		p.drained(time.Minute)
	}
	p.stop()
	r.compare()
}

// pausesGrow wants the pauses before new sessions to have grown, within their bound.
func (p *process) pausesGrow() {
	p.r.tb.Helper()
	var pauses []time.Duration
	for _, found := range regexp.MustCompile(`pause=(\S+)`).FindAllStringSubmatch(p.said(), -1) {
		pause, err := time.ParseDuration(found[1])
		if err != nil {
			p.r.tb.Fatal(err)
		}
		pauses = append(pauses, pause)
	}
	const limit = 23 * time.Second // 15 s, and half of it at random
	if n := len(pauses); n < 7 || pauses[n-1] <= pauses[0] || pauses[n-1] > limit {
		p.r.tb.Errorf("the pauses are %v, want them to grow up to %s", pauses, limit)
	}
}

// The disk of the state is full: the bridge ends with the cause, at each start, and
// goes on when there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 100)
	dir := filepath.Join(r.dir, "state")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("needs the right to mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	p := r.start()
	p.drained(time.Minute)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r.exec(`INSERT INTO products (id, name, description) SELECT n, 'large', md5(n::text) || repeat('x', 3000) FROM generate_series(10001, 11000) n`)
	if code := p.wait(time.Minute); code != 1 || !strings.Contains(p.said(), "no space left on device") {
		t.Fatalf("exit code %d, want 1 and the cause\n%s", code, tail(p.said(), 2000))
	}
	p = r.start() // it is as full as before
	if code := p.wait(time.Minute); code != 1 || !strings.Contains(p.said(), "no space left on device") {
		t.Errorf("exit code %d of a start on a full disk, want 1 and the cause\n%s", code, tail(p.said(), 2000))
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	p = r.start()
	r.commit(1, 300, 100, true, 0)
	p.drained(time.Minute)
	p.stop()
	r.compare()
}

// What is done to the source under a running bridge makes the stream untrue: it ends
// with the cause and a way out, and never goes on over the gap.
func TestSourceSpoiledWhileStreaming(t *testing.T) {
	t.Parallel()
	pg, kafka := testenv.Postgres(t), testenv.Kafka(t)
	tests := []struct {
		name  string
		spoil func(*rig)
		says  []string
	}{
		{"publication dropped", executed(`DROP PUBLICATION backstory`), []string{"publication backstory: it was dropped"}},
		{"publication altered", executed(`ALTER PUBLICATION backstory SET (publish = 'insert')`), []string{"publication backstory: it no longer publishes update, delete"}},
		{"table taken out", executed(`ALTER PUBLICATION backstory DROP TABLE ONLY products`), []string{"table public.products: it was taken out of publication backstory"}},
		{"table made anew", executed(`ALTER TABLE products RENAME TO old; CREATE TABLE products (LIKE old INCLUDING ALL);
			ALTER PUBLICATION backstory ADD TABLE ONLY products`), []string{"table public.products: ", "another one has its name"}},
		{"slot dropped", executed(`DO $$ BEGIN
			LOOP
				PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = current_database();
				BEGIN
					PERFORM pg_drop_replication_slot(current_database()::name);
					RETURN;
				EXCEPTION WHEN object_in_use THEN NULL;
				END;
			END LOOP; END $$`), []string{"slot ", "backfill --reconcile"}},
	}
	bridges := make([]*process, len(tests))
	for i := range tests {
		bridges[i] = newRig(t, pg, kafka.Brokers(), 20).start()
	}
	for i, tt := range tests {
		bridges[i].drained(time.Minute)
		tt.spoil(bridges[i].r)
	}
	for i, tt := range tests { // the catalog is looked at every ten seconds
		bridges[i].refusedToGoOn(tt.name, tt.says...)
	}
}

// refusedToGoOn wants the bridge to end by itself, with exit code 3 and all of the texts.
func (p *process) refusedToGoOn(name string, says ...string) {
	p.r.tb.Helper()
	code := p.wait(2 * time.Minute)
	_, last, _ := strings.Cut(p.said(), "\nbackstory: ")
	for _, text := range says {
		if code != refusedCode || !strings.Contains(last, text) {
			p.r.tb.Errorf("%s: exit code %d, want %d and %q in:\n%s", name, code, refusedCode, text, tail(p.said(), 2000))
		}
	}
}

// The address of the database leads to another cluster, under a running bridge and
// at a start, although database, table and slot have the same names there.
func TestAnotherCluster(t *testing.T) {
	t.Parallel()
	pg, other := testenv.Postgres(t, testenv.Fresh()), testenv.Postgres(t, testenv.Fresh())
	r := newRig(t, pg, testenv.Kafka(t).Brokers(), 20)
	twin := *r
	other.Exec(t, other.DSN("postgres"), `CREATE DATABASE `+r.slot())
	twin.dsn = other.DSN(r.slot())
	if err := audit.Install(t.Context(), twin.connect(), 20); err != nil {
		t.Fatal(err)
	}
	twin.exec(`CREATE PUBLICATION backstory FOR TABLE products`)
	twin.exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, r.slot())
	link := testenv.Proxy(t, pg.Addr())
	r.edit("backstory.yaml", pg.Addr(), link.Addr())
	p := r.start()
	p.drained(time.Minute)
	link.Turn(other.Addr())
	p.refusedToGoOn("turned while it streams", "it belongs to system ", "point source.dsn or state.dir to the other")
	r.start().refusedToGoOn("started there", "it belongs to system ")
	link.Turn(pg.Addr())
	p = r.start()
	r.commit(1, 100, 20, false, 0)
	p.drained(time.Minute)
	p.stop()
	r.compare()
}

// A topic is deleted while the bridge is down. It is not made anew and filled from
// where the slot is.
func TestLostTopics(t *testing.T) {
	t.Parallel()
	pg, kafka := testenv.Postgres(t), testenv.Kafka(t)
	for i, name := range []string{"events", "latest", "both"} {
		r := newRig(t, pg, kafka.Brokers(), 20)
		p := r.start()
		p.drained(time.Minute)
		p.stop()
		lost := r.topics[min(i, 1):][:1]
		if name == "both" {
			lost = r.topics[:]
		}
		r.admin(func(ctx context.Context, admin *kadm.Client) error {
			res, err := admin.DeleteTopics(ctx, lost...)
			if err == nil {
				err = res.Error()
			}
			return err
		})
		r.exec(`UPDATE products SET price = 1`)
		before := r.confirmed()
		for range 2 { // a second start must not take what the first one has left
			r.start().refusedToGoOn(name, "the topic ", "restore the topic")
		}
		if after := r.confirmed(); after != before {
			t.Errorf("%s: confirmed %s, want %s as before", name, after, before)
		}
	}
}

// A second instance waits for the slot and takes over when the first one dies, and
// when it stands still. One that goes on after that has lost the slot: it stands by
// and writes nothing, and fences nobody.
func TestStandby(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t, testenv.PGSetting("wal_sender_timeout", "8s")), testenv.Kafka(t).Brokers(), 200)
	rigs := [2]*rig{r, r.second(r.brokers)}
	one := rigs[0].start()
	one.drained(time.Minute)
	stop := r.writing(2, 200, 5*time.Millisecond, true)
	two := rigs[1].start()
	two.notReady("waiting for the slot")

	died := time.Now()
	one.kill()
	two.streaming()
	t.Logf("taken over from a dead instance in %s", time.Since(died).Round(time.Millisecond))

	one = rigs[0].start()
	one.notReady("waiting for the slot")
	if err := two.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	frozen := time.Now()
	one.streaming()
	t.Logf("taken over from a frozen instance in %s", time.Since(frozen).Round(time.Millisecond))
	if err := two.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	two.notReady("waiting for the slot")
	changes := stop()
	one.drained(time.Minute)
	if n := one.metric("backstory_session_restarts_total"); n != 0 {
		t.Errorf("the instance that took over has restarted %v times, want none: it was fenced in turn", n)
	}
	two.stop()
	one.stop()
	t.Logf("%d changes", changes)
	rigs[0].compare()
}
