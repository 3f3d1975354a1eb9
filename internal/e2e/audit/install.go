package audit

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Columns of the table under test, in order, with the way their text becomes
// comparable.
var columns = []column{
	{"id", plain}, {"sku", quoted}, {"name", quoted}, {"description", quoted}, {"price", quoted},
	{"currency", quoted}, {"stock", plain}, {"attributes", document}, {"tags", array}, {"active", boolean},
	{"weight", float}, {"updated_at", instant},
}

// rules of the mapping under test: fields and the event they make.
var rules = []rule{{"PriceChanged", []string{"price"}}, {"StockAdjusted", []string{"stock"}}}

// Mapping is the mapping file that goes with the table.
const Mapping = `
tables:
  - table: public.products
    aggregate: Product
    topics: {events: product.events, latest: product.latest, partitions: 6, replication: %d}
    events:
      - {type: PriceChanged, when: [price]}
      - {type: StockAdjusted, when: [stock]}
`

const schema = `
CREATE TABLE products (
  id bigint PRIMARY KEY,
  sku text, name text, description text, price numeric(12,2), currency char(3), stock int,
  attributes jsonb, tags text[], active boolean, weight float8, updated_at timestamptz);
ALTER TABLE products ALTER description SET STORAGE EXTERNAL;
CREATE TABLE audit (
  seq bigserial PRIMARY KEY, txid bigint NOT NULL DEFAULT txid_current(), op char(1) NOT NULL,
  old text[], new text[], more jsonb, reason text, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION audit_text(p products) RETURNS text[] LANGUAGE sql STABLE SET extra_float_digits = 3 AS $$
  SELECT ARRAY[p.id::text, p.sku, p.name, p.description, p.price::text, CASE WHEN p.currency IS NOT NULL THEN format('%s', p.currency) END, p.stock::text,
    p.attributes::text, to_json(p.tags)::text, p.active::text, p.weight::text,
    to_char(p.updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')] $$;
-- The columns that were added to the table, if there are any.
CREATE FUNCTION audit_more(p products) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN (SELECT count(*) FROM pg_attribute WHERE attrelid = 'products'::regclass AND attnum > 0 AND NOT attisdropped) > 12
    THEN to_jsonb(p) - ARRAY['id', 'sku', 'name', 'description', 'price', 'currency', 'stock', 'attributes', 'tags', 'active', 'weight', 'updated_at'] END $$;
CREATE FUNCTION audit_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit (op, old, new, more, reason) VALUES (
    left(TG_OP, 1),
    CASE WHEN TG_OP <> 'INSERT' THEN audit_text(OLD) END,
    CASE WHEN TG_OP <> 'DELETE' THEN audit_text(NEW) END,
    CASE WHEN TG_OP <> 'DELETE' THEN audit_more(NEW) END,
    nullif(current_setting('audit.reason', true), ''));
  RETURN NULL;
END $$;
CREATE FUNCTION audit_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit (op, old, reason)
    SELECT 'T', audit_text(p), nullif(current_setting('audit.reason', true), '') FROM products p ORDER BY id;
  RETURN NULL;
END $$;
CREATE FUNCTION say(reason text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('audit.reason', reason, true);
  INSERT INTO audit (op, reason) VALUES ('M', reason);
  PERFORM pg_logical_emit_message(true, 'backstory.context', jsonb_build_object('reason', reason)::text);
END $$;
`

const triggers = `
CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON products FOR EACH ROW EXECUTE PROCEDURE audit_row();
CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON products FOR EACH STATEMENT EXECUTE PROCEDURE audit_truncate();
`

// Install makes the table with rows that no audit note tells of (ids 1 to rows),
// then the triggers.
func Install(ctx context.Context, conn *pgx.Conn, rows int) error {
	if _, err := conn.Exec(ctx, schema); err != nil {
		return fmt.Errorf("make the table under test: %w", err)
	}
	if _, err := conn.Exec(ctx, `INSERT INTO products `+generated("1", fmt.Sprint(rows))); err != nil {
		return fmt.Errorf("fill the table under test: %w", err)
	}
	if _, err := conn.Exec(ctx, triggers); err != nil {
		return fmt.Errorf("audit the table under test: %w", err)
	}
	// What stands before the audit begins is a note of its own.
	_, err := conn.Exec(ctx, `INSERT INTO audit (op, new) SELECT '0', audit_text(p) FROM products p ORDER BY id`)
	if err != nil {
		return fmt.Errorf("note the rows that are there: %w", err)
	}
	return nil
}

// generated is a query for the rows of ids from to to (SQL expressions); every
// twentieth has a description that Postgres stores out of line.
func generated(from, to string) string {
	return `SELECT g, 'SKU-' || g, 'Product ' || g || ' ' || md5(g::text),
  CASE WHEN g % 20 = 0 THEN repeat(md5(g::text), 100) WHEN g % 7 = 0 THEN NULL ELSE 'short ' || g END,
  (g % 100000) / 100.0, CASE g % 3 WHEN 0 THEN 'EUR' WHEN 1 THEN 'USD' ELSE 'X' END, g % 500,
  jsonb_build_object('color', (ARRAY['red','green','blue'])[1 + g % 3], 'g', g, 'quote', E'a"b\\c\n'),
  CASE WHEN g % 5 = 0 THEN NULL ELSE ARRAY['a' || g, NULL, 'with "quotes", and \ and {braces}'] END,
  g % 2 = 0, g * 0.1::float8, TIMESTAMPTZ '2026-01-01 00:00:00Z' + g * interval '1.000001 second'
  FROM generate_series(` + from + `::bigint, ` + to + `::bigint) g`
}
