package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// failovers is how many fail-overs a test does in the long form; 0 is the short
// form, which CI runs. See `make failover`.
func failovers(tb testing.TB) int { return number(tb, "BACKSTORY_TEST_FAILOVERS", 0) }

// versions have slots that a standby takes over.
var versions = []string{"17", "18"}

// Synchronous fail-overs while writers write, one after another on the same topics:
// the bridge goes on by itself, and nothing is lost, told twice or out of order.
func TestFailover(t *testing.T) {
	t.Parallel()
	rounds := failovers(t)
	for i, version := range versions {
		if rounds == 0 && i > 0 {
			break
		}
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c, r := newCouple(t, version, testenv.Kafka(t).Brokers(), 500, true)
			p := r.start()
			p.streaming()
			stop := r.writing(2, 300, 5*time.Millisecond, true)
			var slowest time.Duration
			for round := range max(1, rounds/len(versions)) {
				p.drained(2 * time.Minute)
				if round > 0 {
					c.addStandby()
				}
				c.synced(r.slot())
				c.synchronous()
				c.failOver()
				took := r.published(time.Now())
				slowest = max(slowest, took)
				t.Logf("fail-over %d: first event %d ms after the promotion", round+1, took.Milliseconds())
			}
			changes := stop()
			p.drained(2 * time.Minute)
			p.stop()
			report := r.compare()
			t.Logf("Postgres %s: %d fail-overs, 0 refused, %d changes, %d events, first event after %d ms at most",
				version, max(1, rounds/len(versions)), changes, report.Events, slowest.Milliseconds())
		})
	}
}

// published waits for the first event that was committed after a time, and returns
// how long that took.
func (r *rig) published(since time.Time) time.Duration {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(r.tb.Context(), 3*time.Minute)
	defer cancel()
	reader, err := kgo.NewClient(kgo.SeedBrokers(r.brokers...), kgo.ConsumeTopics(r.topics[0]), kgo.FetchMaxWait(20*time.Millisecond),
		kgo.ConsumeResetOffset(kgo.NewOffset().AfterMilli(since.UnixMilli())))
	if err != nil {
		r.tb.Fatal(err)
	}
	defer reader.Close()
	for {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			r.tb.Fatalf("no event after the promotion: %v", err)
		}
		for _, record := range fetches.Records() {
			if !record.Timestamp.Before(since) {
				return time.Since(since)
			}
		}
	}
}

// tails are ways to lose the end of WAL: what happens between the moment from which
// the standby receives nothing and the death of the primary.
var tails = []struct {
	name    string
	happens func(c *couple, r *rig, p *process)
}{
	{"published", func(_ *couple, r *rig, p *process) {
		r.commit(1, 50, 200, false, 0)
		p.drained(2 * time.Minute)
	}},
	{"of other tables", func(c *couple, _ *rig, p *process) {
		c.exec(c.primary, "CREATE TABLE other AS SELECT generate_series(1, 1000)", "SELECT pg_switch_wal()")
		p.drained(2 * time.Minute)
	}},
	{"of changes that make no event", func(c *couple, r *rig, p *process) {
		c.exec(c.primary, "UPDATE products SET sku = sku WHERE id < 10")
		p.drained(2 * time.Minute)
	}},
	{"under load", func(_ *couple, r *rig, _ *process) {
		stop := r.writing(2, 200, time.Millisecond, false)
		var changes atomic.Int64
		w := audit.Writer{DSN: r.dsn, Seed: rand.Uint64(), Serial: 5, Keys: 200, Changes: &changes, Budget: 1 + rand.Int64N(40)}
		if err := w.Run(r.tb.Context()); err != nil {
			r.tb.Fatal(err)
		}
		stop()
	}},
	{"never read", func(_ *couple, r *rig, p *process) {
		p.kill()
		r.commit(1, 50, 200, false, 0)
	}},
}

