package capture_test

import (
	"errors"
	"strings"
	"testing"

	"backstory/capture"
	"backstory/internal/testenv"
)

func TestPreflightRefuses(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	const products = `CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, price numeric, sku text)`
	tests := []struct {
		name   string
		sql    []string
		table  capture.TableRef
		config func(*capture.Config)
		want   []string // each is part of the error
		usage  bool
	}{
		{name: "no table", sql: []string{products}, table: table("product"),
			want: []string{"table public.product: there is no such table", "did you mean public.products?"}},
		{name: "view", sql: []string{products, `CREATE VIEW v AS SELECT * FROM products`}, table: table("v"),
			want: []string{"table public.v: is a view"}},
		{name: "unlogged", sql: []string{`CREATE UNLOGGED TABLE u (id int PRIMARY KEY)`}, table: table("u"),
			want: []string{"is unlogged", `ALTER TABLE "public"."u" SET LOGGED`}},
		{name: "no primary key", sql: []string{`CREATE TABLE p (id int)`}, table: table("p"),
			want: []string{"primary key: it has none", `ALTER TABLE "public"."p" ADD PRIMARY KEY`}},
		{name: "deferrable primary key", sql: []string{`CREATE TABLE p (id int PRIMARY KEY DEFERRABLE)`}, table: table("p"),
			want: []string{"it is deferrable"}},
		{name: "identity nothing", sql: []string{products, `ALTER TABLE products REPLICA IDENTITY NOTHING`}, table: table("products"),
			want: []string{"it is NOTHING", `REPLICA IDENTITY DEFAULT`}},
		{name: "key without unique index", sql: []string{products}, table: table("products", "sku"),
			want: []string{"no unique index over NOT NULL columns lies in (sku)"}},
		{name: "key outside the identity", sql: []string{products, `ALTER TABLE products ALTER sku SET NOT NULL, ADD CONSTRAINT s UNIQUE (sku)`},
			table: table("products", "sku"),
			want:  []string{"a DELETE does not say which sku it met", `REPLICA IDENTITY USING INDEX "s"`}},
		{name: "unknown key column", sql: []string{products}, table: table("products", "idd"), usage: true,
			want: []string{"there is no column idd; did you mean id?"}},
		{name: "unknown omitted column", sql: []string{products},
			table: capture.TableRef{Schema: "public", Name: "products", Omit: []string{"pric"}}, usage: true,
			want: []string{"omit: there is no column pric; did you mean price?"}},
		{name: "omitted key", sql: []string{products},
			table: capture.TableRef{Schema: "public", Name: "products", Omit: []string{"id"}}, usage: true,
			want: []string{"column id is part of the key"}},
		{name: "may not create", sql: []string{products}, table: table("products"),
			config: func(c *capture.Config) { c.Create = false },
			want:   []string{"there is none, and source.create is false", `CREATE PUBLICATION "$db" FOR TABLE ONLY "public"."products"`, "pg_create_logical_replication_slot"}},
		{name: "publication of inserts", sql: []string{products, `CREATE PUBLICATION $db FOR TABLE products WITH (publish = 'insert, delete')`},
			table: table("products"),
			want:  []string{"it does not publish update, truncate", `SET (publish = 'insert, update, delete, truncate')`}},
		{name: "table not in publication", sql: []string{products, `CREATE PUBLICATION $db`}, table: table("products"),
			config: func(c *capture.Config) { c.Create = false },
			want:   []string{"$db does not have it", `ALTER PUBLICATION "$db" ADD TABLE ONLY "public"."products"`}},
		{name: "row filter", sql: []string{products, `CREATE PUBLICATION $db FOR TABLE products WHERE (id > 5)`}, table: table("products"),
			want: []string{"it has a row filter"}},
		{name: "column list without identity", sql: []string{products, `CREATE PUBLICATION $db FOR TABLE products (name, price, sku)`},
			table: table("products"), want: []string{"its column list lacks id of the replica identity: UPDATE and DELETE fail"}},
		{name: "column list lacks a column", sql: []string{products, `CREATE PUBLICATION $db FOR TABLE products (id, name, price)`},
			table: table("products"), want: []string{"its column list lacks sku"}},
		{name: "column list with identity full", sql: []string{products, `ALTER TABLE products REPLICA IDENTITY FULL`,
			`CREATE PUBLICATION $db FOR TABLE products (id, name, price, sku)`},
			table: table("products"), want: []string{"with which UPDATE and DELETE of a table with REPLICA IDENTITY FULL fail"}},
		{name: "partitions under their own names", sql: []string{`CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id)`,
			`CREATE TABLE m1 PARTITION OF m FOR VALUES FROM (0) TO (9)`, `CREATE PUBLICATION $db FOR TABLE m`}, table: table("m"),
			want: []string{"changes come under the names of the partitions", "publish_via_partition_root = true"}},
		{name: "partition without identity", sql: []string{`CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id)`,
			`CREATE TABLE m1 PARTITION OF m FOR VALUES FROM (0) TO (9)`, `ALTER TABLE m1 REPLICA IDENTITY NOTHING`}, table: table("m"),
			want: []string{"partition public.m1: its replica identity is NOTHING"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLegacy(t, pg, tt.sql...)
			cfg := l.config()
			if tt.config != nil {
				tt.config(&cfg)
			}
			before := strings.Join(l.leftovers(t), ", ")
			_, err := l.open(t, cfg, tt.table).Prepare(t.Context())
			if err == nil {
				t.Fatal("Prepare: got nil, want a refusal")
			}
			for _, want := range tt.want {
				if want = strings.ReplaceAll(want, "$db", l.name); !strings.Contains(err.Error(), want) {
					t.Errorf("Prepare: got %q, want it to say %q", err, want)
				}
			}
			var refusal interface{ Refused() bool }
			var usage interface{ Usage() bool }
			if errors.As(err, &usage) != tt.usage || errors.As(err, &refusal) == tt.usage {
				t.Errorf("kind of error: got usage %v, refusal %v, want usage %v", errors.As(err, &usage), errors.As(err, &refusal), tt.usage)
			}
			if after := strings.Join(l.leftovers(t), ", "); after != before {
				t.Errorf("left behind: got %q, want %q", after, before)
			}
		})
	}
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
	doctor := func() string {
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
		if got, want := doctor(), l.expand(step.want); !strings.Contains(got, want) {
			t.Errorf("errors: got %s, want %q", got, want)
		}
		l.exec(t, step.cure)
		if got, want := doctor(), l.expand(step.want); strings.Contains(got, want) {
			t.Errorf("after the cure %s: got %s", step.cure, got)
		}
	}
	if got := doctor(); got != "" {
		t.Errorf("after all cures: got %s", got)
	}
	l.exec(t, `ALTER TABLE products OWNER TO postgres`, `GRANT SELECT ON products TO $role`,
		`CREATE PUBLICATION $db FOR TABLE products`, `ALTER TABLE products ENABLE ROW LEVEL SECURITY`)
	if got, want := doctor(), "its policies hide rows"; !strings.Contains(got, want) {
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
