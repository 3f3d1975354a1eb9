package e2e_test

import (
	"strings"
	"testing"

	"backstory/internal/testenv"
)

const smallRows = `CREATE TABLE t (id int PRIMARY KEY, n int, s text); INSERT INTO t VALUES (1,10,'a'),(2,20,'b'),(3,30,'c')`

// What was published under a publication that was altered for a moment is no change
// of the table: the bridge stops before it, and the next start compares.
func TestPublicationAlteredForAMoment(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, version, identity, alter, change, back string
		want                                         map[string]string
	}{
		{"row filter", "", "FULL", `SET TABLE t WHERE (n < 100)`, `UPDATE t SET n = 111 WHERE id = 1`, `SET TABLE t`,
			map[string]string{"1": `{"id":1,"n":111,"s":"a"}`, "2": `{"id":2,"n":20,"s":"b"}`, "3": `{"id":3,"n":30,"s":"c"}`}},
		{"column list", "", "DEFAULT", `SET TABLE t (id, n)`, `UPDATE t SET n = 21 WHERE id = 2`, `SET TABLE t`,
			map[string]string{"1": `{"id":1,"n":10,"s":"a"}`, "2": `{"id":2,"n":21,"s":"b"}`, "3": `{"id":3,"n":30,"s":"c"}`}},
		{"generated columns", "18", "DEFAULT", `SET (publish_generated_columns = stored)`, `UPDATE t SET n = 21 WHERE id = 2`,
			`SET (publish_generated_columns = none)`,
			map[string]string{"1": `{"id":1,"n":10,"s":"a"}`, "2": `{"id":2,"n":21,"s":"b"}`, "3": `{"id":3,"n":30,"s":"c"}`}},
		{"some operations only", "", "DEFAULT", `SET (publish = 'insert, update, truncate')`, `DELETE FROM t WHERE id = 3; UPDATE t SET n = 21 WHERE id = 2`,
			`SET (publish = 'insert, update, delete, truncate')`,
			map[string]string{"1": `{"id":1,"n":10,"s":"a"}`, "2": `{"id":2,"n":21,"s":"b"}`}},
	}
	for _, tt := range tests {
		for _, how := range []string{"while the bridge runs", "while it is stopped", "while it is stopped, and it dies at the next start"} {
			if tt.version != "" && strings.Contains(how, "dies") {
				continue // the same everywhere
			}
			name := tt.name + " " + how
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				var opts []testenv.PGOption
				if tt.version != "" {
					opts = append(opts, testenv.PGVersion(tt.version))
				}
				sql := []string{smallRows, `ALTER TABLE t REPLICA IDENTITY ` + tt.identity}
				if tt.version == "18" {
					sql = append(sql, `ALTER TABLE t ADD twice int GENERATED ALWAYS AS (n * 2) STORED`)
				}
				s := newShaped(t, testenv.Postgres(t, opts...), "", sql...)
				statements := []string{`ALTER PUBLICATION backstory ` + tt.alter, tt.change, `ALTER PUBLICATION backstory ` + tt.back}
				switch how {
				case "while it is stopped":
					s.away(statements...)
				case "while it is stopped, and it dies at the next start":
					s.stopped(statements...)
					s.program = failing(t)
					for _, place := range []string{"chunk-read", "chunk-applied", "events-published", "state-committed:2"} {
						s.diesAt(place)
					}
					s.restarts()
				default:
					for _, sql := range statements {
						s.exec(sql)
					}
					s.ends(3, "publication backstory")
					if got := s.history(); len(got) > 0 {
						t.Errorf("published before the bridge looked: %q", got)
					}
					s.restarts()
				}
				s.wants(nil, tt.want)
				for _, event := range s.history() {
					if !like(event, "… reconciliation") && event != `2 v2 TUpdated {"old":{"n":20},"new":{"n":21},"reason":null}` {
						t.Errorf("an event that says what nobody did: %s", event)
					}
				}
			})
		}
	}
}

