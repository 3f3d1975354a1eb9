package capture_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"backstory/capture"
	"backstory/internal/testenv"
)

// Prepared transactions are those of their COMMIT PREPARED on a slot of ours. A slot
// with two_phase sends them before: it is refused at the first sight, and should a
// stream have begun, at the first message.
func TestPreparedTransactions(t *testing.T) {
	t.Parallel()
	prepared := []string{
		`INSERT INTO products VALUES (1, 'a'), (2, 'b')`,
		`BEGIN; UPDATE products SET name = 'c' WHERE id = 1; PREPARE TRANSACTION 'q1'`,
		`UPDATE products SET name = 'd' WHERE id = 2`,
		`BEGIN; DELETE FROM products WHERE id = 2; ROLLBACK`,
	}
	ends := []string{"", `COMMIT PREPARED 'q1'`, `ROLLBACK PREPARED 'q1'`}
	const cure = "SELECT pg_drop_replication_slot("
	for _, version := range []string{"15", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			pg := testenv.Postgres(t, testenv.PGVersion(version), testenv.PGSetting("max_prepared_transactions", "10"))
			for _, end := range ends {
				t.Run("with two_phase, "+end, func(t *testing.T) {
					s := newShop(t, pg)
					s.exec(t, `SELECT pg_drop_replication_slot('`+s.slot+`')`,
						`SELECT pg_create_logical_replication_slot('`+s.slot+`', 'pgoutput', false, true)`)
					s.prepared(t, append(prepared, end)...)
					db := s.database(t, quiet)
					_, err := db.Prepare(t.Context())
					refusedFor(t, err, "its two_phase is true", cure)
					stream := openStream(t, db, 0)
					for err = nil; err == nil; {
						_, err = stream.Next(bounded(t))
					}
					refusedFor(t, err, "its two_phase is true", cure)
				})
				t.Run("without, "+end, func(t *testing.T) {
					s := newShop(t, pg)
					db := s.database(t, quiet)
					prepare(t, db)
					s.prepared(t, append(prepared, end)...)
					want := []string{
						`1 insert public.products new id="1" name="a" price=null image=null`,
						`2 insert public.products new id="2" name="b" price=null image=null`,
						`1 update public.products new id="2" name="d" price=null image=null`,
					}
					if strings.HasPrefix(end, "COMMIT") {
						want = append(want, `1 update public.products new id="1" name="c" price=null image=null`)
					}
					s.exec(t, `INSERT INTO products VALUES (3, 'last')`)
					want = append(want, `1 insert public.products new id="3" name="last" price=null image=null`)
					changes, _ := collect(t, openStream(t, db, 0), len(want))
					if d := cmp.Diff(want, brief(changes)); d != "" {
						t.Error(d)
					}
				})
			}
			t.Run("switched on while nobody streams", func(t *testing.T) {
				if major(t, version) < 18 {
					t.Skip("ALTER_REPLICATION_SLOT can do that from 18 on")
				}
				s := newShop(t, pg)
				db := s.database(t, quiet)
				prepare(t, db)
				s.command(t, `ALTER_REPLICATION_SLOT "`+s.slot+`" (TWO_PHASE true)`)
				refusedFor(t, db.Recheck(t.Context()), "its two_phase is true", cure)
				_, err := db.Prepare(t.Context())
				off := `ALTER_REPLICATION_SLOT "` + s.slot + `" (TWO_PHASE false)`
				refusedFor(t, err, "its two_phase is true", off)
				s.command(t, off)
				prepare(t, db)
			})
		})
	}
}

// prepared runs statements, and leaves nothing prepared behind.
func (s *shop) prepared(t *testing.T, sql ...string) {
	t.Helper()
	open := false
	for _, text := range sql {
		s.exec(t, text)
		open = (open || strings.Contains(text, "PREPARE TRANSACTION")) && !strings.Contains(text, " PREPARED")
	}
	if open {
		t.Cleanup(func() { // or the database cannot be dropped
			conn, err := pgconn.Connect(context.Background(), s.dsn)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(context.Background())
			if _, err := conn.Exec(context.Background(), `ROLLBACK PREPARED 'q1'`).ReadAll(); err != nil {
				t.Error(err)
			}
		})
	}
}

// command runs a command of replication sessions.
func (s *shop) command(t *testing.T, command string) {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), s.dsn+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), command).ReadAll(); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
}

// refusedFor expects a refusal with problem and cure.
func refusedFor(t *testing.T, err error, problem, cure string) {
	t.Helper()
	var refusal *capture.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(refusal.Problem, problem) || !strings.Contains(refusal.Cure, cure) {
		t.Errorf("got %v, want a refusal that says %q and the cure %q", err, problem, cure)
	}
}