// Asynchronous fail-overs that lose the end of WAL: the bridge refuses exactly where
// the topics tell of what the new primary does not have; else it goes on.
func TestFailoverLosesTheEnd(t *testing.T) {
	t.Parallel()
	rounds := max(1, failovers(t)*2/3)
	var refused, went, compared atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d refused, %d went on, %d events compared", refused.Load(), went.Load(), compared.Load())
	})
	for i := range rounds {
		tail, version := tails[i%len(tails)], versions[i/len(tails)%len(versions)]
		t.Run(fmt.Sprintf("%d %s on %s", i+1, tail.name, version), func(t *testing.T) {
			c, r := newCouple(t, version, testenv.Kafka(t).Brokers(), 300, true)
			p := r.start()
			p.streaming()
			r.commit(1, 100, 300, false, 0)
			c.synced(r.slot())
			p.drained(2 * time.Minute)
			c.level()
			c.cut()
			tail.happens(c, r, p)
			c.failOver()
			if p.alive() != nil {
				p = r.start()
			}
			code := p.decides(c)
			phantoms := r.phantoms()
			compared.Add(int64(len(r.records(r.topics[0]))))
			if (code == 3) != (phantoms > 0) {
				t.Fatalf("exit code %d (−1: it streams) with %d events of transactions that the new primary does not have\n%s", code, phantoms, p.said())
			}
			if n := r.twice(); n > 0 {
				t.Errorf("%d events stand twice", n)
			}
			if code == 3 {
				refused.Add(1)
				r.branchNamed(p)
				r.repaired()
				return
			}
			went.Add(1)
			r.commit(1, 100, 300, false, 0)
			p.drained(2 * time.Minute)
			p.stop()
			r.compare()
		})
	}
}

// decides waits until the bridge has confirmed all that the new primary has (−1), or
// has ended by itself (its exit code). It is the slot that is asked: what the bridge
// says may be of the old primary, whose WAL went further.
func (p *process) decides(c *couple) (code int) {
	p.r.tb.Helper()
	end := p.r.walEnd()
	behind := fmt.Sprintf("SELECT (confirmed_flush_lsn < '%s')::text FROM pg_replication_slots WHERE slot_name = '%s'", end, p.r.slot())
	testenv.Eventually(p.r.tb, 3*time.Minute, func() error {
		if p.alive() != nil {
			code = p.wait(time.Minute)
			return nil
		}
		code = -1
		if state, err := c.ask(c.primary, behind); err != nil || state != "false" {
			return errors.Join(errors.New("the slot is not at the end of WAL"), err)
		}
		return p.reached(end)
	})
	return code
}

// branchNamed wants the refusal to say where the timelines part, and the cure.
func (r *rig) branchNamed(p *process) {
	r.tb.Helper()
	for _, text := range []string{"branched off at", "backfill --reconcile"} {
		if !strings.Contains(p.said(), text) {
			r.tb.Errorf("the refusal does not say %q:\n%s", text, tail(p.said(), 2000))
		}
	}
}

// repaired runs the repair and wants no step told a second time by it, the topics
// equal to the table, and the bridge to go on.
func (r *rig) repaired() {
	r.tb.Helper()
	r.backfills("--reconcile")
	if n := r.twice(); n > 0 {
		r.tb.Errorf("%d events stand twice after the repair", n)
	}
	p := r.start()
	p.streaming()
	r.equal(1)
	r.commit(1, 100, 300, false, 0)
	p.drained(2 * time.Minute)
	r.equal(1)
	p.stop()
}

// phantoms counts the events of transactions that the database does not have.
// Nobody may have written since the promotion: a transaction's number is used again.
func (r *rig) phantoms() (n int) {
	r.tb.Helper()
	rows, err := r.connect().Query(r.tb.Context(), "SELECT DISTINCT txid::text FROM audit")
	if err != nil {
		r.tb.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.tb.Fatal(err)
	}
	have := map[string]bool{}
	for _, id := range ids {
		have[id] = true
	}
	for _, e := range r.records(r.topics[0]) {
		if xid := e.Headers["ce_xid"]; xid != "" && !have[xid] {
			n++
		}
	}
	return n
}

