package pgserver_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"backstory/internal/pgserver"
)

// need skips a test on a machine that has no Postgres, unless it must have one.
func need(t *testing.T) {
	t.Helper()
	_, ok, err := pgserver.Installed(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if !ok && !strings.Contains(os.Getenv("BACKSTORY_TEST_REQUIRE"), "postgres") {
		t.Skip("needs Postgres: none is installed")
	}
}

func start(t *testing.T, o pgserver.Options) *pgserver.Server {
	t.Helper()
	need(t)
	s, err := pgserver.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ask runs a statement and returns its single value as text.
func ask(t *testing.T, s *pgserver.Server, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	last := rows[len(rows)-1]
	if len(last.Rows) == 0 {
		return ""
	}
	return string(last.Rows[0][0])
}

func TestServerDecodes(t *testing.T) {
	t.Parallel()
	s := start(t, pgserver.Options{Fast: true, Settings: map[string]string{"application_name": `it's a \ test`}})
	for setting, want := range map[string]string{
		"wal_level": "logical", "fsync": "off", "server_encoding": "UTF8", "lc_collate": "C", "timezone": "UTC",
		"application_name": `it's a \ test`,
	} {
		if setting == "lc_collate" {
			if got := ask(t, s, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'"); got != want {
				t.Errorf("collation: got %q, want %q", got, want)
			}
			continue
		}
		if got := ask(t, s, "SHOW "+setting); got != want {
			t.Errorf("%s: got %q, want %q", setting, got, want)
		}
	}
	if got := ask(t, s, "SELECT plugin FROM pg_create_logical_replication_slot('s', 'pgoutput'), pg_replication_slots"); got != "pgoutput" {
		t.Errorf("slot: got plugin %q, want pgoutput", got)
	}
}

func TestKill9AndRestart(t *testing.T) {
	t.Parallel()
	s := start(t, pgserver.Options{})
	ask(t, s, "CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
	addr, system, former := s.Addr(), ask(t, s, "SELECT system_identifier FROM pg_control_system()"), s.PID()
	if err := s.Kill9(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.PID(); got != 0 {
		t.Errorf("got pid %d of a killed server, want 0", got)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, s, "SELECT count(*) FROM t"); got != "1" {
		t.Errorf("got %s rows after the crash, want 1", got)
	}
	if got := ask(t, s, "SELECT system_identifier FROM pg_control_system()"); got != system || s.Addr() != addr || s.PID() == former {
		t.Errorf("got system %s at %s with pid %d, want %s at %s with another pid", got, s.Addr(), s.PID(), system, addr)
	}
	log, err := os.ReadFile(s.Log())
	if err != nil || !strings.Contains(string(log), "was not properly shut down") {
		t.Errorf("the log tells of no recovery: %v", err)
	}
}

func TestServersAreDifferentSystems(t *testing.T) {
	t.Parallel()
	const q = "SELECT system_identifier FROM pg_control_system()"
	a, b := start(t, pgserver.Options{Fast: true}), start(t, pgserver.Options{Fast: true})
	if x, y := ask(t, a, q), ask(t, b, q); x == y {
		t.Errorf("both clusters are system %s", x)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, pgserver.Options{Fast: true})
	dir := filepath.Dir(s.Log())
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

func TestNamedDirIsKept(t *testing.T) {
	t.Parallel()
	need(t)
	top, err := os.MkdirTemp("", "pgserver-test-") // t.TempDir is closed to the server's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "cluster")
	s := start(t, pgserver.Options{Dir: dir, Fast: true})
	ask(t, s, "CREATE TABLE t AS SELECT 42 AS answer")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = start(t, pgserver.Options{Dir: dir, Fast: true, Settings: map[string]string{"work_mem": "8MB"}})
	if got := ask(t, s, "SELECT answer FROM t"); got != "42" {
		t.Errorf("got %s, want 42", got)
	}
	if got := ask(t, s, "SHOW work_mem"); got != "8MB" {
		t.Errorf("got work_mem %s, want 8MB", got)
	}
}

func TestStartSaysWhyItFailed(t *testing.T) {
	t.Parallel()
	need(t)
	_, err := pgserver.Start(t.Context(), pgserver.Options{Fast: true, Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("got %v, want an error that names the setting", err)
	}
}
