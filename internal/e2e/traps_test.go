package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"backstory/internal/testenv"
)

// Regressions for what others have lost between a database and Kafka; DESIGN.md
// has the list of traps and of the tests that cover them.

// Kafka stalls for several times wal_sender_timeout while writers write and other
// tables fill the WAL: the bridge does not panic or grow, keeps its slot, says what
// it waits for, and confirms nothing that Kafka does not have. It goes on in the same
// session. Killed in the middle, it loses nothing.
func TestTrapKafkaStallsLongerThanWALSenderTimeout(t *testing.T) {
	t.Parallel()
	kafka := testenv.Kafka(t, testenv.KafkaProxied())
	r := newRig(t, testenv.Postgres(t, testenv.PGSetting("wal_sender_timeout", "2s")), kafka.Brokers(), 100)
	r.exec(`CREATE TABLE unrelated (t text)`)
	flags := []string{"--kafka.request_timeout=2s", "--bridge.piece_bytes=256KiB"}
	p := r.start(flags...)
	p.drained(time.Minute)
	for i, killed := range []bool{false, true} {
		kafka.Proxy(0).Stall()
		r.exec(`INSERT INTO products (id, name) VALUES ($1, 'stalled')`, 1_000_000+i)
		stalled, peak := r.walEnd(), p.peak()
		r.commit(2, 500, 100, true, 0)
		r.exec(`INSERT INTO products (id, name, description) SELECT n, 'large', repeat('x', 3000) FROM generate_series($1::int, $1 + 29999) n`, 2_000_000+i*100_000)
		session := r.slotSession()
		begun := time.Now()
		testenv.Eventually(t, time.Minute, func() error {
			r.exec(`INSERT INTO unrelated SELECT repeat('x', 1000) FROM generate_series(1, 1000)`)
			if rest := 7*time.Second - time.Since(begun); rest > 0 {
				return fmt.Errorf("%s are left", rest)
			}
			return nil
		})
		if err := p.alive(); err != nil {
			t.Fatal(err)
		}
		if now := r.slotSession(); now != session || now == 0 {
			t.Errorf("the slot's session is %d, want %d as before", now, session)
		}
		if confirmed := r.confirmed(); confirmed >= stalled {
			t.Errorf("confirmed %s, although Kafka does not have what was committed before %s", confirmed, stalled)
		}
		if grown := p.peak() - peak; grown > 64<<20 {
			t.Errorf("the bridge has grown by %d MiB while 90 MiB wait", grown>>20)
		}
		p.notReady("streaming: kafka does not answer since ", "produce")
		if streams, waits := p.metric("backstory_streaming"), p.metric("backstory_kafka_waiting"); streams != 1 || waits != 1 {
			t.Errorf("metrics: streaming %v, waiting for Kafka %v, want 1 and 1", streams, waits)
		}
		if killed {
			p.kill()
		}
		kafka.Proxy(0).Heal(t)
		if killed {
			p = r.start(flags...)
		}
		p.drained(2 * time.Minute)
		p.ready()
		if waits, restarts := p.metric("backstory_kafka_waiting"), p.metric("backstory_session_restarts_total"); waits != 0 || restarts != 0 {
			t.Errorf("metrics: waiting for Kafka %v, %v restarts, want none", waits, restarts)
		}
	}
	p.stop()
	r.compare()
}

// slotSession is the server's process that streams from the slot; 0: none does.
func (r *rig) slotSession() (pid int) {
	r.tb.Helper()
	if err := r.connect().QueryRow(r.tb.Context(), `SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1`, r.slot()).Scan(&pid); err != nil {
		r.tb.Fatal(err)
	}
	return pid
}
