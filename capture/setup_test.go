package capture_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"backstory/capture"
	"backstory/internal/testenv"
)

// legacy is a database of its own, with names for slot and publication that no
// other test uses. Nothing is in it.
type legacy struct {
	pg   *testenv.PG
	dsn  string
	name string // of database, slot and publication
	role string // of newRole, where a test needs one
}

// expand replaces $db by the database's name, which also is the publication's
// and the slot's, and $role.
func (l *legacy) expand(sql string) string {
	return strings.NewReplacer("$db", l.name, "$role", l.role).Replace(sql)
}

// newRole makes a role without any right. The database in which it gets some has
// to be made after it, and so is dropped before it.
func newRole(t *testing.T, pg *testenv.PG) string {
	t.Helper()
	role := fmt.Sprintf("r%016x", rand.Uint64())
	pg.Exec(t, pg.DSN("postgres"), "CREATE ROLE "+role+" LOGIN PASSWORD 'secret'")
	t.Cleanup(func() {
		ctx := context.Background()
		conn, err := pgx.Connect(ctx, pg.DSN("postgres"))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, "DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	return role
}

func newLegacy(t *testing.T, pg *testenv.PG, sql ...string) *legacy {
	t.Helper()
	return legacyAt(t, pg, pg.Database(t), sql...)
}

// legacyAt is newLegacy in a database that is there.
func legacyAt(t *testing.T, pg *testenv.PG, dsn string, sql ...string) *legacy {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l := &legacy{pg: pg, dsn: dsn, name: strings.TrimPrefix(u.Path, "/")}
	l.exec(t, sql...)
	return l
}

// exec expands and runs statements.
func (l *legacy) exec(t *testing.T, sql ...string) {
	t.Helper()
	for _, s := range sql {
		l.pg.Exec(t, l.dsn, l.expand(s))
	}
}

// rows queries text.
func (l *legacy) rows(t *testing.T, sql string) []string {
	t.Helper()
	conn := l.session(t)
	rows, err := conn.Query(t.Context(), l.expand(sql))
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

// session is a connection that the test's end closes.
func (l *legacy) session(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), l.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// as is the DSN with another user.
func (l *legacy) as(t *testing.T, user string) string {
	t.Helper()
	u, err := url.Parse(l.dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, "secret")
	return u.String()
}

// config is the default configuration for this database.
func (l *legacy) config() capture.Config {
	cfg := capture.DefaultConfig()
	cfg.DSN, cfg.Slot, cfg.Publication = l.dsn, l.name, l.name
	return cfg
}

func (l *legacy) open(t *testing.T, cfg capture.Config, tables ...capture.TableRef) *capture.Database {
	t.Helper()
	db, err := capture.NewDatabase(cfg, tables, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// table maps a table of schema public.
func table(name string, key ...string) capture.TableRef {
	return capture.TableRef{Schema: "public", Name: name, Key: key}
}

// leftovers lists what a refused start must not leave.
func (l *legacy) leftovers(t *testing.T) []string {
	t.Helper()
	return l.rows(t, `SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()
		UNION ALL SELECT 'publication ' || pubname FROM pg_publication`)
}

// prepare must succeed.
func prepare(t *testing.T, db *capture.Database) *capture.Prepared {
	t.Helper()
	p, err := db.Prepare(t.Context())
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	return p
}

// findings prints a report's findings of one level, one line each.
func findings(r capture.Report, level capture.Level) string {
	var b strings.Builder
	for _, f := range r.Findings {
		if f.Level == level {
			fmt.Fprintf(&b, "%s: %s; cure: %s\n", f.Check, f.Found, f.Cure)
		}
	}
	return b.String()
}

// major parses a major version.
func major(t *testing.T, version string) int {
	t.Helper()
	n, err := strconv.Atoi(version)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
