package e2e_test

import (
	"testing"

	"backstory/internal/testenv"
)

// An array is one in JSON whatever the catalog has lost by now.
func TestArraysOfDroppedTypes(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	const row = `INSERT INTO t VALUES (1, '{sad,ok}', 0)`
	change := []string{`UPDATE t SET tags = '{ok,happy}' WHERE id = 1`, `INSERT INTO t VALUES (2, '{happy}', 0)`}
	history := []string{
		`1 v2 TUpdated {"old":{"tags":["sad","ok"]},"new":{"tags":["ok","happy"]},"reason":null}`,
		`2 v1 TCreated {"old":{},"new":{"id":2,"tags":["happy"],"n":0},"reason":null}`,
		`3 v1 TCreated {"old":{},"new":{"id":3,"tags":["x"],"n":0},"reason":null}`,
	}
	latest := map[string]string{"1": `{"id":1,"tags":["ok","happy"],"n":0}`, "2": `{"id":2,"tags":["happy"],"n":0}`, "3": `{"id":3,"tags":["x"],"n":0}`}
	for _, tt := range []struct{ name, types, table, drop string }{
		{"enum", `CREATE TYPE mood AS ENUM ('sad','ok','happy')`, `mood[]`, `DROP TYPE mood`},
		{"domain over text", `CREATE DOMAIN mood AS text`, `mood[]`, `DROP DOMAIN mood`},
		{"domain over an array of an enum", `CREATE TYPE mood AS ENUM ('sad','ok','happy'); CREATE DOMAIN moods AS mood[]`, `moods`, `DROP DOMAIN moods; DROP TYPE mood`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShaped(t, pg, "", tt.types, `CREATE TABLE t (id int PRIMARY KEY, tags `+tt.table+`, n int)`, row)
			s.away(append(change, `ALTER TABLE t ALTER tags TYPE text[] USING tags::text[]`, tt.drop, `INSERT INTO t VALUES (3, '{x}', 0)`)...)
			s.wants(history, latest)
		})
	}
	t.Run("enum, killed in the middle", func(t *testing.T) {
		t.Parallel()
		s := newShaped(t, pg, "", `CREATE TYPE mood AS ENUM ('sad','ok','happy')`, `CREATE TABLE t (id int PRIMARY KEY, tags mood[], n int)`, row)
		s.stopped(append(change, `ALTER TABLE t ALTER tags TYPE text[] USING tags::text[]`, `DROP TYPE mood`, `INSERT INTO t VALUES (3, '{x}', 0)`)...)
		s.program = failing(t)
		s.diesAt("events-published")
		s.diesAt("state-committed:2")
		s.restarts()
		s.wants(history, latest)
	})
	t.Run("of a type that was never seen", func(t *testing.T) {
		t.Parallel()
		s := newShaped(t, pg, "", `CREATE TABLE t (id int PRIMARY KEY, tags text[], n int)`, row)
		s.stopped(`CREATE TYPE mood AS ENUM ('sad','ok','happy'); ALTER TABLE t ALTER tags TYPE mood[] USING tags::mood[]`,
			change[0], change[1], `ALTER TABLE t ALTER tags TYPE text[] USING tags::text[]`, `DROP TYPE mood`)
		s.start()
		s.ends(3, "_mood", "tags", "backfill --reconcile")
		s.succeeds("backfill", "--reconcile")
		s.restarts()
		s.wants(nil, map[string]string{"1": latest["1"], "2": latest["2"]})
	})
	t.Run("of a column that is left out", func(t *testing.T) {
		t.Parallel()
		s := newShaped(t, pg, "    omit: [tags]\n", `CREATE TABLE t (id int PRIMARY KEY, tags text[], n int)`, row)
		s.away(`CREATE TYPE mood AS ENUM ('sad','ok','happy'); ALTER TABLE t ALTER tags TYPE mood[] USING tags::mood[]`,
			change[1], `ALTER TABLE t ALTER tags TYPE text[] USING tags::text[]`, `DROP TYPE mood`)
		s.wants([]string{`2 v1 TCreated {"old":{},"new":{"id":2,"n":0},"reason":null}`}, map[string]string{"1": `{"id":1,"n":0}`, "2": `{"id":2,"n":0}`})
	})
}

// Elements that are arrays themselves are arrays in JSON, at any depth, from the stream
// and from the reader alike.
func TestArraysInArrays(t *testing.T) {
	t.Parallel()
	s := newShaped(t, testenv.Postgres(t), "", `CREATE DOMAIN ints AS int[]; CREATE DOMAIN ints2 AS ints; CREATE DOMAIN rows AS ints2[];
		CREATE DOMAIN words AS text[]; CREATE DOMAIN money2 AS numeric(10,2); CREATE DOMAIN prices AS money2[]; CREATE DOMAIN boxes AS box[]`,
		`CREATE TABLE t (id int PRIMARY KEY, d1 ints, d2 ints[], d3 ints2[], d4 rows[], w words[], p prices[], b boxes[])`,
		`INSERT INTO t VALUES (1, '{1,2,NULL}', '{"{1,2}","{}",NULL}', '{"{7}"}',
			ARRAY[ARRAY['{1}','{2,3}']::rows, '{}'::rows], ARRAY[ARRAY['a"b','c\d','NULL',NULL,'{}']::words], ARRAY[ARRAY[1,2.5]::prices], ARRAY['{(1,1),(0,0);(2,2),(0,0)}'::boxes])`)
	s.does(`INSERT INTO t SELECT 2, d1, d2, d3, d4, w, p, b FROM t`)
	const rest = `"d1":[1,2,null],"d2":[[1,2],[],null],"d3":[[7]],"d4":[[[1],[2,3]],[]],"w":[["a\"b","c\\d","NULL",null,"{}"]],"p":[["1.00","2.50"]],"b":[["(1,1),(0,0)","(2,2),(0,0)"]]}`
	s.wants([]string{`2 v1 TCreated {"old":{},"new":{"id":2,` + rest + `,"reason":null}`}, map[string]string{"1": `{"id":1,` + rest, "2": `{"id":2,` + rest})
}
