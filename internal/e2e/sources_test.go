package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/internal/testenv"
)

// newSmall makes a table of three rows in a database that is there, in a rig without an
// audit: t (id, n), with (1,1), (2,2) and (3,3).
func newSmall(tb testing.TB, dsn string, brokers []string, topics [2]string, partitions int) *rig {
	tb.Helper()
	r := &rig{tb: tb, dsn: dsn, brokers: brokers, dir: tb.TempDir(), http: freeAddr(tb), topics: topics}
	r.point(r.slot(), partitions)
	return r
}

// point writes the files of a bridge with a slot.
func (r *rig) point(slot string, partitions int) {
	r.tb.Helper()
	r.write("map.yaml", fmt.Sprintf("tables:\n  - table: public.t\n    aggregate: T\n"+
		"    topics: {events: %s, latest: %s, partitions: %d, replication: 1}\n", r.topics[0], r.topics[1], partitions))
	r.write("backstory.yaml", fmt.Sprintf("source: {dsn: %q, slot: %s}\nkafka: {brokers: [%s]}\nstate: {dir: state}\nhttp: {listen: %q}\nmapping: map.yaml\n",
		r.dsn, slot, strings.Join(r.brokers, ", "), r.http))
}

const smallTable = `CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 3) i`

func databaseOf(dsn string) string {
	name, _, _ := strings.Cut(filepath.Base(dsn), "?")
	return name
}

// topicsOf are those that go with a database.
func topicsOf(dsn string) [2]string {
	return [2]string{databaseOf(dsn) + ".events", databaseOf(dsn) + ".latest"}
}

// told are the events as the table's owner would tell them: "2 v2 TUpdated {"n":2}→{"n":7}".
func (r *rig) told() []string {
	r.tb.Helper()
	var told []string
	for _, e := range r.records(r.topics[0]) {
		if barrier(e) {
			continue
		}
		told = append(told, fmt.Sprintf("%s v%d %s %s", e.Key, e.Version(), strings.TrimSuffix(e.Headers["ce_type"], ".v1"), change(e.Value)))
	}
	slices.Sort(told)
	return told
}

// change is an event's data in short.
func change(data []byte) string {
	text := strings.TrimSuffix(strings.TrimPrefix(string(data), `{"old":`), `,"reason":null}`)
	return strings.Replace(text, `,"new":`, "→", 1)
}

