package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// shaped is a bridge of one table t, whose shape the test changes.
type shaped struct {
	*rig
	p *process
}

// newShaped makes the table and lets a bridge import it. The mapping is what stands
// under the table besides its aggregate T and its topics.
func newShaped(t *testing.T, pg *testenv.PG, mapping string, init ...string) *shaped {
	t.Helper()
	r := &rig{tb: t, dsn: pg.Database(t), brokers: testenv.KFake(t).ListenAddrs(), dir: t.TempDir(), http: freeAddr(t)}
	prefix, _, _ := strings.Cut(filepath.Base(r.dsn), "?")
	r.topics = [2]string{prefix + ".events", prefix + ".latest"}
	r.configure()
	s := &shaped{rig: r}
	s.maps("t", mapping)
	for _, sql := range init {
		r.exec(sql)
	}
	s.start()
	s.p.drained(time.Minute)
	return s
}

// maps writes the mapping of a table.
func (s *shaped) maps(table, rest string) {
	s.tb.Helper()
	s.write("products.yaml", fmt.Sprintf("tables:\n  - table: %s\n    aggregate: T\n    topics: {events: %s, latest: %s, partitions: 1}\n%s",
		table, s.topics[0], s.topics[1], rest))
}

func (s *shaped) start() { s.p = s.rig.start() }

// does has the application do something and waits until it has arrived.
func (s *shaped) does(sql ...string) {
	s.tb.Helper()
	for _, statement := range sql {
		s.exec(statement)
	}
	s.p.drained(time.Minute)
}

// away has the application do something while the bridge is stopped, and starts it
// again.
func (s *shaped) away(sql ...string) {
	s.tb.Helper()
	s.stopped(sql...)
	s.start()
	s.p.drained(time.Minute)
}

// stopped has the application do something while the bridge is stopped.
func (s *shaped) stopped(sql ...string) {
	s.tb.Helper()
	s.p.stop()
	for _, statement := range sql {
		s.exec(statement)
	}
}

// ends waits for the bridge's end and wants its code and what it says.
func (s *shaped) ends(code int, says ...string) {
	s.tb.Helper()
	if got := s.p.wait(2 * time.Minute); got != code {
		s.tb.Errorf("exit code %d, want %d", got, code)
	}
	for _, text := range says {
		if !strings.Contains(s.p.said(), text) {
			s.tb.Errorf("the bridge does not say %q:\n%s", text, tail(s.p.said(), 3000))
		}
	}
}

// restarts starts the bridge again and waits until all has arrived.
func (s *shaped) restarts() {
	s.tb.Helper()
	s.start()
	s.p.drained(time.Minute)
}

// history is every event: key, version, type, cause, data. Events of the first
// import are left out.
func (s *shaped) history() []string {
	s.tb.Helper()
	records, _, err := audit.ReadTopic(s.tb.Context(), s.brokers, s.topics[0])
	if err != nil {
		s.tb.Fatal(err)
	}
	var out []string
	for _, record := range slices.DeleteFunc(records, barrier) {
		h := record.Headers
		if h["ce_type"] == "TImported.v1" && h["ce_cause"] == "" {
			continue
		}
		line := fmt.Sprintf("%s v%s %s %s", record.Key, h["ce_aggregateversion"], strings.TrimSuffix(h["ce_type"], ".v1"), record.Value)
		if h["ce_cause"] != "" {
			line += " " + h["ce_cause"]
		}
		out = append(out, line)
	}
	return out
}

// latest is the newest state of each key.
func (s *shaped) latest() map[string]string {
	s.tb.Helper()
	records, _, err := audit.ReadTopic(s.tb.Context(), s.brokers, s.topics[1])
	if err != nil {
		s.tb.Fatal(err)
	}
	out := map[string]string{}
	for _, record := range slices.DeleteFunc(records, barrier) {
		if out[record.Key] = string(record.Value); len(record.Value) == 0 {
			delete(out, record.Key)
		}
	}
	return out
}