// twice counts the events of the stream that stand there more than once: of the same
// transaction, change, rule and key. As for phantoms, nobody may have written since
// the promotion.
func (r *rig) twice() (n int) {
	r.tb.Helper()
	seen := map[string]bool{}
	for _, e := range r.records(r.topics[0]) {
		_, place, ok := strings.Cut(e.Headers["ce_sequence"], "-")
		if xid := e.Headers["ce_xid"]; ok && xid != "" {
			id := strings.Join([]string{xid, place, e.Key}, " ")
			if seen[id] {
				n++
			}
			seen[id] = true
		}
	}
	return n
}

// switches are fail-overs in which something else happens as well. The first is in
// the short form.
var switches = []struct {
	name string
	run  func(c *couple, r *rig)
}{
	{"the bridge died with events appended", diesAheadOfTheState},
	{"the bridge dies at each step of the switch", diesWhileItSwitches},
	{"a backfill is under way", switchesInABackfill},
	{"a large transaction is under way", switchesInALargeTransaction},
	{"the standby has no slot", losesTheSlot},
	{"the slot was made again", findsAnotherSlot},
	{"the copy of the slot is behind, and a repair is run", repairsWithASlotBehind},
	{"the copy of the slot is behind, and the bridge goes on", goesOnWithASlotBehind},
	{"another instance with an old state takes over", takesOverAfterASwitch},
}

// Fail-overs with something else going wrong.
func TestFailoverAnd(t *testing.T) {
	t.Parallel()
	for i, s := range switches {
		if failovers(t) == 0 && i > 0 {
			break
		}
		t.Run(s.name, func(t *testing.T) {
			c, r := newCouple(t, versions[i%len(versions)], testenv.Kafka(t).Brokers(), 300, true)
			s.run(c, r)
		})
	}
}

// begins starts the bridge and returns when the standby has the slot, after some
// changes, and all of them.
func (r *rig) begins(c *couple, flags ...string) *process {
	r.tb.Helper()
	p := r.start(flags...)
	p.streaming()
	r.commit(1, 100, 300, false, 0)
	c.synced(r.slot())
	p.drained(2 * time.Minute)
	c.level()
	return p
}

// goesOn starts the bridge and wants all that was committed to be told once.
func (r *rig) goesOn() {
	r.tb.Helper()
	p := r.start()
	p.streaming()
	r.commit(1, 100, 300, true, 0)
	p.drained(2 * time.Minute)
	p.stop()
	r.compare()
}

// The topics are ahead of the state, by just what the fail-over loses: the state
// alone would not tell.
func diesAheadOfTheState(c *couple, r *rig) {
	r.program = failing(r.tb)
	r.begins(c).stop()
	c.cut()
	r.exec("UPDATE products SET price = 12.34 WHERE id < 50")
	r.diesAt("events-published")
	c.failOver()
	if r.phantoms() == 0 {
		r.tb.Fatal("the topics are not ahead")
	}
	r.fails(3, "branched off at", "backfill --reconcile")
	r.repaired()
}

// Nothing is lost, and the bridge dies at each step of its first start on the new
// primary, with something to fold.
func diesWhileItSwitches(c *couple, r *rig) {
	r.program = failing(r.tb)
	r.begins(c).stop()
	r.commit(1, 100, 300, false, 0)
	r.diesAt("events-published")
	c.level()
	c.failOver()
	for _, place := range []string{
		"fence-begun", "fence-joined", "fence-aborted", "fence-ended", "fenced", "latest-read", "latest-folded",
		"events-folded", "latest-republished", "recovered", "timeline-followed",
	} {
		r.diesAt(place)
	}
	r.commit(1, 100, 300, false, 0)
	for _, place := range []string{"encoded", "produce-under-way", "events-published", "latest-published", "state-committed", "state-flushed", "confirmed"} {
		r.diesAt(place)
		r.commit(1, 100, 300, false, 0)
	}
	r.goesOn()
}

