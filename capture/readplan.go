package capture

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// readPlan is how a table, as its catalog is now, is read. Its statements name
// types and operators with their schemas: the search path is that of the stream,
// because it decides how names are printed, in a regclass for instance.
type readPlan struct {
	relation *Relation
	table    string // qualified and quoted
	from     string // FROM clause with the selected columns before it
	targets  []int  // of each selected column: its place in the relation
	key      []keyColumn
	order    []int  // the index's columns, as places in key
	to       string // where COPY sends the rows, and in which encoding
	texts    *texts // nil: the rows are UTF-8
}

// keyColumn is one column of the key, in the mapping's order.
type keyColumn struct {
	place int    // in the relation
	name  string // quoted
	typ   string // base type, qualified and quoted
	list  bool   // ARRAY[…] of such values has them as its elements
	// operators compare the column; only equal is there of one that is not in the index.
	operators keyOperators
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
	p := &readPlan{relation: t.relation(types), table: t.sql(), to: " TO STDOUT"}
	p.selectFrom(t)
	if charset, _ := charsetOf(conn.ParameterStatus("server_encoding")); charset != nil {
		p.to += " (ENCODING " + quoteLiteral(charset.name) + ")"
		ref := t.ref
		ref.Key = t.key()
		p.texts = newTexts(charset, []TableRef{ref}, nil)
	}
	for _, name := range t.key() {
		place := p.place(name)
		column := keyColumn{place: place, name: quoteIdent(name)}
		if err := column.read(ctx, conn, p.relation.Columns[place].Base); err != nil {
			return nil, err
		}
		p.key = append(p.key, column)
	}
	for i, name := range index.columns {
		k := slices.Index(t.key(), name)
		p.key[k].operators = index.operators[i]
		p.order = append(p.order, k)
	}
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

// read finds out what the column's literals and comparisons need. Without a type
// modifier no literal is cut to a column's length.
func (k *keyColumn) read(ctx context.Context, conn *pgconn.PgConn, oid uint32) error {
	row, err := queryRow(ctx, conn, "read name of type "+formatOID(oid), `
SELECT n.nspname, t.typname, t.typarray <> 0 AND t.typelem = 0,
       coalesce('OPERATOR(' || quote_ident(e.nspname) || '.' || p.oprname || ')', 'OPERATOR(pg_catalog.=)')
  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_opclass c ON c.opcdefault AND c.opcintype = t.oid AND c.opcmethod = (SELECT oid FROM pg_am WHERE amname = 'btree')
  LEFT JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amopstrategy = `+strconv.Itoa(strategyEqual)+`
       AND m.amoplefttype = t.oid AND m.amoprighttype = t.oid
  LEFT JOIN pg_operator p ON p.oid = m.amopopr LEFT JOIN pg_namespace e ON e.oid = p.oprnamespace
 WHERE t.oid = $1::oid`, formatOID(oid))
	if err != nil {
		return err
	}
	k.typ, k.list, k.operators.equal = quoteTable(row[0], row[1]), row[2] == "t", row[3]
	return nil
}

// chunkSQL reads the page behind the key after, of the rows for which where holds.
func (p *readPlan) chunkSQL(where string, after []string, limit int) (string, error) {
	if after != nil && len(after) != len(p.key) {
		return "", fmt.Errorf("the cursor has %d values, the key %d columns", len(after), len(p.key))
	}
	columns := make([]string, len(p.order))
	for i, k := range p.order {
		columns[i] = p.key[k].name
	}
	var sql strings.Builder
	sql.WriteString("COPY (" + p.from)
	and := " WHERE "
	if where != "" {
		sql.WriteString(whereClause(where))
		and = " AND "
	}
	if after != nil {
		sql.WriteString(and + p.behind(after))
	}
	sql.WriteString(" ORDER BY " + strings.Join(columns, ", ") + " LIMIT " + strconv.Itoa(limit) + ")" + p.to)
	return sql.String(), nil
}

// behind is the condition that a row's key lies behind another one. Where one
// operator serves all columns it is a comparison of rows, which an index answers at
// once. A comparison of rows takes one operator only; with several it is written
// out, and the index finds the first column's part of it.
func (p *readPlan) behind(after []string) string {
	first := &p.key[p.order[0]]
	columns, literals := make([]string, len(p.order)), make([]string, len(p.order))
	same := true
	for i, k := range p.order {
		columns[i], literals[i] = p.key[k].name, p.key[k].literal(after[k])
		same = same && p.key[k].operators == first.operators
	}
	if same {
		return "(" + strings.Join(columns, ", ") + ") " + first.operators.greater + " (" + strings.Join(literals, ", ") + ")"
	}
	last := len(p.order) - 1
	condition := p.compare(last, p.key[p.order[last]].operators.greater, after)
	for i := last - 1; i >= 0; i-- {
		operators := &p.key[p.order[i]].operators
		condition = "(" + p.compare(i, operators.greater, after) + " OR " + p.compare(i, operators.equal, after) + " AND " + condition + ")"
	}
	return p.compare(0, first.operators.atLeast, after) + " AND " + condition
}

// compare compares the i-th column of the order with its part of a key.
func (p *readPlan) compare(i int, operator string, key []string) string {
	k := p.order[i]
	return p.key[k].name + " " + operator + " " + p.key[k].literal(key[k])
}

// castSQL has the server take the texts of keys for values of their columns' types.
func (p *readPlan) castSQL(keys [][]string) string {
	var sql strings.Builder
	sql.WriteString("SELECT FROM (VALUES ")
	for i, key := range keys {
		if i > 0 {
			sql.WriteString(", ")
		}
		p.writeKey(&sql, key)
	}
	sql.WriteString(") asked")
	return sql.String()
}

// lookupSQL reads the rows with the given keys.
func (p *readPlan) lookupSQL(keys [][]string) (string, error) {
	for i, key := range keys {
		if len(key) != len(p.key) {
			return "", fmt.Errorf("key %d has %d values, want %d", i, len(key), len(p.key))
		}
	}
	condition := "false"
	switch {
	case len(keys) > 0 && len(p.key) == 1 && p.key[0].list:
		condition = p.inList(keys)
	case len(keys) > 0:
		condition = p.inRows(keys)
	}
	return "COPY (" + p.from + " WHERE " + condition + ")" + p.to, nil
}

// inList is the condition that the key, which is one column, is one of several.
func (p *readPlan) inList(keys [][]string) string {
	k := &p.key[0]
	var sql strings.Builder
	sql.WriteString(k.name + " " + k.operators.equal + " ANY (ARRAY[")
	for i, key := range keys {
		if i > 0 {
			sql.WriteString(", ")
		}
		sql.WriteString(quoteLiteral(key[0]))
	}
	sql.WriteString("]::" + k.typ + "[])")
	return sql.String()
}

// inRows is the condition that the key is one of several.
func (p *readPlan) inRows(keys [][]string) string {
	var sql strings.Builder
	sql.WriteString("EXISTS (SELECT FROM (VALUES ")
	for i, key := range keys {
		if i > 0 {
			sql.WriteString(", ")
		}
		p.writeKey(&sql, key)
	}
	sql.WriteString(") asked (")
	for i := range p.key {
		if i > 0 {
			sql.WriteString(", ")
		}
		sql.WriteString("k" + strconv.Itoa(i))
	}
	sql.WriteString(") WHERE ")
	for i := range p.key {
		k := &p.key[i]
		if i > 0 {
			sql.WriteString(" AND ")
		}
		sql.WriteString(p.table + "." + k.name + " " + k.operators.equal + " asked.k" + strconv.Itoa(i))
	}
	sql.WriteString(")")
	return sql.String()
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