func (r *rig) wantTold(want ...string) {
	r.tb.Helper()
	slices.Sort(want)
	if got := r.told(); !slices.Equal(got, want) {
		r.tb.Errorf("events:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

var imported = []string{`1 v1 TImported {}→{"id":1,"n":1}`, `2 v1 TImported {}→{"id":2,"n":2}`, `3 v1 TImported {}→{"id":3,"n":3}`}

// before is what a server has told that the rows are moved from.
var before = append(slices.Clone(imported), `1 v2 TUpdated {"n":1}→{"n":11}`)

// offsets are the ends of all partitions of both topics, markers of fences counted.
func (r *rig) offsets() string {
	r.tb.Helper()
	var text []string
	r.admin(func(ctx context.Context, client *kadm.Client) error {
		ends, err := client.ListEndOffsets(ctx, r.topics[:]...)
		if err == nil {
			err = ends.Error()
		}
		ends.Each(func(o kadm.ListedOffset) {
			text = append(text, fmt.Sprintf("%s/%d: %d", o.Topic, o.Partition, o.Offset))
		})
		return err
	})
	slices.Sort(text)
	return strings.Join(text, ", ")
}

// refuses wants commands to end with exit code 3 and all of the texts, and none of
// them to touch the topics.
func (r *rig) refuses(commands []string, says ...string) {
	r.tb.Helper()
	ends := r.offsets()
	for _, line := range commands {
		words := strings.Fields(line)
		code, out, errs := r.command(words[0], words[1:]...)
		if code != 3 {
			r.tb.Errorf("%s: exit code %d, want 3\n%s%s", line, code, out, tail(errs, 2000))
		}
		for _, text := range says {
			if !strings.Contains(out+errs, text) {
				r.tb.Errorf("%s: want %q in:\n%s%s", line, text, out, tail(errs, 2000))
			}
		}
		if strings.Contains(out+errs, "older backup") {
			r.tb.Errorf("%s: speaks of a backup that nobody restored:\n%s%s", line, out, tail(errs, 2000))
		}
	}
	if after := r.offsets(); after != ends {
		r.tb.Errorf("the topics were touched: %s, before %s", after, ends)
	}
}

const adoptText = "backstory backfill --reconcile --adopt-topics"

// The rows of a database come to another server, as by pg_upgrade or dump and
// restore, and are changed there before the bridge follows.
func TestMovedToAnotherServer(t *testing.T) {
	t.Parallel()
	from, young, old := testenv.Postgres(t), testenv.Postgres(t, testenv.Fresh()), testenv.Postgres(t, testenv.Fresh())
	for range 20 { // 320 MiB of WAL positions: beyond those of the server that is left
		old.Exec(t, old.DSN("postgres"), "SELECT pg_logical_emit_message(false, '', '')", "SELECT pg_switch_wal()")
	}
	brokers := testenv.Kafka(t).Brokers()
	for _, tt := range []struct {
		name string
		to   *testenv.PG
		lost bool
	}{
		{"with the state", young, false}, {"without the state", young, true},
		{"to higher positions", old, false}, {"to higher positions without the state", old, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newMoved(t, from, tt.to, brokers, 3)
			if out := r.succeeds("backfill", "--reconcile", "--adopt-topics", "--dry-run", "--json"); !strings.Contains(out, `"TUpdated.v1":1`) {
				t.Errorf("a dry run says:\n%s", tail(out, 2000))
			}
			if tt.lost {
				r.loseState()
			}
			r.refuses([]string{"run", "backfill --reconcile", "doctor"}, adoptText)
			r.succeeds("backfill", "--reconcile", "--adopt-topics")
			moved := append(slices.Clone(before), `2 v2 TUpdated {"n":2}→{"n":7}`)
			r.wantTold(moved...)

			p := r.start()
			p.streaming()
			r.exec(`UPDATE t SET n = 8 WHERE id = 2`)
			p.drained(time.Minute)
			r.succeeds("verify")
			p.stop()
			moved = append(moved, `2 v3 TUpdated {"n":7}→{"n":8}`)
			r.wantTold(moved...)
			r.loseState() // the topics tell which source they had before
			p = r.start()
			p.streaming()
			r.exec(`DELETE FROM t WHERE id = 3`)
			p.drained(time.Minute)
			p.stop()
			r.wantTold(append(moved, `3 v2 TDeleted {"id":3,"n":3}→{}`)...)
			r.uniqueIDs()

			r.dsn = r.former
			r.point(r.slot(), 3)
			r.refuses([]string{"run", "backfill --reconcile"}, adoptText) // the state is the new server's
			r.loseState()
			r.refuses([]string{"run", "backfill --reconcile", "doctor"}, adoptText)
		})
	}
}

// Where nothing differs, nothing is published, and only the state knows what was taken
// over: the doctor asks it, and without it the topics are another source's again. A
// former bridge that goes on all the same is found out by what it writes.
func TestMovedWithoutADifference(t *testing.T) {
	t.Parallel()
	from, to := testenv.Postgres(t), testenv.Postgres(t, testenv.Fresh())
	r := newMoved(t, from, to, testenv.Kafka(t).Brokers(), 2)
	r.exec(`UPDATE t SET n = 2 WHERE id = 2`)
	r.succeeds("backfill", "--reconcile", "--adopt-topics")
	r.wantTold(before...)
	r.succeeds("doctor")
	p := r.start()
	p.streaming()
	r.succeeds("doctor") // a process has the state
	r.succeeds("verify")
	p.stop()
	state := filepath.Join(r.dir, "state")
	if err := os.Rename(state, state+".kept"); err != nil {
		t.Fatal(err)
	}
	r.refuses([]string{"run", "doctor"}, adoptText)
	r.loseState()

	moved := r.dsn
	r.dsn = r.former
	r.point(r.slot(), 2)
	p = r.start()
	p.streaming()
	r.exec(`UPDATE t SET n = 12 WHERE id = 1`)
	p.drained(time.Minute)
	p.stop()
	r.loseState()
	if err := os.Rename(state+".kept", state); err != nil {
		t.Fatal(err)
	}
	r.dsn = moved
	r.point(r.slot(), 2)
	r.refuses([]string{"run", "backfill --reconcile", "doctor"}, "had taken the topic over before that record was written")
	r.succeeds("backfill", "--reconcile", "--adopt-topics")
	r.wantTold(append(slices.Clone(before), `1 v3 TUpdated {"n":11}→{"n":12}`, `1 v4 TUpdated {"n":12}→{"n":11}`)...)
}

// moved is a rig whose source has moved to another server.
type moved struct {
	*rig
	former string // dsn
}

// newMoved publishes the small table of one server, copies it to the other, where row
// 2 is changed, and points the bridge there.
func newMoved(t *testing.T, from, to *testenv.PG, brokers []string, partitions int) *moved {
	t.Helper()
	dsn := from.Database(t)
	r := newSmall(t, dsn, brokers, topicsOf(dsn), partitions)
	r.exec(smallTable)
	p := r.start()
	p.streaming()
	p.drained(time.Minute)
	r.exec(`UPDATE t SET n = 11 WHERE id = 1`)
	p.drained(time.Minute)
	p.stop()
	r.wantTold(before...)
	to.Exec(t, to.DSN("postgres"), "CREATE DATABASE "+r.slot())
	r.dsn = to.DSN(r.slot())
	r.exec(smallTable)
	r.exec(`CREATE PUBLICATION backstory FOR TABLE t`)
	r.exec(`SELECT pg_create_logical_replication_slot('` + r.slot() + `', 'pgoutput')`)
	// As logical replication brings what the former server has told already.
	r.exec(`UPDATE t SET n = 10 WHERE id = 1`)
	r.exec(`UPDATE t SET n = 11 WHERE id = 1`)
	r.exec(`UPDATE t SET n = 7 WHERE id = 2`)
	r.point(r.slot(), partitions)
	return &moved{r, dsn}
}

func (r *rig) loseState() {
	r.tb.Helper()
	if err := os.RemoveAll(filepath.Join(r.dir, "state")); err != nil {
		r.tb.Fatal(err)
	}
}

// uniqueIDs wants source and id of every record of both topics to be its own, as
// CloudEvents has it.
func (r *rig) uniqueIDs() {
	r.tb.Helper()
	seen := map[string]string{}
	for _, topic := range r.topics {
		for _, e := range r.records(topic) {
			id := e.Headers["ce_source"] + " " + e.Headers["ce_id"]
			at := fmt.Sprintf("%s/%d/%d", topic, e.Partition, e.Offset)
			if other, ok := seen[id]; ok {
				r.tb.Errorf("%s and %s are both %s", other, at, id)
			}
			seen[id] = at
		}
	}
}

// Whoever takes topics over and dies has to come again, and nothing is told twice.
func TestAdoptionDies(t *testing.T) {
	t.Parallel()
	from, to := testenv.Postgres(t), testenv.Postgres(t, testenv.Fresh())
	brokers := testenv.Kafka(t).Brokers()
	for _, place := range []string{"fence-begun", "fenced", "latest-folded", "recovered", "chunk-read", "events-published", "latest-published"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			r := newMoved(t, from, to, brokers, 1)
			r.program = failing(t)
			r.env = []string{"BACKSTORY_TEST_FAILPOINT=" + place}
			if code, _, errs := r.command("backfill", "--reconcile", "--adopt-topics"); code != -1 {
				t.Fatalf("exit code %d, want death at %s\n%s", code, place, tail(errs, 4000))
			}
			r.env, r.program = nil, ""
			switch place {
			case "fence-begun", "fenced", "latest-folded":
				r.refuses([]string{"run", "backfill --reconcile"}, adoptText)
			case "recovered":
				r.fails(3, "is of another history than the server's", "backfill --reconcile")
			}
			r.succeeds("backfill", "--reconcile", "--adopt-topics")
			r.wantTold(append(slices.Clone(before), `2 v2 TUpdated {"n":2}→{"n":7}`)...)
		})
	}
}

