package capture_test

import (
	"strings"
	"testing"

	"backstory/internal/testenv"
)

// A slot that is moved to the end of WAL sends what comes then and nothing of before,
// on servers that can move one and on those that can't; one in use stays.
func TestSkipToEnd(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"10", ""} {
		t.Run("version "+version, func(t *testing.T) {
			t.Parallel()
			var pg *testenv.PG
			if version == "" {
				pg = testenv.Postgres(t)
			} else {
				pg = testenv.Postgres(t, testenv.PGVersion(version))
			}
			s := newShop(t, pg)
			s.exec(t, "INSERT INTO products (id) VALUES (1)")
			db := s.database(t, quiet)
			if err := db.SkipToEnd(bounded(t)); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Prepare(bounded(t)); err != nil { // makes it again where it was dropped
				t.Fatal(err)
			}
			s.exec(t, "INSERT INTO products (id) VALUES (2)")
			stream := openStream(t, db, 0)
			changes, _ := collect(t, stream, 1)
			if len(changes) != 1 || !strings.Contains(changes[0], `id="2"`) {
				t.Errorf("got %q, want the second row alone", changes)
			}
			if err := db.SkipToEnd(bounded(t)); err == nil {
				t.Error("a slot that is streamed from was moved")
			}
		})
	}
}