// A change whose old key is not in WAL is refused by name, and found by comparison.
func TestChangeWithoutItsKey(t *testing.T) {
	t.Parallel()
	const table = `CREATE TABLE t (id int PRIMARY KEY, sku text NOT NULL UNIQUE, price int); INSERT INTO t VALUES (1,'A',10),(2,'B',20),(3,'C',30)`
	pg := testenv.Postgres(t)
	tests := []struct {
		name, sql string
		history   []string
		latest    map[string]string
	}{
		{"delete under another index", `BEGIN; ALTER TABLE t REPLICA IDENTITY USING INDEX t_sku_key; DELETE FROM t WHERE id = 2;
				ALTER TABLE t REPLICA IDENTITY DEFAULT; COMMIT`,
			[]string{`2 v2 TDeleted {"old":{"id":2,"sku":"B","price":20},"new":{},"reason":null} reconciliation`,
				`3 v2 TUpdated {"old":{"price":30},"new":{"price":99},"reason":null}`},
			map[string]string{"1": `{"id":1,"sku":"A","price":10}`, "3": `{"id":3,"sku":"C","price":99}`}},
		{"key changed under another index", `BEGIN; ALTER TABLE t REPLICA IDENTITY USING INDEX t_sku_key; UPDATE t SET id = 7 WHERE id = 2;
				ALTER TABLE t REPLICA IDENTITY DEFAULT; COMMIT`,
			[]string{`2 v2 TDeleted {"old":{"id":2,"sku":"B","price":20},"new":{},"reason":null} reconciliation`,
				`3 v2 TUpdated {"old":{"price":30},"new":{"price":99},"reason":null}`,
				`7 v1 TImported {"old":{},"new":{"id":7,"sku":"B","price":20},"reason":null} reconciliation`},
			map[string]string{"1": `{"id":1,"sku":"A","price":10}`, "3": `{"id":3,"sku":"C","price":99}`, "7": `{"id":7,"sku":"B","price":20}`}},
		{"identity index changed itself", `BEGIN; ALTER TABLE t REPLICA IDENTITY USING INDEX t_sku_key; UPDATE t SET sku = 'X' WHERE id = 2;
				ALTER TABLE t REPLICA IDENTITY DEFAULT; COMMIT`,
			[]string{`2 v2 TUpdated {"old":{"sku":"B"},"new":{"sku":"X"},"reason":null} reconciliation`,
				`3 v2 TUpdated {"old":{"price":30},"new":{"price":99},"reason":null}`},
			map[string]string{"1": `{"id":1,"sku":"A","price":10}`, "2": `{"id":2,"sku":"X","price":20}`, "3": `{"id":3,"sku":"C","price":99}`}},
		{"primary key on another column for a moment", `BEGIN; ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (sku); DELETE FROM t WHERE id = 2;
				ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (id); COMMIT`,
			[]string{`2 v2 TDeleted {"old":{"id":2,"sku":"B","price":20},"new":{},"reason":null} reconciliation`,
				`3 v2 TUpdated {"old":{"price":30},"new":{"price":99},"reason":null}`},
			map[string]string{"1": `{"id":1,"sku":"A","price":10}`, "3": `{"id":3,"sku":"C","price":99}`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShaped(t, pg, "", table)
			s.exec(tt.sql)
			s.exec(`UPDATE t SET price = 99 WHERE id = 3`)
			s.ends(3, "table public.t", "the replica identity of that time", "backfill --reconcile")
			if code, _, errs := s.command("run"); code != 3 {
				t.Errorf("the next start: exit code %d, want 3\n%s", code, errs)
			}
			s.succeeds("backfill", "--reconcile")
			s.restarts()
			s.wants(tt.history, tt.latest)
		})
	}
	t.Run("delete under another index, and the repair dies", func(t *testing.T) {
		t.Parallel()
		s := newShaped(t, pg, "", table)
		s.exec(tests[0].sql)
		s.exec(`UPDATE t SET price = 99 WHERE id = 3`)
		s.ends(3, "backfill --reconcile")
		s.program, s.env = failing(t), []string{"BACKSTORY_TEST_FAILPOINT=chunk-applied"}
		if code, _, errs := s.command("backfill", "--reconcile"); code != -1 {
			t.Fatalf("exit code %d, want death\n%s", code, errs)
		}
		s.program, s.env = "", nil
		s.restarts() // and goes on with the repair
		s.wants(tests[0].history, tests[0].latest)
	})
	t.Run("an insert needs no identity", func(t *testing.T) {
		t.Parallel()
		s := newShaped(t, pg, "", table)
		s.does(`BEGIN; ALTER TABLE t REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (4,'D',40); ALTER TABLE t REPLICA IDENTITY DEFAULT; COMMIT`)
		s.wants([]string{`4 v1 TCreated {"old":{},"new":{"id":4,"sku":"D","price":40},"reason":null}`}, map[string]string{
			"1": `{"id":1,"sku":"A","price":10}`, "2": `{"id":2,"sku":"B","price":20}`, "3": `{"id":3,"sku":"C","price":30}`, "4": `{"id":4,"sku":"D","price":40}`})
	})
}

