package capture_test

import (
	"context"
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"backstory/capture"
	"backstory/internal/testenv"
)

// demandPasswords makes a private server ask a role for its password.
func demandPasswords(t *testing.T, l *legacy) {
	t.Helper()
	file := l.rows(t, `SHOW hba_file`)[0]
	rules, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ours := l.expand("host all $role 127.0.0.1/32 scram-sha-256\nhost replication $role 127.0.0.1/32 scram-sha-256\n")
	if err := os.WriteFile(file, append([]byte(ours), rules...), 0o600); err != nil {
		t.Fatal(err)
	}
	l.exec(t, `SELECT pg_reload_conf()`)
	testenv.Eventually(t, patience, func() error {
		conn, err := pgconn.Connect(context.Background(), l.with(t, "wrong"))
		if err == nil {
			_ = conn.Close(context.Background())
			return errors.New("the server does not ask for the password yet")
		}
		return nil
	})
}

// with is the role's DSN with a password.
func (l *legacy) with(t *testing.T, password string) string {
	t.Helper()
	u, err := url.Parse(l.dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(l.role, password)
	return u.String()
}

// The connection string is read again for each connection. A wrong password is a
// refusal at the start only: later it is tried again, until the right one is there.
func TestPasswordIsChangedWhileRunning(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t, testenv.Fresh())
	role := newRole(t, pg)
	l := newLegacy(t, pg, `CREATE TABLE p (id int PRIMARY KEY)`, `CREATE PUBLICATION $db FOR TABLE p`)
	l.role = role
	l.exec(t, `ALTER ROLE $role REPLICATION PASSWORD 'first-1'`, `GRANT SELECT ON p TO $role`)
	demandPasswords(t, l)

	cfg := l.config()
	var now string
	var broken error
	cfg.ReadDSN = func() (string, error) { return now, broken }
	cfg.DSN = l.with(t, "first-1")
	now = l.with(t, "wrong-0")
	_, err := l.open(t, cfg, table("p")).Prepare(t.Context())
	var refusal *capture.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(err.Error(), "password authentication failed") {
		t.Fatalf("at the start: got %v, want a refusal", err)
	}

	now = cfg.DSN
	db := l.open(t, cfg, table("p"))
	p := prepare(t, db)
	reader, err := db.OpenReader(t.Context(), p.Tables[0], capture.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	l.exec(t, `ALTER ROLE $role PASSWORD 'second-2'`, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '$role'`)

	const want = "password authentication failed"
	everything := func(t *testing.T, want string) {
		t.Helper()
		calls := map[string]func() error{
			"SlotStatus": func() error { _, err := db.SlotStatus(t.Context()); return err },
			"Doctor":     func() error { _, err := db.Doctor(t.Context()); return err },
			"Open":       func() error { _, err := db.Open(bounded(t), p.Slot.Confirmed); return err },
			"Chunk":      func() error { _, err := reader.Chunk(t.Context(), nil, 1); return err },
			"Prepare":    func() error { _, err := db.Prepare(t.Context()); return err },
		}
		for name, call := range calls {
			err := call()
			passing(t, name, err, want)
			for _, secret := range []string{"first-1", "second-2", "third-3"} {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("%s: %v has the password", name, err)
				}
			}
		}
	}
	t.Run("not changed yet", func(t *testing.T) { everything(t, want) })
	t.Run("half written", func(t *testing.T) {
		now = "postgres://third-3:x"
		everything(t, "read the connection string")
	})
	t.Run("away", func(t *testing.T) {
		broken = errors.New("source.dsn_file: it is away")
		everything(t, "source.dsn_file: it is away")
		broken = nil
	})
	t.Run("the role may not log in", func(t *testing.T) {
		now = l.with(t, "second-2")
		l.exec(t, `ALTER ROLE $role NOLOGIN`)
		everything(t, "is not permitted to log in")
		l.exec(t, `ALTER ROLE $role LOGIN`)
	})
	now = l.with(t, "second-2")
	p = prepare(t, db)
	openStream(t, db, p.Slot.Confirmed)
	if chunk, err := reader.Chunk(t.Context(), nil, 1); err != nil {
		t.Errorf("Chunk: %v", err)
	} else {
		chunk.Release()
	}
}