// A bridge of another database, with a state of its own and a mapping that names
// topics in use, leaves them and their bridge alone.
func TestTopicsInUse(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	dsn := pg.Database(t)
	r := newSmall(t, dsn, testenv.Kafka(t).Brokers(), topicsOf(dsn), 2)
	r.exec(smallTable)
	p := r.start()
	p.streaming()
	p.drained(time.Minute)

	other := newSmall(t, pg.Database(t), r.brokers, r.topics, 2)
	other.exec(`CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (2, 99), (5, 5)`)
	other.point(r.slot()+"_other", 2)
	commands := []string{"run", "backfill --once", "backfill --reconcile", "doctor"}
	other.refuses(commands, "/"+databaseOf(r.dsn)+"/public.t", "/"+databaseOf(other.dsn)+"/public.t")
	other.topics[1] += ".own" // which is not there: only events are another source's
	other.point(r.slot()+"_other", 2)
	for _, command := range commands {
		words := strings.Fields(command)
		if code, out, errs := other.command(words[0], words[1:]...); code != 3 {
			t.Errorf("%s with a latest topic of its own: exit code %d, want 3\n%s%s", command, code, out, tail(errs, 2000))
		}
	}
	if n := other.topicsThere(other.topics[1]); n != 0 {
		t.Errorf("topic %s was made", other.topics[1])
	}

	r.exec(`UPDATE t SET n = 20 WHERE id = 2`)
	p.drained(time.Minute)
	if s := p.said(); strings.Contains(s, "session over") {
		t.Errorf("the rightful bridge was disturbed:\n%s", tail(s, 2000))
	}
	p.stop()
	r.wantTold(append(slices.Clone(imported), `2 v2 TUpdated {"n":2}→{"n":20}`)...)
}