// A key whose columns are renamed is the key that it was.
func TestKeyColumnRenamed(t *testing.T) {
	t.Parallel()
	const table = `CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1,1),(2,2),(5,5)`
	const rename = `ALTER TABLE t RENAME id TO product_id`
	changes := []string{`UPDATE t SET n = 3 WHERE id = 1`, rename, `UPDATE t SET n = 4 WHERE product_id = 1`, `DELETE FROM t WHERE product_id = 2`}
	history := []string{
		`1 v2 TUpdated {"old":{"n":1},"new":{"n":3},"reason":null}`,
		`1 v3 TUpdated {"old":{"n":3,"id":1},"new":{"product_id":1,"n":4,"id":null},"reason":null}`,
		`2 v2 TDeleted {"old":{"id":2,"n":2},"new":{},"reason":null}`,
	}
	latest := map[string]string{"1": `{"id":null,"n":4,"product_id":1}`, "5": `{"id":5,"n":5}`}
	pg := testenv.Postgres(t)
	check := func(s *shaped) {
		s.tb.Helper()
		got := s.history()
		if len(got) != len(history) {
			s.tb.Errorf("events: got %q, want %q", got, history)
		}
		for i := range got {
			if i < len(history) && got[i] != history[i] {
				s.tb.Errorf("event %d: got %s, want %s", i, got[i], history[i])
			}
		}
		now := s.latest()
		for key := range latest {
			if now[key] != latest[key] {
				s.tb.Errorf("latest of %s: got %s, want %s", key, now[key], latest[key])
			}
		}
	}
	for _, tt := range []struct {
		name, mapping string
		run           func(s *shaped)
	}{
		{"while the bridge runs", "", func(s *shaped) { s.does(changes...) }},
		{"and restarted after it", "", func(s *shaped) {
			s.does(changes[:3]...)
			s.away(changes[3])
		}},
		{"while it is stopped", "", func(s *shaped) { s.away(changes...) }},
		{"with identity FULL", "", func(s *shaped) {
			s.does(`ALTER TABLE t REPLICA IDENTITY FULL`)
			s.away(changes...)
		}},
		{"that the mapping names, while the bridge runs", "    key: [id]\n", func(s *shaped) {
			for _, sql := range changes {
				s.exec(sql)
			}
			s.ends(2, "key: [product_id]")
			s.maps("t", "    key: [product_id]\n")
			s.restarts()
		}},
		{"that the mapping names, while it is stopped", "    key: [id]\n", func(s *shaped) {
			s.stopped(changes...)
			if code, _, errs := s.command("run"); code != 2 {
				s.tb.Errorf("exit code %d, want 2\n%s", code, errs)
			}
			s.maps("t", "    key: [product_id]\n")
			s.restarts()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShaped(t, pg, tt.mapping, table)
			tt.run(s)
			check(s)
		})
	}
	t.Run("a column of a composite key", func(t *testing.T) {
		t.Parallel()
		s := newShaped(t, pg, "    key: [b, a]\n", `CREATE TABLE t (a int, n int, b text, PRIMARY KEY (a, b)); INSERT INTO t VALUES (1,1,'x'),(2,2,'y')`)
		s.stopped(`UPDATE t SET n = 3 WHERE a = 1`, `ALTER TABLE t RENAME a TO c`, `UPDATE t SET n = 4 WHERE c = 1`, `DELETE FROM t WHERE c = 2`)
		s.maps("t", "    key: [b, c]\n")
		s.restarts()
		s.wants([]string{
			`x/1 v2 TUpdated {"old":{"n":1},"new":{"n":3},"reason":null}`,
			`x/1 v3 TUpdated {"old":{"n":3,"a":1},"new":{"c":1,"n":4,"a":null},"reason":null}`,
			`y/2 v2 TDeleted {"old":{"a":2,"n":2,"b":"y"},"new":{},"reason":null}`,
		}, map[string]string{"x/1": `{"a":null,"n":4,"b":"x","c":1}`})
	})
	t.Run("with the state lost", func(t *testing.T) {
		t.Parallel()
		s := newShaped(t, pg, "", table)
		s.stopped(changes...)
		s.write("backstory.yaml", s.read("backstory.yaml", "state: {dir: state}", "state: {dir: other}"))
		s.restarts()
		s.wants(nil, map[string]string{"1": `{"id":null,"n":4,"product_id":1}`, "5": `{"id":null,"n":5,"product_id":5}`})
	})
}

