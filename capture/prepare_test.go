package capture_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"backstory/capture"
	"backstory/internal/testenv"
)

// An instance that is frozen while it prepares holds its turn for as long as the
// server holds its session. One that has nothing to make must not wait for it.
func TestPrepareDoesNotWaitForAFrozenInstance(t *testing.T) {
	t.Parallel()
	l := newLegacy(t, testenv.Postgres(t), `CREATE TABLE p (id int PRIMARY KEY)`)
	db := l.open(t, l.config(), table("p"))
	freeze := func() *pgx.Conn {
		t.Helper()
		conn := l.session(t)
		if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock(hashtext('backstory'), hashtext($1))`, l.name); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	frozen := freeze()
	var lost *capture.ConnError
	if _, err := db.Prepare(t.Context()); !errors.As(err, &lost) {
		t.Fatalf("with a slot to make: got %v, want to wait for the turn in vain", err)
	}
	if err := frozen.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	prepare(t, db)
	freeze()
	begun := time.Now()
	prepare(t, db)
	if took := time.Since(begun); took > 4*time.Second {
		t.Errorf("with nothing to make it took %s", took)
	}
}