// topicsThere counts those of the topics that exist.
func (r *rig) topicsThere(topics ...string) (n int) {
	r.tb.Helper()
	r.admin(func(ctx context.Context, client *kadm.Client) error {
		found, err := client.ListTopics(ctx, topics...)
		for _, t := range found {
			if t.Err == nil {
				n++
			}
		}
		return err
	})
	return n
}

// What must not be done to a topic in use ends the bridge while its events are whole.
func TestTopicsAreWatched(t *testing.T) {
	t.Parallel()
	pg, brokers := testenv.Postgres(t), testenv.Kafka(t).Brokers()
	set := func(topic int, name, value string) func(*rig) {
		return func(r *rig) {
			r.admin(func(ctx context.Context, client *kadm.Client) error {
				_, err := client.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: name, Value: &value}}, r.topics[topic])
				return err
			})
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(*rig)
		says  string
	}{
		{"events compacted", set(0, "cleanup.policy", "compact"), "cleanup.policy is compact, and must be delete"},
		{"events with a retention", set(0, "retention.ms", "3600000"), "retention.ms is 3600000"},
		{"latest deleted", set(1, "cleanup.policy", "delete"), "cleanup.policy is delete, and must be compact"},
		{"no room for an event", set(0, "max.message.bytes", "1000"), "max.message.bytes is 1000"},
		{"partitions added", func(r *rig) {
			r.admin(func(ctx context.Context, client *kadm.Client) error {
				_, err := client.CreatePartitions(ctx, 1, r.topics[0])
				return err
			})
		}, "it has 3 partitions, and had 2"},
		{"a record of another source", func(r *rig) {
			record := r.records(r.topics[0])[0]
			copied := &kgo.Record{Topic: r.topics[0], Key: []byte(record.Key), Value: record.Value, Partition: record.Partition}
			for name, value := range record.Headers {
				if name == "ce_source" {
					value = "/postgres/1/other/public.t"
				}
				copied.Headers = append(copied.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
			}
			client, err := kgo.NewClient(kgo.SeedBrokers(r.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
			if err != nil {
				r.tb.Fatal(err)
			}
			defer client.Close()
			if err := client.ProduceSync(r.tb.Context(), copied).FirstErr(); err != nil {
				r.tb.Fatal(err)
			}
		}, "is of source /postgres/1/other/public.t, and the bridge's own is /postgres/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dsn := pg.Database(t)
			r := newSmall(t, dsn, brokers, topicsOf(dsn), 2)
			r.exec(smallTable)
			p := r.start()
			p.streaming()
			p.drained(time.Minute)
			tt.spoil(r)
			if code := p.wait(2 * time.Minute); code != 3 || !strings.Contains(p.said(), tt.says) {
				t.Errorf("exit code %d, want 3 and %q in\n%s", code, tt.says, tail(p.said(), 2000))
			}
			if got := r.told(); len(got) < len(imported) {
				t.Errorf("%d events are left", len(got))
			}
			r.fails(3)
		})
	}
}

// Another number of partitions is refused whatever the mapping says, also without the
// state that remembers the first one.
func TestOtherPartitions(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	dsn := pg.Database(t)
	r := newSmall(t, dsn, testenv.Kafka(t).Brokers(), topicsOf(dsn), 2)
	r.exec(`CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 40) i`)
	p := r.start()
	p.streaming()
	p.drained(time.Minute)
	p.stop()
	whole := r.told()
	r.admin(func(ctx context.Context, client *kadm.Client) error {
		_, err := client.CreatePartitions(ctx, 1, r.topics[:]...)
		return err
	})
	check := func(when string, says string) {
		t.Helper()
		code, _, errs := r.command("run")
		if code != 3 || !strings.Contains(errs, says) {
			t.Errorf("%s: exit code %d, want 3 and %q in\n%s", when, code, says, tail(errs, 2000))
		}
		if strings.Contains(errs, "set topics.partitions") {
			t.Errorf("%s: the other number is recommended:\n%s", when, tail(errs, 2000))
		}
	}
	check("mapping as it was", "it has 3 partitions")
	r.point(r.slot(), 3)
	check("mapping changed too", "written with 2 partitions, and now there are 3")
	r.loseState()
	check("state lost", "had another number of partitions when it was written")
	if got := r.told(); !slices.Equal(got, whole) {
		t.Errorf("%d events, want %d", len(got), len(whole))
	}
}
