package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// schema makes the legacy table: rows of about 345 bytes as a COPY writes them,
// every fiftieth with a description of 12.8 kB, which is stored out of line, so
// that an update of the price leaves it out of WAL.
const schema = `
DROP TABLE IF EXISTS products;
CREATE TABLE products (
	id          bigint PRIMARY KEY,
	sku         text NOT NULL UNIQUE,
	name        text NOT NULL,
	description text,
	price       numeric(12,2) NOT NULL,
	currency    char(3) NOT NULL,
	stock       integer NOT NULL,
	attributes  jsonb NOT NULL,
	updated_at  timestamptz NOT NULL
);
INSERT INTO products
SELECT id, 'SKU-' || lpad(id::text, 9, '0'), 'Product ' || id || ' ' || left(md5(id::text), 12),
	CASE WHEN id %% 50 = 0
		THEN (SELECT string_agg(md5(id || '.' || part), '') FROM generate_series(1, 400) part)
		ELSE md5('a' || id) || ' ' || md5('b' || id) || ', in solid oak, oiled, to be assembled; tools and screws come with it, the instructions too.' END,
	10 + id * 37 %% 100000 / 100.0, (ARRAY['EUR', 'USD', 'GBP'])[1 + id %% 3], id %% 500,
	jsonb_build_object('color', (ARRAY['oak', 'walnut', 'black', 'white'])[1 + id %% 4], 'weight_g', id %% 5000,
		'tags', jsonb_build_array('t' || id %% 10, 'u' || id %% 20), 'ean', lpad(id::text, 13, '4')),
	now() - make_interval(secs => id)
FROM generate_series(1, %d) id;
VACUUM (ANALYZE, FREEZE) products;
CHECKPOINT`

// reprice updates n prices, so many to a transaction, in an order that meets
// every row once before it meets one again: 7919 is prime.
const reprice = `
CREATE OR REPLACE PROCEDURE reprice(n bigint, size bigint, span bigint, skip bigint) LANGUAGE plpgsql AS $$
BEGIN
	FOR offs IN 0 .. n - 1 BY size LOOP
		UPDATE products SET price = price + 0.01, updated_at = clock_timestamp()
		FROM generate_series(skip + offs, skip + least(offs + size, n) - 1) i
		WHERE id = 1 + i * 7919 % span;
		COMMIT;
	END LOOP;
END $$`

// products makes the table with so many rows.
func (l *lab) products(rows int) error {
	began := time.Now()
	conn, err := pgx.Connect(l.ctx(), l.pg.DSN(database))
	if err != nil {
		return err
	}
	defer conn.Close(l.ctx())
	for _, sql := range statements(fmt.Sprintf(schema, rows)) {
		if _, err := conn.Exec(l.ctx(), sql); err != nil {
			return fmt.Errorf("make the table: %.40s: %w", sql, err)
		}
	}
	if _, err := conn.Exec(l.ctx(), reprice); err != nil {
		return fmt.Errorf("make the procedure: %w", err)
	}
	l.logf("table with %d rows in %.1f s", rows, time.Since(began).Seconds())
	return nil
}

// backlog is WAL that waits to be read.
type backlog struct {
	changes int
	end     pglogrepl.LSN
	mb      float64 // of WAL
}

// writeBacklog updates prices, size of them to a transaction.
func (l *lab) writeBacklog(changes, size, span, skip int) (backlog, error) {
	began := time.Now()
	b, err := l.write(fmt.Sprintf("CALL reprice(%d, %d, %d, %d)", changes, size, span, skip), "products")
	b.changes = changes
	l.logf("backlog of %d changes, %d to a transaction, %.0f MB, in %.1f s", changes, size, b.mb, time.Since(began).Seconds())
	return b, err
}

// write makes a backlog by a statement that changes tables. It leaves the server
// quiet: written out, and with no session at work.
func (l *lab) write(sql, tables string) (b backlog, err error) {
	conn, err := pgx.Connect(l.ctx(), l.pg.DSN(database))
	if err != nil {
		return b, err
	}
	defer conn.Close(l.ctx())
	for _, sql := range []string{"SET synchronous_commit = off", "SET enable_hashjoin = off", "SET enable_mergejoin = off"} {
		if _, err := conn.Exec(l.ctx(), sql); err != nil {
			return b, err
		}
	}
	start, err := walEnd(l.ctx(), conn)
	if err != nil {
		return b, err
	}
	if _, err := conn.Exec(l.ctx(), sql); err != nil {
		return b, fmt.Errorf("write the backlog: %w", err)
	}
	if b.end, err = walEnd(l.ctx(), conn); err != nil {
		return b, err
	}
	b.mb = float64(b.end-start) / 1e6
	for _, sql := range []string{"SELECT pg_switch_wal()", "VACUUM " + tables, "CHECKPOINT"} {
		if _, err := conn.Exec(l.ctx(), sql); err != nil {
			return b, fmt.Errorf("%s: %w", sql, err)
		}
	}
	return b, nil
}

func walEnd(ctx context.Context, conn *pgx.Conn) (pglogrepl.LSN, error) {
	var text string
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
		return 0, err
	}
	return pglogrepl.ParseLSN(text)
}

// statements takes a script apart at its semicolons: VACUUM and its like must
// stand alone.
func statements(script string) []string { return strings.Split(script, ";\n") }
