package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"
)

// Migrator is the session of the legacy application's owner: it adds, drops,
// renames and retypes columns of the table under test, in transactions with and
// without row changes, some of which roll back.
type Migrator struct {
	Writer
	added []string // columns beside those of the schema
	made  int
}

// Run changes the schema until ctx ends, with a pause between two changes.
func (m *Migrator) Run(ctx context.Context) error {
	m.rng = rand.New(rand.NewPCG(m.Seed, 1<<32))
	var conn *pgx.Conn
	defer func() { closeQuietly(conn) }()
	for ; ctx.Err() == nil; pause(ctx, m.Pause) {
		if conn == nil || conn.IsClosed() {
			var err error
			if conn, err = pgx.Connect(ctx, m.DSN); err != nil {
				conn = nil
				continue
			}
		}
		if err := m.migrate(ctx, conn); err != nil && !passing(err) && ctx.Err() == nil {
			return fmt.Errorf("migrator: %w", err)
		}
	}
	return nil
}

var errUndo = errors.New("undo")

// migrate commits, or rolls back, one change of the schema. What stands is asked
// of the server, since the outcome of the last one may be unknown.
func (m *Migrator) migrate(ctx context.Context, conn *pgx.Conn) error {
	if m.Hold != nil {
		m.Hold.RLock()
		defer m.Hold.RUnlock()
	}
	m.n = 0
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '1s'`); err != nil {
			return err
		}
		if err := m.look(ctx, tx); err != nil {
			return err
		}
		if err := m.touch(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, m.statement()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO audit (op, new, more) SELECT 'S', audit_text(p), audit_more(p) FROM products p`); err != nil {
			return err
		}
		if err := m.look(ctx, tx); err != nil {
			return err
		}
		if err := m.touch(ctx, tx); err != nil {
			return err
		}
		if m.rng.IntN(5) == 0 {
			return errUndo
		}
		return nil
	})
	if err == nil {
		m.Changes.Add(m.n)
	}
	if errors.Is(err, errUndo) {
		return nil
	}
	return err
}

// look reads which columns were added.
func (m *Migrator) look(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT attname::text FROM pg_attribute
		WHERE attrelid = 'products'::regclass AND attnum > 12 AND NOT attisdropped ORDER BY attnum`)
	if err != nil {
		return err
	}
	m.added, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return err
}

// touch changes rows, or does not; an added column among others.
func (m *Migrator) touch(ctx context.Context, tx pgx.Tx) error {
	for range m.rng.IntN(4) {
		if err := m.update(ctx, tx); err != nil {
			return err
		}
	}
	if len(m.added) == 0 || m.rng.IntN(2) == 0 {
		return nil
	}
	column := m.added[m.rng.IntN(len(m.added))]
	from := m.key()
	return m.exec(ctx, tx, fmt.Sprintf(`UPDATE products SET %s = DEFAULT WHERE id BETWEEN $1 AND $1 + 20`, column), from)
}

// statement is the next change of the schema.
func (m *Migrator) statement() string {
	m.made++
	name := fmt.Sprintf("added_%d", m.made%6)
	if len(m.added) == 0 || len(m.added) < 4 && m.rng.IntN(2) == 0 {
		definitions := []string{"int", "int DEFAULT 7", "text DEFAULT 'a \"b\"'", "boolean DEFAULT true", `jsonb DEFAULT '{"a": [1]}'`, "bigint DEFAULT 5"}
		return fmt.Sprintf(`ALTER TABLE products ADD COLUMN IF NOT EXISTS %s %s`, name, definitions[m.rng.IntN(len(definitions))])
	}
	column := m.added[m.rng.IntN(len(m.added))]
	switch m.rng.IntN(3) {
	case 0:
		return fmt.Sprintf(`ALTER TABLE products ALTER COLUMN %[1]s DROP DEFAULT, ALTER COLUMN %[1]s TYPE text USING %[1]s::text`, column)
	case 1:
		m.made += 6
		return fmt.Sprintf(`ALTER TABLE products RENAME COLUMN %s TO renamed_%d`, column, m.made)
	}
	return fmt.Sprintf(`ALTER TABLE products DROP COLUMN %s`, column)
}
