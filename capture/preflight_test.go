package capture_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"backstory/capture"
	"backstory/internal/testenv"
)

// refusal is a set-up that must be refused.
type refusal struct {
	name     string
	from, to int // major versions of the server; 0: any
	sql      []string
	table    capture.TableRef
	config   func(*capture.Config)
	want     []string // each is part of the error
	usage    bool     // the configuration is wrong, not the database
	// cures are statements that the findings name, to be run one after another:
	// each makes its finding go away, and after the last nothing is wrong. "…" is
	// for the operator to fill in, here with fill.
	cures []string
	fill  string
}

const products = `CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, price numeric, sku text)`

func keyRefusals() []refusal {
	return []refusal{
		{name: "no primary key", sql: []string{`CREATE TABLE p (id int)`}, table: table("p"),
			want: []string{"primary key: it has none"}, cures: []string{`ALTER TABLE "public"."p" ADD PRIMARY KEY (…)`}, fill: "id"},
		{name: "deferrable primary key", sql: []string{`CREATE TABLE p (id int PRIMARY KEY DEFERRABLE)`}, table: table("p"),
			want: []string{"it is deferrable"}, cures: []string{`ALTER TABLE "public"."p" REPLICA IDENTITY FULL`}},
		{name: "deferrable primary key beside another", table: table("p"),
			sql:  []string{`CREATE TABLE p (id int PRIMARY KEY DEFERRABLE)`, `CREATE UNIQUE INDEX i ON p (id)`},
			want: []string{"it is deferrable"}, cures: []string{`ALTER TABLE "public"."p" REPLICA IDENTITY USING INDEX "i"`}},
		{name: "identity nothing", sql: []string{products, `ALTER TABLE products REPLICA IDENTITY NOTHING`}, table: table("products"),
			want: []string{"it is NOTHING"}, cures: []string{`ALTER TABLE "public"."products" REPLICA IDENTITY DEFAULT`}},
		{name: "identity by an index that was dropped", table: table("p"),
			sql: []string{`CREATE TABLE p (id int PRIMARY KEY, a int NOT NULL)`, `CREATE UNIQUE INDEX i ON p (a)`,
				`ALTER TABLE p REPLICA IDENTITY USING INDEX i`, `DROP INDEX i`},
			want: []string{"it has none: once published, UPDATE and DELETE fail"}, cures: []string{`ALTER TABLE "public"."p" REPLICA IDENTITY USING INDEX "p_pkey"`}},
		{name: "key without unique index", sql: []string{products}, table: table("products", "sku"),
			want: []string{"no unique index over NOT NULL columns lies in (sku)"},
			cures: []string{`ALTER TABLE "public"."products" ALTER "sku" SET NOT NULL, ADD UNIQUE ("sku")`,
				`ALTER TABLE "public"."products" REPLICA IDENTITY USING INDEX "products_sku_key"`}},
		{name: "key outside the identity", sql: []string{products, `ALTER TABLE products ALTER sku SET NOT NULL, ADD CONSTRAINT s UNIQUE (sku)`},
			table: table("products", "sku"), want: []string{"a DELETE does not say which sku it met"},
			cures: []string{`ALTER TABLE "public"."products" REPLICA IDENTITY USING INDEX "s"`}},
		{name: "key by an index of another type", table: table("p", "name"),
			sql: []string{`CREATE EXTENSION citext; CREATE TABLE p (name citext NOT NULL)`, `CREATE UNIQUE INDEX i ON p (name text_ops)`,
				`ALTER TABLE p REPLICA IDENTITY USING INDEX i`},
			want: []string{"no unique index over NOT NULL columns lies in (name)"}, cures: []string{`ALTER TABLE "public"."p" ADD UNIQUE ("name")`}},
		{name: "key by an index of another collation", from: 12, table: table("p", "name"),
			sql: []string{`CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
				`CREATE TABLE p (name text COLLATE any_case NOT NULL)`, `CREATE UNIQUE INDEX i ON p (name COLLATE "C")`,
				`ALTER TABLE p REPLICA IDENTITY USING INDEX i`},
			want: []string{"no unique index over NOT NULL columns lies in (name)"}, cures: []string{`ALTER TABLE "public"."p" ADD UNIQUE ("name")`}},
		{name: "unknown key column", sql: []string{products}, table: table("products", "idd"), usage: true,
			want: []string{"there is no column idd; did you mean id?"}},
		{name: "omitted key", sql: []string{products},
			table: capture.TableRef{Schema: "public", Name: "products", Omit: []string{"id"}}, usage: true,
			want: []string{"column id is part of the key", "take it out of omit"}},
		{name: "unknown omitted column", sql: []string{products},
			table: capture.TableRef{Schema: "public", Name: "products", Omit: []string{"pric"}}, usage: true,
			want: []string{"omit: there is no column pric; did you mean price?"}},
	}
}

func generatedRefusals() []refusal {
	const generated = `CREATE TABLE g (id int PRIMARY KEY, a int NOT NULL DEFAULT 1, twice int NOT NULL GENERATED ALWAYS AS (a * 2) STORED)`
	return []refusal{
		{name: "generated primary key", from: 12, table: table("p"), usage: true,
			sql:  []string{`CREATE TABLE p (a int, id int PRIMARY KEY GENERATED ALWAYS AS (a + 1) STORED)`},
			want: []string{"column id is generated, and logical decoding leaves it out", "name other columns as key"}},
		{name: "generated key", from: 12, sql: []string{generated}, table: table("g", "twice"), usage: true,
			want: []string{"column twice is generated, and logical decoding leaves it out"}},
		{name: "identity full with generated columns", from: 18, sql: []string{generated, `ALTER TABLE g REPLICA IDENTITY FULL`}, table: table("g"),
			want:  []string{"it has generated columns, which are not published: UPDATE and DELETE fail"},
			cures: []string{`ALTER TABLE "public"."g" REPLICA IDENTITY USING INDEX "g_pkey"`}},
		{name: "identity with a generated column", from: 18, table: table("g", "a"),
			sql:   []string{generated, `CREATE UNIQUE INDEX i ON g (a, twice)`, `CREATE UNIQUE INDEX j ON g (a)`, `ALTER TABLE g REPLICA IDENTITY USING INDEX i`},
			want:  []string{"it has generated columns, which are not published: UPDATE and DELETE fail"},
			cures: []string{`ALTER TABLE "public"."g" REPLICA IDENTITY USING INDEX "j"`}},
		{name: "publication of generated columns", from: 18, table: table("g"),
			sql:  []string{generated, `CREATE PUBLICATION $db FOR TABLE g WITH (publish_generated_columns = stored)`},
			want: []string{"it publishes generated columns"}, cures: []string{`ALTER PUBLICATION "$db" SET (publish_generated_columns = none)`}},
		{name: "column list with a generated column", from: 18, table: table("g"),
			sql:   []string{generated, `CREATE PUBLICATION $db FOR TABLE g (id, a, twice)`},
			want:  []string{"its column list has twice, which is generated"},
			cures: []string{`BEGIN; ALTER PUBLICATION "$db" DROP TABLE "public"."g"; ALTER PUBLICATION "$db" ADD TABLE ONLY "public"."g"; COMMIT`}},
	}
}

func publicationRefusals() []refusal {
	const again = `BEGIN; ALTER PUBLICATION "$db" DROP TABLE "public"."products"; ALTER PUBLICATION "$db" ADD TABLE ONLY "public"."products"; COMMIT`
	onlyLook := func(c *capture.Config) { c.Create = false }
	return []refusal{
		{name: "may not create", sql: []string{products}, table: table("products"), config: onlyLook,
			want: []string{"there is none, and source.create is false"},
			cures: []string{`CREATE PUBLICATION "$db" FOR TABLE ONLY "public"."products" WITH (publish = 'insert, update, delete$truncate')`,
				`SELECT pg_create_logical_replication_slot('$db', 'pgoutput')`}},
		{name: "publication of some operations", table: table("products"),
			sql:  []string{products, `CREATE PUBLICATION $db FOR TABLE products WITH (publish = 'insert, delete')`},
			want: []string{"it does not publish update"}, cures: []string{`ALTER PUBLICATION "$db" SET (publish = 'insert, update, delete$truncate')`}},
		{name: "table not in publication", sql: []string{products, `CREATE PUBLICATION $db`}, table: table("products"), config: onlyLook,
			want:  []string{"$db does not have it"},
			cures: []string{`SELECT pg_create_logical_replication_slot('$db', 'pgoutput')`, `ALTER PUBLICATION "$db" ADD TABLE ONLY "public"."products"`}},
		{name: "row filter", from: 15, sql: []string{products, `CREATE PUBLICATION $db FOR TABLE products WHERE (id > 5)`}, table: table("products"),
			want: []string{"it has a row filter"}, cures: []string{again}},
		{name: "column list without identity", from: 15, sql: []string{products, `CREATE PUBLICATION $db FOR TABLE products (name, price, sku)`},
			table: table("products"), want: []string{"its column list lacks id of the replica identity: UPDATE and DELETE fail"}, cures: []string{again}},
		{name: "column list lacks a column", from: 15, sql: []string{products, `CREATE PUBLICATION $db FOR TABLE products (id, name, price)`},
			table: table("products"), want: []string{"its column list lacks sku"}, cures: []string{again}},
		{name: "column list with identity full", from: 15, sql: []string{products, `ALTER TABLE products REPLICA IDENTITY FULL`,
			`CREATE PUBLICATION $db FOR TABLE products (id, name, price, sku)`}, table: table("products"),
			want: []string{"with which UPDATE and DELETE of a table with REPLICA IDENTITY FULL fail"}, cures: []string{again}},
		{name: "column_list of an old server", to: 14, sql: []string{products}, table: table("products"), usage: true,
			config: func(c *capture.Config) { c.ColumnList = true }, want: []string{"column_list: needs Postgres 15", "set it to false"}},
		{name: "slot of another plugin", sql: []string{products, `SELECT pg_create_logical_replication_slot('$db', 'test_decoding')`}, table: table("products"),
			want: []string{"its output plugin is test_decoding"}, cures: []string{`SELECT pg_drop_replication_slot('$db')`}},
		{name: "physical slot", sql: []string{products, `SELECT pg_create_physical_replication_slot('$db')`}, table: table("products"),
			want: []string{"it is a physical slot"}, cures: []string{`SELECT pg_drop_replication_slot('$db')`}},
		{name: "slot with two_phase", from: 14, table: table("products"),
			sql:  []string{products, `CREATE PUBLICATION $db FOR TABLE products`, `SELECT pg_create_logical_replication_slot('$db', 'pgoutput', false, true)`},
			want: []string{"slot $db: its two_phase is true"}, cures: []string{`SELECT pg_drop_replication_slot('$db')`}},
		{name: "slot with two_phase, nothing to make", from: 14, table: table("products"), config: onlyLook,
			sql:  []string{products, `CREATE PUBLICATION $db FOR TABLE products`, `SELECT pg_create_logical_replication_slot('$db', 'pgoutput', false, true)`},
			want: []string{"slot $db: its two_phase is true", "backstory backfill --reconcile"}},
		{name: "failover of an old server", to: 16, sql: []string{products}, table: table("products"),
			config: func(c *capture.Config) { c.Failover = "on" },
			want:   []string{"slot $db, fail-over: source.failover is on, but slots are copied to standbys from Postgres 17 on", "set source.failover: auto"}},
	}
}

func kindRefusals() []refusal {
	const partitioned = `CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id)`
	const partition = `CREATE TABLE m1 PARTITION OF m FOR VALUES FROM (0) TO (9)`
	return []refusal{
		{name: "no table", sql: []string{products}, table: table("product"),
			want: []string{"table public.product: there is no such table", "did you mean public.products?"}},
		{name: "view", sql: []string{products, `CREATE VIEW v AS SELECT * FROM products`}, table: table("v"),
			want: []string{"table public.v: is a view", "map the table behind it"}},
		{name: "unlogged", sql: []string{`CREATE UNLOGGED TABLE u (id int PRIMARY KEY)`}, table: table("u"),
			want: []string{"is unlogged"}, cures: []string{`ALTER TABLE "public"."u" SET LOGGED`}},
		{name: "partitioned table of an old server", to: 12, sql: []string{`CREATE TABLE m (id int) PARTITION BY RANGE (id)`}, table: table("m"),
			want: []string{"a partitioned table cannot be published before Postgres 13", "map its partitions"}},
		{name: "partitions under their own names", from: 13, sql: []string{partitioned, partition, `CREATE PUBLICATION $db FOR TABLE m`}, table: table("m"),
			want:  []string{"changes come under the names of the partitions"},
			cures: []string{`ALTER PUBLICATION "$db" SET (publish_via_partition_root = true)`}},
		{name: "partition without identity", from: 13, sql: []string{partitioned, `CREATE TABLE "m 1" PARTITION OF m FOR VALUES FROM (0) TO (9)`,
			`ALTER TABLE "m 1" REPLICA IDENTITY NOTHING`}, table: table("m"),
			want:  []string{"partition public.m 1: its replica identity is NOTHING"},
			cures: []string{`ALTER TABLE "public"."m 1" REPLICA IDENTITY DEFAULT`}},
	}
}

// Each refusal says what is wrong, leaves nothing behind, and names statements
// after which the bridge starts and the application can still write.
func TestPreflightRefuses(t *testing.T) {
	t.Parallel()
	tests := slices.Concat(kindRefusals(), keyRefusals(), generatedRefusals(), publicationRefusals())
	for _, version := range []string{"10", "13", "15", "18", "19"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			pg := testenv.Postgres(t, testenv.PGVersion(version))
			major := major(t, version)
			for _, tt := range tests {
				if major >= tt.from && (tt.to == 0 || major <= tt.to) {
					t.Run(tt.name, func(t *testing.T) { tt.check(t, pg, major) })
				}
			}
		})
	}
}

func (r *refusal) check(t *testing.T, pg *testenv.PG, major int) {
	l := newLegacy(t, pg, r.sql...)
	cfg := l.config()
	if r.config != nil {
		r.config(&cfg)
	}
	db := l.open(t, cfg, r.table)
	before := strings.Join(l.leftovers(t), ", ")
	_, err := db.Prepare(t.Context())
	if err == nil {
		t.Fatal("Prepare: got nil, want a refusal")
	}
	for _, want := range r.want {
		if want = l.expand(want); !strings.Contains(err.Error(), want) {
			t.Errorf("Prepare: got %q, want it to say %q", err, want)
		}
	}
	var refused interface{ Refused() bool }
	var usage interface{ Usage() bool }
	if errors.As(err, &usage) != r.usage || errors.As(err, &refused) == r.usage {
		t.Errorf("kind of error: got usage %v, refusal %v, want usage %v", errors.As(err, &usage), errors.As(err, &refused), r.usage)
	}
	if after := strings.Join(l.leftovers(t), ", "); after != before {
		t.Errorf("left behind: got %q, want %q", after, before)
	}
	if len(r.cures) == 0 {
		return
	}
	truncate := ", truncate"
	if major < 11 {
		truncate = ""
	}
	for _, cure := range r.cures {
		l.cure(t, db, strings.ReplaceAll(l.expand(cure), "$truncate", truncate), r.fill)
	}
	prepare(t, db)
	l.exec(t, "DELETE FROM "+r.table.Name) // refused by the server, rows or not, where the identity is no good
	l.exec(t, `SELECT pg_drop_replication_slot('$db')`)
}

// cure runs a statement that an error of the doctor must name, after which it
// must no longer be found.
func (l *legacy) cure(t *testing.T, db *capture.Database, statement, fill string) {
	t.Helper()
	before := doctor(t, db)
	i := slices.IndexFunc(before.Findings, func(f capture.Finding) bool {
		return f.Level == capture.LevelError && strings.Contains(f.Cure, statement)
	})
	if i < 0 {
		t.Fatalf("no error has the cure %s: %s", statement, findings(before, capture.LevelError))
	}
	l.exec(t, strings.ReplaceAll(statement, "…", fill))
	after, was := doctor(t, db), before.Findings[i]
	if slices.ContainsFunc(after.Findings, func(f capture.Finding) bool { return f.Check == was.Check && f.Found == was.Found }) {
		t.Errorf("after the cure %s: still %s: %s", statement, was.Check, was.Found)
	}
}

// doctor runs the checks; whatever is not well must have thing, problem and cure.
func doctor(t *testing.T, db *capture.Database) capture.Report {
	t.Helper()
	report, err := db.Doctor(t.Context())
	if err != nil {
		t.Fatalf("Doctor: %v", err)
	}
	for _, f := range report.Findings {
		if f.Level != capture.LevelOK && (f.Check == "" || f.Found == "" || f.Cure == "") {
			t.Errorf("finding %+v: want thing, problem and cure", f)
		}
	}
	return report
}

func TestPreflightReportsAllProblems(t *testing.T) {
	t.Parallel()
	l := newLegacy(t, testenv.Postgres(t), `CREATE TABLE a (id int)`, `CREATE UNLOGGED TABLE b (id int PRIMARY KEY)`)
	_, err := l.open(t, l.config(), table("a"), table("b"), table("c")).Prepare(t.Context())
	for _, want := range []string{"table public.a, primary key", "table public.b: is unlogged", "table public.c: there is no"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Prepare: got %v, want it to say %q", err, want)
		}
	}
}

func TestPreflightRights(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	role := newRole(t, pg)
	l := newLegacy(t, pg, `CREATE TABLE products (id int PRIMARY KEY)`)
	l.role = role
	cfg := l.config()
	cfg.DSN = l.as(t, role)
	errorsNow := func() string {
		t.Helper()
		report, err := l.open(t, cfg, table("products")).Doctor(t.Context())
		if err != nil {
			t.Fatalf("Doctor: %v", err)
		}
		return findings(report, capture.LevelError)
	}
	steps := []struct{ want, cure string }{
		{"may not create a publication", "GRANT CREATE ON DATABASE $db TO $role"},
		{`ALTER ROLE "$role" REPLICATION`, "ALTER ROLE $role REPLICATION"},
		{"may not read it", "GRANT SELECT ON products TO $role"},
		{"only its owner", "ALTER TABLE products OWNER TO $role"},
	}
	for _, step := range steps {
		if got, want := errorsNow(), l.expand(step.want); !strings.Contains(got, want) {
			t.Errorf("errors: got %s, want %q", got, want)
		}
		l.exec(t, step.cure)
		if got, want := errorsNow(), l.expand(step.want); strings.Contains(got, want) {
			t.Errorf("after the cure %s: got %s", step.cure, got)
		}
	}
	if got := errorsNow(); got != "" {
		t.Errorf("after all cures: got %s", got)
	}
	l.exec(t, `ALTER TABLE products OWNER TO postgres`, `GRANT SELECT ON products TO $role`,
		`CREATE PUBLICATION $db FOR TABLE products`, `ALTER TABLE products ENABLE ROW LEVEL SECURITY`)
	if got, want := errorsNow(), "its policies hide rows"; !strings.Contains(got, want) {
		t.Errorf("with row security: got %s, want %q", got, want)
	}
	l.exec(t, `ALTER TABLE products DISABLE ROW LEVEL SECURITY`)
	db := l.open(t, cfg, table("products"))
	if err := db.Recheck(t.Context()); err == nil {
		t.Error("Recheck before Prepare: got nil")
	}
	prepare(t, db)
	if err := db.Recheck(t.Context()); err != nil {
		t.Errorf("Recheck: %v", err)
	}
}

func TestPreflightWarnings(t *testing.T) {
	t.Parallel()
	l := newLegacy(t, testenv.Postgres(t), `CREATE TABLE products (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)`,
		`CREATE TABLE sub () INHERITS (products)`, `CREATE TABLE plain (id int)`, `ALTER TABLE products REPLICA IDENTITY FULL`,
		`CREATE PUBLICATION $db FOR ALL TABLES`)
	report, err := l.open(t, l.config(), table("products")).Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Worst() != capture.LevelWarning || report.Err() != nil {
		t.Errorf("worst: got %v, %v, want warning", report.Worst(), report.Err())
	}
	got := findings(report, capture.LevelWarning)
	for _, want := range []string{"it is FOR ALL TABLES", "rows of inheriting tables", "it is FULL", "max_slot_wal_keep_size: no limit"} {
		if !strings.Contains(got, want) {
			t.Errorf("warnings: got %s, want %q", got, want)
		}
	}
	if ok := findings(report, capture.LevelOK); !strings.Contains(ok, "generated columns: not captured: twice") {
		t.Errorf("ok: got %s, want the generated column", ok)
	}
	if left := l.leftovers(t); len(left) != 1 {
		t.Errorf("Doctor made something: %q", left)
	}
}

func TestPreflightSlot(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	t.Run("plugin", func(t *testing.T) {
		t.Parallel()
		l := newLegacy(t, pg, `CREATE TABLE p (id int PRIMARY KEY)`, `SELECT pg_create_logical_replication_slot('$db', 'test_decoding')`)
		refusedWith(t, l.open(t, l.config(), table("p")), "its output plugin is test_decoding")
	})
	t.Run("database", func(t *testing.T) {
		t.Parallel()
		other := newLegacy(t, pg, `SELECT pg_create_logical_replication_slot('$db', 'pgoutput')`)
		l := newLegacy(t, pg, `CREATE TABLE p (id int PRIMARY KEY)`)
		cfg := l.config()
		cfg.Slot = other.name
		refusedWith(t, l.open(t, cfg, table("p")), "it belongs to database "+other.name)
	})
	t.Run("physical", func(t *testing.T) {
		t.Parallel()
		l := newLegacy(t, pg, `CREATE TABLE p (id int PRIMARY KEY)`, `SELECT pg_create_physical_replication_slot('$db')`)
		refusedWith(t, l.open(t, l.config(), table("p")), "it is a physical slot")
		l.exec(t, `SELECT pg_drop_replication_slot('$db')`)
	})
	t.Run("none free", func(t *testing.T) {
		t.Parallel()
		l := newLegacy(t, testenv.Postgres(t, testenv.PGSetting("max_replication_slots", "0")), `CREATE TABLE p (id int PRIMARY KEY)`)
		refusedWith(t, l.open(t, l.config(), table("p")), "max_replication_slots: 0 of 0 are in use")
	})
	t.Run("none free for another of the process", func(t *testing.T) {
		t.Parallel()
		l := newLegacy(t, testenv.Postgres(t, testenv.PGSetting("max_replication_slots", "1")), `CREATE TABLE p (id int PRIMARY KEY)`)
		db := l.open(t, l.config(), table("p"))
		db.Among([]string{l.name + "_2"}, nil)
		refusedWith(t, db, "max_replication_slots: 0 of 1 are in use, and 2 are to be made")
	})
	t.Run("another of the process is there", func(t *testing.T) {
		t.Parallel()
		l := newLegacy(t, testenv.Postgres(t, testenv.PGSetting("max_replication_slots", "2")), `CREATE TABLE p (id int PRIMARY KEY)`,
			`SELECT pg_create_logical_replication_slot('$db_2', 'pgoutput')`)
		db := l.open(t, l.config(), table("p"))
		db.Among([]string{l.name + "_2"}, nil)
		if _, err := db.Prepare(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("left behind", func(t *testing.T) {
		t.Parallel()
		l := newLegacy(t, pg, `CREATE TABLE p (id int PRIMARY KEY)`, `SELECT pg_create_logical_replication_slot('$db_3', 'pgoutput')`,
			`SELECT pg_create_logical_replication_slot('$db_4', 'test_decoding')`)
		db := l.open(t, l.config(), table("p"))
		db.Among(nil, []string{l.name + "_2", l.name + "_3", l.name + "_4"})
		report, err := db.Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := findings(report, capture.LevelWarning)
		if !strings.Contains(got, "slot "+l.name+"_3: the mapping gives it no table") || strings.Contains(got, l.name+"_2") || strings.Contains(got, l.name+"_4") {
			t.Errorf("warnings: got %s, want one of slot %s_3 and none of _2 and _4", got, l.name)
		}
	})
	t.Run("wal_level", func(t *testing.T) {
		t.Parallel()
		l := newLegacy(t, testenv.Postgres(t, testenv.PGSetting("wal_level", "replica")), `CREATE TABLE p (id int PRIMARY KEY)`)
		refusedWith(t, l.open(t, l.config(), table("p")), "wal_level: replica; cure: ALTER SYSTEM SET wal_level = 'logical'")
	})
}

// refusedWith expects a refusal that leaves the database as it was.
func refusedWith(t *testing.T, db *capture.Database, want string) {
	t.Helper()
	_, err := db.Prepare(t.Context())
	var refusal *capture.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(err.Error(), want) {
		t.Errorf("Prepare: got %v, want a refusal that says %q", err, want)
	}
}