func switchesInABackfill(c *couple, r *rig) {
	p := r.start("--backfill.chunk_rows=10", "--backfill.rows_per_second=20")
	p.streaming()
	stop := r.writing(1, 300, 20*time.Millisecond, false)
	c.synced(r.slot())
	c.synchronous()
	testenv.Eventually(r.tb, 2*time.Minute, func() error {
		if n := p.imported(); n < 20 {
			return fmt.Errorf("%d rows are imported", n)
		}
		return nil
	})
	c.failOver()
	if n := p.imported(); n >= 300 {
		r.tb.Fatal("the backfill was done before the fail-over")
	}
	p.drained(3 * time.Minute)
	stop()
	p.drained(2 * time.Minute)
	p.stop()
	r.compare()
}

func switchesInALargeTransaction(c *couple, r *rig) {
	p := r.begins(c)
	c.synchronous()
	r.commit(1, 50, 300, false, 30_000)
	c.level()
	c.failOver()
	r.commit(1, 50, 300, false, 0)
	p.drained(3 * time.Minute)
	p.stop()
	r.compare()
}

// The standby never had the slot for good.
func losesTheSlot(c *couple, r *rig) {
	c.stopSlots()
	p := r.start()
	p.streaming()
	r.commit(1, 100, 300, false, 0)
	p.drained(2 * time.Minute)
	c.level()
	p.stop()
	c.failOver()
	r.fails(3, "slot "+r.slot(), "backfill --reconcile")
	r.repaired()
}

// Somebody made the slot anew on the new primary: what was written before is in no
// stream.
func findsAnotherSlot(c *couple, r *rig) {
	r.begins(c).stop()
	r.exec("UPDATE products SET price = 12.34 WHERE id < 50")
	c.level()
	c.failOver()
	c.exec(c.primary, "SELECT pg_drop_replication_slot('"+r.slot()+"')",
		"SELECT pg_create_logical_replication_slot('"+r.slot()+"', 'pgoutput', false, false, true)")
	r.fails(3, "slot "+r.slot(), "backfill --reconcile")
	r.repaired()
}

// behind lets the standby's slot stay behind by changes that are published and
// that it has: a row is made and then changed twice.
func (r *rig) behind(c *couple) {
	r.tb.Helper()
	p := r.begins(c)
	r.exec("INSERT INTO products (id, price) VALUES (7000000000, 1)")
	p.drained(2 * time.Minute)
	c.stopSlots()
	r.exec("UPDATE products SET price = 2 WHERE id = 7000000000")
	r.exec("UPDATE products SET price = 3 WHERE id = 7000000000")
	p.drained(2 * time.Minute)
	c.level()
	p.stop()
	c.failOver()
}

// A repair where nothing is lost makes nothing.
func repairsWithASlotBehind(c *couple, r *rig) {
	r.behind(c)
	before := len(r.records(r.topics[0]))
	r.backfills("--reconcile")
	if now := len(r.records(r.topics[0])); now != before {
		r.tb.Errorf("the repair made %d events of changes that were told", now-before)
	}
	r.goesOn()
}

func goesOnWithASlotBehind(c *couple, r *rig) {
	r.behind(c)
	r.goesOn()
}

// One instance follows the fail-over and publishes, then another one takes over,
// whose state is of before: nothing is lost, and it need not be refused.
func takesOverAfterASwitch(c *couple, r *rig) {
	other := r.second(r.brokers)
	r.begins(c).stop()
	p := other.start()
	p.streaming()
	r.commit(1, 100, 300, false, 0)
	p.drained(2 * time.Minute)
	c.level()
	p.stop()
	c.failOver()
	p = r.start() // its state is on the old timeline
	p.streaming()
	r.commit(1, 100, 300, false, 0)
	p.drained(2 * time.Minute)
	p.stop()
	p = other.start() // so is that of the other one, and the topics are ahead of both
	p.streaming()
	r.commit(1, 100, 300, false, 0)
	p.drained(2 * time.Minute)
	p.stop()
	other.compare()
}