// wants compares the history, in any order of keys, and the newest states.
func (s *shaped) wants(history []string, latest map[string]string) {
	s.tb.Helper()
	byKey := func(a, b string) int {
		a, _, _ = strings.Cut(a, " ")
		b, _, _ = strings.Cut(b, " ")
		return strings.Compare(a, b)
	}
	got := s.history()
	slices.SortStableFunc(got, byKey)
	if history != nil && !slices.EqualFunc(got, history, like) {
		s.tb.Errorf("events:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(history, "\n"))
	}
	now := s.latest()
	for key, want := range latest {
		if !like(now[key], want) {
			s.tb.Errorf("latest of %s: got %s, want %s", key, now[key], want)
		}
		delete(now, key)
	}
	if len(now) > 0 {
		s.tb.Errorf("latest has other keys: %v", now)
	}
	s.equal()
}

// like compares a text with a pattern, in which … stands for anything.
func like(got, pattern string) bool {
	parts := strings.Split(pattern, "…")
	if !strings.HasPrefix(got, parts[0]) {
		return false
	}
	got = got[len(parts[0]):]
	for i, part := range parts[1:] {
		if i == len(parts)-2 {
			return strings.HasSuffix(got, part)
		}
		at := strings.Index(got, part)
		if at < 0 {
			return false
		}
		got = got[at+len(part):]
	}
	return got == ""
}

// equal has verify compare table, events and newest states.
func (s *shaped) equal() {
	s.tb.Helper()
	if code, out, errs := s.command("verify"); code != 0 {
		s.tb.Errorf("verify: exit code %d\n%s\n%s", code, out, errs)
	}
}

const articles = `CREATE TABLE t (id int PRIMARY KEY, price numeric(10,2), body text);
	ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
	INSERT INTO t VALUES (1, 10, repeat('old-body ', 1000))`

const newBody = `ALTER TABLE t ADD COLUMN body_new text;
	ALTER TABLE t ALTER body_new SET STORAGE EXTERNAL;
	UPDATE t SET body_new = repeat('NEW-body ', 1000) WHERE id = 1`

// A large column that an update leaves out is filled from the state only if it is
// the very column that the state knows, in the form that it knows.
func TestLargeColumnOfAnotherShape(t *testing.T) {
	t.Parallel()
	swap := []string{`ALTER TABLE t DROP COLUMN body`, `ALTER TABLE t RENAME COLUMN body_new TO body`, `UPDATE t SET price = 11 WHERE id = 1`}
	renamed := map[string]string{"1": `{"id":1,"price":"11.00","body":"NEW-body …","body_new":null}`}
	pg := testenv.Postgres(t)
	tests := []struct {
		name string
		run  func(s *shaped)
		want map[string]string
	}{
		{"renamed in place", func(s *shaped) {
			s.does(newBody)
			s.does(swap...)
		}, renamed},
		{"renamed in place, all at once", func(s *shaped) {
			s.exec(newBody)
			s.does(swap...)
		}, renamed},
		{"renamed in place while the bridge is stopped", func(s *shaped) {
			s.does(newBody)
			s.away(swap...)
		}, renamed},
		{"renamed in place while the bridge is stopped and no row touched", func(s *shaped) {
			s.does(newBody)
			s.away(swap[:2]...)
			s.does(swap[2])
		}, renamed},
		{"names changed for a moment", func(s *shaped) {
			s.does(newBody)
			s.away(`ALTER TABLE t RENAME body TO b; ALTER TABLE t RENAME body_new TO body; ALTER TABLE t RENAME b TO body_new`,
				`UPDATE t SET price = 10.50 WHERE id = 1`,
				`ALTER TABLE t RENAME body TO b; ALTER TABLE t RENAME body_new TO body; ALTER TABLE t RENAME b TO body_new`,
				`UPDATE t SET price = 11 WHERE id = 1`)
		}, map[string]string{"1": `{"id":1,"price":"11.00","body":"old-body …","body_new":"NEW-body …"}`}},
		{"dropped and added with the same name and type", func(s *shaped) {
			s.does(`ALTER TABLE t DROP body; ALTER TABLE t ADD body text; ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
				UPDATE t SET body = repeat('NEW-body ', 1000)`, `UPDATE t SET price = 11 WHERE id = 1`)
		}, map[string]string{"1": `{"id":1,"price":"11.00","body":"NEW-body …"}`}},
		{"rewritten with the same type", func(s *shaped) {
			s.does(`ALTER TABLE t ALTER body TYPE text USING upper(body)`, `UPDATE t SET price = 11 WHERE id = 1`)
		}, map[string]string{"1": `{"id":1,"price":"11.00","body":"OLD-BODY …"}`}},
		{"the key is changed with it", func(s *shaped) {
			s.does(`ALTER TABLE t ALTER body TYPE text USING upper(body)`, `UPDATE t SET id = 2, price = 11 WHERE id = 1`)
		}, map[string]string{"2": `{"id":2,"price":"11.00","body":"OLD-BODY …"}`}},
		{"identity FULL, with a new column that has a default", func(s *shaped) {
			s.does(`ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t ADD n int DEFAULT 5; ALTER TABLE t ALTER body TYPE text USING upper(body)`,
				`UPDATE t SET price = 11 WHERE id = 1`)
			if strings.Contains(s.p.said(), "differ from the state") {
				s.tb.Error("a column that is younger than the image is taken for a missed change")
			}
		}, map[string]string{"1": `{"id":1,"price":"11.00","body":"OLD-BODY …","n":5}`}},
		{"emptied and filled again: as it was", func(s *shaped) {
			s.does(`TRUNCATE t; INSERT INTO t VALUES (1, 10, repeat('NEW-body ', 1000))`, `VACUUM FULL t`, `UPDATE t SET price = 11 WHERE id = 1`)
		}, map[string]string{"1": `{"id":1,"price":"11.00","body":"NEW-body …"}`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShaped(t, pg, "", articles)
			tt.run(s)
			s.wants(nil, tt.want)
		})
	}
}

// A partitioned table is one table: its identity is the root's, its storage that of the
// leaves.
func TestLargeColumnOfPartitions(t *testing.T) {
	t.Parallel()
	s := newShaped(t, testenv.Postgres(t), "", `CREATE TABLE t (id int PRIMARY KEY, price int, body text) PARTITION BY RANGE (id);
		CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (10); CREATE TABLE high PARTITION OF t FOR VALUES FROM (10) TO (20);
		ALTER TABLE t ALTER body SET STORAGE EXTERNAL; ALTER TABLE low ALTER body SET STORAGE EXTERNAL; ALTER TABLE high ALTER body SET STORAGE EXTERNAL;
		INSERT INTO t VALUES (1, 1, repeat('low ', 1000)), (11, 11, repeat('high ', 1000))`)
	s.does(`UPDATE t SET price = 2 WHERE id = 1`, `VACUUM FULL low`, `UPDATE t SET price = 12 WHERE id = 11`)
	if got := s.history(); len(got) != 2 {
		t.Errorf("events: got %q, want two updates", got)
	}
	s.does(`ALTER TABLE t ALTER body TYPE text USING upper(body)`, `UPDATE t SET price = 3 WHERE id = 1`, `UPDATE t SET price = 13 WHERE id = 11`, `DELETE FROM t WHERE id = 11`)
	s.wants(nil, map[string]string{"1": `{"id":1,"price":3,"body":"LOW …"}`})
}

// A type that changes the form of a large column shows at the row's next change.
func TestLargeColumnOfAnotherType(t *testing.T) {
	t.Parallel()
	s := newShaped(t, testenv.Postgres(t), "", `CREATE TABLE t (id int PRIMARY KEY, n int, payload text, note text);
		INSERT INTO t SELECT 1, 1, '{"b": 1, "a": "' || string_agg(md5(i::text),'') || '"}', string_agg(md5(i::text),'')
		FROM generate_series(1,400) i`)
	s.does(`ALTER TABLE t ALTER payload TYPE jsonb USING payload::jsonb`, `ALTER TABLE t ALTER note TYPE text USING upper(note)`,
		`UPDATE t SET n = 2 WHERE id = 1`)
	s.wants([]string{
		`1 v2 TUpdated {"old":{"n":1},"new":{"n":2},"reason":null}`,
		`1 v3 TUpdated {"old":{"payload":"…},"new":{"payload":{"a": "c4ca…", "b": 1},"note":"C4CA…"},"reason":null} reconciliation`,
	}, map[string]string{"1": `{"id":1,"n":2,"payload":{"a": "c4ca…", "b": 1},"note":"C4CA…"}`})
}

// read returns a file of the bridge with one text replaced.
func (s *shaped) read(name, old, now string) string {
	s.tb.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.tb.Fatal(err)
	}
	return strings.Replace(string(text), old, now, 1)
}
