package e2e_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"backstory/internal/testenv"
)

// noticed waits until status tells of changed columns.
func (s *shaped) noticed() {
	s.tb.Helper()
	testenv.Eventually(s.tb, time.Minute, func() error {
		if !strings.Contains(s.succeeds("status"), "columns") {
			return errors.New("status says nothing of columns")
		}
		return nil
	})
}

// Rows that nobody touched keep the columns of before, which is told and no
// difference; a comparison ends it.
func TestColumnsChangedIsTold(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	for _, tt := range []struct{ name, alter string }{
		{"a column with a default", `ALTER TABLE t ADD extra int DEFAULT 5`},
		{"a type", `ALTER TABLE t ALTER n TYPE text`},
		{"rewritten", `ALTER TABLE t ALTER s TYPE text USING upper(s)`},
		{"renamed", `ALTER TABLE t RENAME s TO sku`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShaped(t, pg, "", smallRows)
			s.exec(tt.alter)
			s.equal() // noticed or not
			s.noticed()
			if out := s.succeeds("doctor"); !strings.Contains(out, "rows that nobody has changed since") {
				t.Errorf("the doctor does not tell:\n%s", out)
			}
			if out := s.succeeds("verify"); !strings.Contains(out, "3 rows still have the columns of before") {
				t.Errorf("verify does not tell:\n%s", out)
			}
			s.does(`DELETE FROM t WHERE id = 3`)
			s.succeeds("backfill", "t")
			if out := s.succeeds("verify"); strings.Contains(out, "of before") {
				t.Errorf("after a comparison:\n%s", out)
			}
			if out := s.succeeds("status"); strings.Contains(out, "columns") {
				t.Errorf("after a comparison:\n%s", out)
			}
		})
	}
	t.Run("a true difference is one", func(t *testing.T) {
		t.Parallel()
		s := newShaped(t, pg, "", smallRows)
		s.exec(`ALTER TABLE t ADD extra int DEFAULT 5`)
		s.noticed()
		s.exec(`ALTER PUBLICATION backstory DROP TABLE t; UPDATE t SET n = 99 WHERE id = 2; ALTER PUBLICATION backstory ADD TABLE ONLY t`)
		if code, out, errs := s.command("verify"); code != 4 && code != 1 {
			t.Errorf("verify: exit code %d\n%s\n%s", code, out, errs)
		}
	})
}

// With on_schema_change: compare the table is compared by itself, with a cause of its own.
func TestColumnsChangedIsCompared(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	for _, running := range []bool{true, false} {
		name := "while the bridge is stopped"
		if running {
			name = "while the bridge runs"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShaped(t, pg, "", smallRows)
			s.stopped()
			s.write("backstory.yaml", s.read("backstory.yaml", "mapping:", "backfill: {on_schema_change: compare}\nmapping:"))
			const alter = `ALTER TABLE t ADD extra int DEFAULT 5`
			if running {
				s.restarts()
				s.exec(alter)
			} else {
				s.exec(alter)
				s.restarts()
			}
			testenv.Eventually(t, time.Minute, func() error {
				if len(s.history()) < 3 || strings.Contains(s.succeeds("status"), "columns") {
					return errors.New("not compared yet")
				}
				return nil // it is durable, also in latest
			})
			s.wants([]string{
				`1 v2 TUpdated {"old":{},"new":{"extra":5},"reason":null} schema-change`,
				`2 v2 TUpdated {"old":{},"new":{"extra":5},"reason":null} schema-change`,
				`3 v2 TUpdated {"old":{},"new":{"extra":5},"reason":null} schema-change`,
			}, map[string]string{"1": `{"id":1,"n":10,"s":"a","extra":5}`, "2": `{"id":2,"n":20,"s":"b","extra":5}`, "3": `{"id":3,"n":30,"s":"c","extra":5}`})
		})
	}
}
