package capture

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// readPlan is how a table, as its catalog is now, is read.
type readPlan struct {
	relation   *Relation
	from       string // FROM clause with the selected columns before it
	targets    []int  // of each selected column: its place in the relation
	key        []keyColumn
	order      []int  // the index's columns, as places in key
	searchPath string // schemas of the key's operators besides pg_catalog, quoted
}

// keyColumn is one column of the key, in the mapping's order.
type keyColumn struct {
	place int    // in the relation
	name  string // quoted
	typ   string // base type, qualified and quoted
}

// newReadPlan works out how to read the table.
func newReadPlan(ctx context.Context, conn *pgconn.PgConn, t *tableFacts) (*readPlan, error) {
	index := t.keyIndex()
	if lacks := missing(t.columnNames(), t.key()); index == nil || len(lacks) > 0 {
		return nil, &Refusal{Thing: "table " + t.ref.String(),
			Problem: fmt.Sprintf("its key (%s) has no unique index over existing NOT NULL columns any more", strings.Join(t.key(), ", ")),
			Cure:    "run `backstory doctor`"}
	}
	types, err := resolveTypes(ctx, conn, t.typeOIDs())
	if err != nil {
		return nil, err
	}
	p := &readPlan{relation: t.relation(types)}
	p.selectFrom(t)
	for _, name := range t.key() {
		place := p.place(name)
		typ, err := qualifiedType(ctx, conn, p.relation.Columns[place].Base)
		if err != nil {
			return nil, err
		}
		p.key = append(p.key, keyColumn{place: place, name: quoteIdent(name), typ: typ})
	}
	for _, name := range index.columns {
		p.order = append(p.order, slices.Index(t.key(), name))
	}
	p.searchPath = quoteIdents(missing([]string{"pg_catalog"}, index.schemas))
	return p, nil
}

// selectFrom builds the part of the statements that does not depend on the rows
// asked for. A partitioned table's own storage is empty: ONLY is for the others,
// whose inheritance children are tables of their own.
func (p *readPlan) selectFrom(t *tableFacts) {
	captured := t.captured()
	for i, column := range p.relation.Columns {
		if slices.Contains(captured, column.Name) {
			p.targets = append(p.targets, i)
		}
	}
	only := "ONLY "
	if t.kind == kindPartitioned {
		only = ""
	}
	p.from = "SELECT " + quoteIdents(captured) + " FROM " + only + t.sql()
}

func (p *readPlan) place(name string) int {
	return slices.IndexFunc(p.relation.Columns, func(c Column) bool { return c.Name == name })
}

// qualifiedType returns a type's qualified name. Without a type modifier no literal
// is cut to a column's length.
func qualifiedType(ctx context.Context, conn *pgconn.PgConn, oid uint32) (string, error) {
	row, err := queryRow(ctx, conn, "read name of type "+formatOID(oid), `
SELECT n.nspname, t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = $1::oid`, formatOID(oid))
	if err != nil {
		return "", err
	}
	return quoteTable(row[0], row[1]), nil
}

// chunkSQL reads the page behind the key after, of the rows for which where holds.
func (p *readPlan) chunkSQL(where string, after []string, limit int) (string, error) {
	if after != nil && len(after) != len(p.key) {
		return "", fmt.Errorf("the cursor has %d values, the key %d columns", len(after), len(p.key))
	}
	columns := make([]string, len(p.order))
	literals := make([]string, len(p.order))
	for i, k := range p.order {
		columns[i] = p.key[k].name
		if after != nil {
			literals[i] = p.key[k].literal(after[k])
		}
	}
	var sql strings.Builder
	sql.WriteString("COPY (" + p.from)
	and := " WHERE "
	if where != "" {
		sql.WriteString(whereClause(where))
		and = " AND "
	}
	if after != nil {
		sql.WriteString(and + "(" + strings.Join(columns, ", ") + ") > (" + strings.Join(literals, ", ") + ")")
	}
	sql.WriteString(" ORDER BY " + strings.Join(columns, ", ") + " LIMIT " + strconv.Itoa(limit) + ") TO STDOUT")
	return sql.String(), nil
}

// lookupSQL reads the rows with the given keys.
func (p *readPlan) lookupSQL(keys [][]string) (string, error) {
	names := make([]string, len(p.key))
	for i, k := range p.key {
		names[i] = k.name
	}
	var sql strings.Builder
	sql.WriteString("COPY (" + p.from + " WHERE ")
	if len(keys) == 0 {
		sql.WriteString("false")
	} else {
		sql.WriteString("(" + strings.Join(names, ", ") + ") IN (")
	}
	for i, key := range keys {
		if len(key) != len(p.key) {
			return "", fmt.Errorf("key %d has %d values, want %d", i, len(key), len(p.key))
		}
		if i > 0 {
			sql.WriteString(", ")
		} else if len(p.key) > 1 {
			sql.WriteString("VALUES ")
		}
		p.writeKey(&sql, key)
	}
	if len(keys) > 0 {
		sql.WriteString(")")
	}
	sql.WriteString(") TO STDOUT")
	return sql.String(), nil
}

// writeKey writes one key as a row of literals.
func (p *readPlan) writeKey(sql *strings.Builder, key []string) {
	sql.WriteByte('(')
	for i, value := range key {
		if i > 0 {
			sql.WriteString(", ")
		}
		sql.WriteString(p.key[i].literal(value))
	}
	sql.WriteByte(')')
}

// literal writes a value of the column as SQL.
func (k *keyColumn) literal(value string) string { return quoteLiteral(value) + "::" + k.typ }
