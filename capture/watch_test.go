package capture_test

import (
	"errors"
	"strings"
	"testing"

	"backstory/capture"
	"backstory/internal/testenv"
)

// What makes the stream untrue is refused while it runs, and where the next start
// takes it, the table's lineage tells that there is a gap.
func TestWatch(t *testing.T) {
	t.Parallel()
	const setUp = `CREATE TABLE p (id int PRIMARY KEY, a int NOT NULL, b text)`
	tests := []struct {
		name string
		from int // major version
		sql  []string
		want string // in the refusal; empty: none
		gap  bool   // the next start goes on, with another lineage
	}{
		{name: "nothing", sql: []string{`INSERT INTO p VALUES (1, 1)`, `ALTER TABLE p ADD c int, DROP b`, `CREATE INDEX ON p (a)`, `VACUUM FULL p`, `TRUNCATE p`}},
		{name: "another table joins", sql: []string{`CREATE TABLE q (id int PRIMARY KEY)`, `ALTER PUBLICATION $db ADD TABLE q`}},
		{name: "publication dropped", sql: []string{`DROP PUBLICATION $db`}, want: "publication $db: it was dropped; changes", gap: true},
		{name: "publication made anew", sql: []string{`DROP PUBLICATION $db`, `CREATE PUBLICATION $db FOR TABLE p`}, want: "it was dropped and made anew", gap: true},
		{name: "operations off", sql: []string{`ALTER PUBLICATION $db SET (publish = 'insert')`}, want: "it no longer publishes update, delete"},
		{name: "operations off and on", sql: []string{`ALTER PUBLICATION $db SET (publish = 'insert')`, `ALTER PUBLICATION $db SET (publish = 'insert, update, delete, truncate')`},
			from: 11, want: "publication $db: it was altered", gap: true},
		{name: "table taken out", sql: []string{`ALTER PUBLICATION $db DROP TABLE p`}, want: "table public.p: it was taken out of publication $db", gap: true},
		{name: "table out and in", sql: []string{`ALTER PUBLICATION $db DROP TABLE p`, `ALTER PUBLICATION $db ADD TABLE p`}, want: "its entry in publication $db was changed", gap: true},
		{name: "column list", from: 15, sql: []string{`ALTER PUBLICATION $db SET TABLE p (id, a)`}, want: "its entry in publication $db was changed"},
		{name: "row filter and none", from: 15, sql: []string{`ALTER PUBLICATION $db SET TABLE p WHERE (id > 1)`, `ALTER PUBLICATION $db SET TABLE p`},
			want: "its entry in publication $db was changed", gap: true},
		{name: "table made anew", sql: []string{`DROP TABLE p`, setUp, `ALTER PUBLICATION $db ADD TABLE p`}, want: "it was dropped and made anew, or another one has its name", gap: true},
		{name: "table renamed", sql: []string{`ALTER TABLE p RENAME TO q`}, want: "table public.p: it was dropped or renamed"},
		{name: "identity lost", sql: []string{`ALTER TABLE p REPLICA IDENTITY NOTHING`}, want: "its replica identity no longer has the key"},
		{name: "primary key moved", sql: []string{`ALTER TABLE p DROP CONSTRAINT p_pkey, ADD PRIMARY KEY (a)`}, want: "", gap: false},
		{name: "slot dropped", sql: []string{`SELECT pg_drop_replication_slot('$db')`}, want: "slot $db: it was dropped"},
		{name: "slot of another plugin", sql: []string{`SELECT pg_drop_replication_slot('$db')`, `SELECT pg_create_logical_replication_slot('$db', 'test_decoding')`},
			want: "slot $db: it was replaced by another one"},
	}
	for _, version := range []string{"10", "15", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			pg := testenv.Postgres(t, testenv.PGVersion(version))
			for _, tt := range tests {
				if major(t, version) < tt.from {
					continue
				}
				t.Run(tt.name, func(t *testing.T) {
					l := newLegacy(t, pg, setUp)
					db := l.open(t, l.config(), table("p"))
					before := prepare(t, db).Tables[0].Lineage
					l.exec(t, tt.sql...)
					err := db.Recheck(t.Context())
					var refusal *capture.Refusal
					switch want := l.expand(tt.want); {
					case want == "" && err != nil:
						t.Fatalf("got %v, want nothing", err)
					case want != "" && (!errors.As(err, &refusal) || !strings.Contains(err.Error(), want) || refusal.Cure == ""):
						t.Fatalf("got %v, want a refusal with a cure that says %q", err, want)
					}
					if want := tt.gap; want || tt.want == "" {
						if after := prepare(t, db).Tables[0].Lineage; (after != before) != want {
							t.Errorf("lineage: got %q, then %q; want a difference: %t", before, after, want)
						}
					}
					l.exec(t, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '$db'`)
				})
			}
		})
	}
}
