package audit

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A gap is a time of which the stream tells nothing, since its slot was lost: the
// audit notes no changes then, and at its end one difference for each key.

const beginGap = `
ALTER TABLE products DISABLE TRIGGER USER;
CREATE TABLE audit_gap AS SELECT id, audit_text(p) AS row FROM products p;
ALTER TABLE audit_gap ADD PRIMARY KEY (id);
`

const endGap = `
INSERT INTO audit (op, old, new, more)
  SELECT 'R', b.row, a.row, a.more FROM audit_gap b FULL JOIN (SELECT id, audit_text(p) AS row, audit_more(p) AS more FROM products p) a USING (id)
  WHERE b.row IS DISTINCT FROM a.row ORDER BY id;
DROP TABLE audit_gap;
ALTER TABLE products ENABLE TRIGGER USER;
`

// BeginGap begins a gap. Nobody may write meanwhile.
func BeginGap(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, beginGap); err != nil {
		return fmt.Errorf("begin a gap: %w", err)
	}
	return nil
}

// EndGap ends it and returns by how many events the table differs from what it
// was. Nobody may write meanwhile.
func EndGap(ctx context.Context, conn *pgx.Conn) (events int, err error) {
	var since int64
	if err := conn.QueryRow(ctx, `SELECT coalesce(max(seq), 0) FROM audit`).Scan(&since); err != nil {
		return 0, fmt.Errorf("end a gap: %w", err)
	}
	if _, err := conn.Exec(ctx, endGap); err != nil {
		return 0, fmt.Errorf("end a gap: %w", err)
	}
	rows, err := conn.Query(ctx, `SELECT old, new FROM audit WHERE seq > $1`, since)
	if err != nil {
		return 0, fmt.Errorf("end a gap: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var s Step
		if err := rows.Scan((*[]*string)(&s.Old), (*[]*string)(&s.New)); err != nil {
			return 0, fmt.Errorf("end a gap: %w", err)
		}
		known := image{}
		if s.Old != nil {
			known = s.Old.image()
		}
		events += len(s.events(known))
	}
	return events, rows.Err()
}
