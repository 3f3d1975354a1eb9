package testenv_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"backstory/internal/testenv"
)

func count(t *testing.T, dsn, sql string) int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var n int
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func TestPostgresDatabases(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	if other := testenv.Postgres(t); other != pg {
		t.Error("got two servers, want one that the tests share")
	}
	const mine = "SELECT count(*) FROM pg_replication_slots WHERE database LIKE 't0%' OR slot_name = 'testenv'"
	t.Run("leaves a session and a slot", func(t *testing.T) {
		dsn := pg.Database(t)
		pg.Exec(t, dsn, "CREATE TABLE t (id int)", "SELECT pg_create_logical_replication_slot('testenv', 'pgoutput')")
		if _, err := pgx.Connect(t.Context(), dsn); err != nil { // left open
			t.Fatal(err)
		}
		if got := count(t, dsn, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'testenv' AND database = current_database()"); got != 1 {
			t.Errorf("got %d slots, want 1", got)
		}
	})
	if got := count(t, pg.DSN("postgres"), mine); got != 0 {
		t.Errorf("got %d slots after the test, want 0", got)
	}
	if got := count(t, pg.Database(t), "SELECT count(*) FROM pg_class WHERE relname = 't'"); got != 0 {
		t.Errorf("got %d tables of another test, want 0", got)
	}
}

func TestPostgresFresh(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t, testenv.Durable(), testenv.PGSetting("max_slot_wal_keep_size", "64MB"))
	dsn := pg.Database(t)
	pg.Exec(t, dsn, "CREATE TABLE t AS SELECT generate_series(1, 3)")
	pg.Kill9(t)
	if conn, err := pgx.Connect(t.Context(), dsn); err == nil {
		t.Errorf("a killed server answers: %v", conn.Close(t.Context()))
	}
	pg.Restart(t)
	if got := count(t, dsn, "SELECT count(*) FROM t"); got != 3 {
		t.Errorf("got %d rows after the crash, want 3", got)
	}
	if got := count(t, dsn, "SELECT setting::int FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"); got != 64 {
		t.Errorf("got max_slot_wal_keep_size %d MB, want 64", got)
	}
	pg.Stop(t)
}