// A table or a schema that was renamed goes on under the mapping's new name.
func TestTableRenamed(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	for _, tt := range []struct{ name, rename, table string }{
		{"table", `ALTER TABLE t RENAME TO goods`, "goods"},
		{"schema", `CREATE SCHEMA shop; ALTER TABLE t SET SCHEMA shop`, "shop.t"},
		{"both, and the key", `CREATE SCHEMA shop; ALTER TABLE t SET SCHEMA shop; ALTER TABLE shop.t RENAME TO goods; ALTER TABLE shop.goods RENAME id TO nr`, "shop.goods"},
	} {
		for _, running := range []bool{true, false} {
			name := tt.name
			if running {
				name += " while the bridge runs"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := newShaped(t, pg, "", smallRows)
				after := []string{`UPDATE ` + tt.table + ` SET n = 12 WHERE s = 'a'`, `DELETE FROM ` + tt.table + ` WHERE s = 'b'`}
				if running {
					s.does(`UPDATE t SET n = 11 WHERE id = 1`)
					s.exec(tt.rename)
					s.exec(after[0])
					s.ends(3, "renamed")
					s.exec(after[1])
				} else {
					s.stopped(append([]string{`UPDATE t SET n = 11 WHERE id = 1`, tt.rename}, after...)...)
				}
				s.maps(tt.table, "")
				s.restarts()
				got := s.history()
				want := []string{`1 v2 TUpdated {"old":{"n":10},"new":{"n":11},"reason":null}`, `1 v3 TUpdated {"old":{"n":11…`, `2 v2 TDeleted …`}
				if len(got) != len(want) {
					t.Fatalf("events: got %q, want %q", got, want)
				}
				for i := range want {
					if !like(got[i], want[i]) {
						t.Errorf("event %d: got %s, want %s", i, got[i], want[i])
					}
				}
			})
		}
	}
}

// A key whose text may have changed is compared: never two aggregates of one row.
func TestKeyTypeChanged(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	const table = `CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1,1),(2,2)`
	for _, tt := range []struct {
		name, alter string
		latest      map[string]string
	}{
		{"to numeric", `ALTER TABLE t ALTER id TYPE numeric(10,2)`, map[string]string{"1.00": `{"id":"1.00","n":7}`, "2.00": `{"id":"2.00","n":2}`}},
		{"to text with other values", `ALTER TABLE t ALTER id TYPE text USING 'p' || id`, map[string]string{"p1": `{"id":"p1","n":7}`, "p2": `{"id":"p2","n":2}`}},
		{"to uuid", `ALTER TABLE t ALTER id TYPE uuid USING ('00000000-0000-0000-0000-00000000000' || id)::uuid`, map[string]string{
			"00000000-0000-0000-0000-000000000001": `{"id":"00000000-0000-0000-0000-000000000001","n":7}`,
			"00000000-0000-0000-0000-000000000002": `{"id":"00000000-0000-0000-0000-000000000002","n":2}`}},
		{"rewritten", `ALTER TABLE t ALTER id TYPE int USING id + 10`, map[string]string{"11": `{"id":11,"n":7}`, "12": `{"id":12,"n":2}`}},
		{"another column of the same name", `ALTER TABLE t DROP id; ALTER TABLE t ADD id serial PRIMARY KEY; UPDATE t SET id = id + 10`,
			map[string]string{"11": `{"n":7,"id":11}`, "12": `{"n":2,"id":12}`}},
	} {
		for _, running := range []bool{true, false} {
			name := tt.name
			if running {
				name += " while the bridge runs"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := newShaped(t, pg, "", table)
				if running {
					s.exec(tt.alter)
					s.exec(`UPDATE t SET n = 7 WHERE n = 1`)
					s.ends(3, "key", "backfill --reconcile")
				} else {
					s.stopped(tt.alter, `UPDATE t SET n = 7 WHERE n = 1`)
				}
				if code, _, errs := s.command("run"); code != 3 {
					t.Errorf("the next start: exit code %d, want 3\n%s", code, errs)
				}
				s.succeeds("backfill", "--reconcile")
				s.restarts()
				s.wants(nil, tt.latest)
			})
		}
	}
	t.Run("a type that prints alike", func(t *testing.T) {
		t.Parallel()
		s := newShaped(t, pg, "", table)
		s.does(`ALTER TABLE t ALTER id TYPE bigint`, `UPDATE t SET n = 7 WHERE id = 1`)
		s.wants([]string{`1 v2 TUpdated {"old":{"n":1},"new":{"n":7},"reason":null}`}, map[string]string{"1": `{"id":1,"n":7}`, "2": `{"id":2,"n":2}`})
	})
}
