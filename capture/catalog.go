package capture

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// Values of pg_class.relkind, relpersistence and relreplident that decide something.
const (
	kindTable       = "r"
	kindPartitioned = "p"

	persistent = "p"
	unlogged   = "u"
	temporary  = "t"

	identityDefault = 'd'
	identityNothing = 'n'
	identityFull    = 'f'
	identityIndex   = 'i'
)

// tableFacts is what the catalog says of one mapped table.
type tableFacts struct {
	ref         TableRef
	oid         uint32 // 0: there is no such table
	kind        string // relkind
	persistence string // relpersistence
	identity    byte   // relreplident
	rows        float64
	owner       string
	owned       bool // the role may act as the owner
	readable    bool // SELECT on the table and USAGE on its schema
	rowSecurity bool // policies would hide rows from the role
	children    bool // an ordinary table with inheritance children
	columns     []columnFacts
	indexes     []indexFacts
	partitions  []partitionFacts // leaves of a partitioned table
	filenode    string           // of its storage, which TRUNCATE and each rewrite change; 0 of a partitioned table
}

// columnFacts is one column that is not dropped, in attnum order.
type columnFacts struct {
	num       int16
	name      string
	oid       uint32
	mod       int32 // atttypmod
	generated bool
	notNull   bool
	// filled: rows older than the column get their value from the catalog, and old
	// tuples in WAL say NULL of it.
	filled  bool
	version string // xmin of the catalog row: each ALTER of the column changes it
}

// indexFacts is one valid unique index without expressions and predicate.
type indexFacts struct {
	name      string
	primary   bool
	immediate bool // not deferrable
	replident bool // chosen by REPLICA IDENTITY USING INDEX
	notNull   bool // all columns are
	ordered   bool // ORDER BY on its columns can use it
	distinct  bool // what differs for the index differs for the columns' own comparison too
	columns   []string
	operators []keyOperators // of each column
}

// keyOperators compare the values of a column as ORDER BY does: they are those of
// the default operator class of its type. Each is SQL, with its schema, so that no
// search path has to find it: "OPERATOR(pg_catalog.>)".
type keyOperators struct{ greater, atLeast, equal string }

// partitionFacts is one leaf of a partitioned table.
type partitionFacts struct {
	name     string // schema.name
	sql      string // the same, quoted
	kind     string
	identity byte
	filenode string
}

// readTable reads the facts of one table. All statements of it see the same
// catalog if the caller opened a REPEATABLE READ transaction.
func readTable(ctx context.Context, conn *pgconn.PgConn, ref TableRef) (*tableFacts, error) {
	t := &tableFacts{ref: ref}
	step := "read catalog of table " + ref.String()
	rows, err := query(ctx, conn, step, `
SELECT c.oid::text, c.relkind, c.relpersistence, c.relreplident, c.reltuples::text, pg_get_userbyid(c.relowner),
       pg_has_role(c.relowner, 'USAGE'),
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'),
       row_security_active(c.oid),
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid),
       coalesce(pg_relation_filenode(c.oid), 0)::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = $1 AND c.relname = $2`, ref.Schema, ref.Name)
	if err != nil || len(rows) == 0 {
		return t, err
	}
	if err := t.scan(rows[0]); err != nil {
		return nil, fmt.Errorf("%s: %w", step, err)
	}
	if t.columns, err = readColumns(ctx, conn, t.oid); err != nil {
		return nil, fmt.Errorf("%s: %w", step, err)
	}
	if t.indexes, err = readIndexes(ctx, conn, t.oid); err != nil {
		return nil, fmt.Errorf("%s: %w", step, err)
	}
	if t.kind == kindPartitioned {
		if t.partitions, err = readPartitions(ctx, conn, t.oid); err != nil {
			return nil, fmt.Errorf("%s: %w", step, err)
		}
	}
	return t, nil
}

// scan fills t from the row of pg_class.
func (t *tableFacts) scan(row []string) error {
	oid, err := scanOID(row[0])
	if err != nil {
		return err
	}
	if t.rows, err = strconv.ParseFloat(row[4], 64); err != nil {
		return fmt.Errorf("reltuples: %w", err)
	}
	t.oid, t.kind, t.persistence, t.identity = oid, row[1], row[2], firstByte(row[3])
	t.owner, t.owned, t.readable = row[5], row[6] == "t", row[7] == "t"
	t.rowSecurity, t.children, t.filenode = row[8] == "t", row[9] == "t", row[10]
	return nil
}

// readColumns lists the columns in attnum order.
func readColumns(ctx context.Context, conn *pgconn.PgConn, table uint32) ([]columnFacts, error) {
	generated, filled := "'f'", "'f'"
	if serverMajor(conn) >= 11 {
		filled = "a.atthasmissing"
	}
	if serverMajor(conn) >= 12 {
		generated = "a.attgenerated <> ''"
	}
	rows, err := query(ctx, conn, "read columns", `
SELECT a.attname, a.atttypid::text, `+generated+`, a.attnotnull, a.attnum::text, a.atttypmod::text, `+filled+`, a.xmin::text
  FROM pg_attribute a
 WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum`, formatOID(table))
	if err != nil {
		return nil, err
	}
	columns := make([]columnFacts, len(rows))
	for i, row := range rows {
		oid, err := scanOID(row[1])
		if err != nil {
			return nil, err
		}
		columns[i] = columnFacts{name: row[0], oid: oid, generated: row[2] == "t", notNull: row[3] == "t",
			filled: row[6] == "t", version: row[7]}
		if err := columns[i].scan(row[4], row[5]); err != nil {
			return nil, err
		}
	}
	return columns, nil
}

// scan fills in the column's number and type modifier.
func (c *columnFacts) scan(num, mod string) error {
	n, err := strconv.ParseInt(num, 10, 16)
	if err != nil {
		return fmt.Errorf("attnum: %w", err)
	}
	m, err := strconv.ParseInt(mod, 10, 32)
	if err != nil {
		return fmt.Errorf("atttypmod: %w", err)
	}
	c.num, c.mod = int16(n), int32(m)
	return nil
}

// readIndexes lists the unique indexes that identify rows, one catalog row for
// each of their columns.
//
// Chunks and look-ups compare as the column's type and collation do. An index
// with another opclass (text_ops on a citext column) or collation can hold rows
// that are equal in that comparison, of which a page boundary would lose one.
func readIndexes(ctx context.Context, conn *pgconn.PgConn, table uint32) ([]indexFacts, error) {
	columns := "i.indnatts"
	if serverMajor(conn) >= 11 {
		columns = "i.indnkeyatts"
	}
	deterministic := "true"
	if serverMajor(conn) >= 12 {
		deterministic = "coalesce((SELECT collisdeterministic FROM pg_collation WHERE oid = a.attcollation), true)"
	}
	rows, err := query(ctx, conn, "read unique indexes", `
SELECT x.relname, i.indisprimary, i.indimmediate, i.indisreplident, a.attname, a.attnotnull,
       k.options = 0 AND o.opcdefault AND k.coll = a.attcollation AND coalesce(d.oid = o.oid, true),
       coalesce(d.opcintype = o.opcintype, true) AND (k.coll = a.attcollation OR `+deterministic+`),
       `+operatorSQL(strategyGreater)+`, `+operatorSQL(strategyAtLeast)+`, `+operatorSQL(strategyEqual)+`
  FROM pg_index i
  JOIN pg_class x ON x.oid = i.indexrelid
 CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indoption::int2[], i.indclass::oid[], i.indcollation::oid[])
       WITH ORDINALITY AS k(attnum, options, class, coll, place)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
  JOIN pg_opclass o ON o.oid = k.class
 CROSS JOIN LATERAL (
       WITH RECURSIVE bare(oid) AS (
         SELECT a.atttypid
         UNION ALL
         SELECT t.typbasetype FROM bare JOIN pg_type t ON t.oid = bare.oid WHERE t.typtype = 'd')
       SELECT bare.oid FROM bare JOIN pg_type t ON t.oid = bare.oid WHERE t.typtype <> 'd') base
  LEFT JOIN pg_opclass d ON d.opcmethod = o.opcmethod AND d.opcdefault AND d.opcintype = base.oid
  LEFT JOIN pg_opclass f ON f.opcmethod = o.opcmethod AND f.opcdefault AND f.opcintype = coalesce(d.opcintype, o.opcintype)
 WHERE i.indrelid = $1::oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
   AND k.place <= `+columns+`
 ORDER BY i.indisprimary DESC, i.indisreplident DESC, x.relname, k.place`, formatOID(table))
	if err != nil {
		return nil, err
	}
	var indexes []indexFacts
	for _, row := range rows {
		if len(indexes) == 0 || indexes[len(indexes)-1].name != row[0] {
			indexes = append(indexes, indexFacts{name: row[0], primary: row[1] == "t", immediate: row[2] == "t",
				replident: row[3] == "t", notNull: true, ordered: true, distinct: true})
		}
		index := &indexes[len(indexes)-1]
		index.columns = append(index.columns, row[4])
		index.notNull = index.notNull && row[5] == "t"
		index.ordered = index.ordered && row[6] == "t"
		index.distinct = index.distinct && row[7] == "t"
		index.operators = append(index.operators, keyOperators{greater: row[8], atLeast: row[9], equal: row[10]})
	}
	return indexes, nil
}

// Strategies of a btree.
const (
	strategyEqual   = 3
	strategyAtLeast = 4
	strategyGreater = 5
)

// operatorSQL is an expression of readIndexes: the operator of the default class f
// of a column's type, as SQL that no search path changes.
func operatorSQL(strategy int) string {
	return `(SELECT 'OPERATOR(' || quote_ident(n.nspname) || '.' || p.oprname || ')'
         FROM pg_amop m JOIN pg_operator p ON p.oid = m.amopopr JOIN pg_namespace n ON n.oid = p.oprnamespace
        WHERE m.amopfamily = f.opcfamily AND m.amopstrategy = ` + strconv.Itoa(strategy) + `
          AND m.amoplefttype = f.opcintype AND m.amoprighttype = f.opcintype)`
}

// readPartitions lists the leaves of a partitioned table.
func readPartitions(ctx context.Context, conn *pgconn.PgConn, table uint32) ([]partitionFacts, error) {
	rows, err := query(ctx, conn, "read partitions", `
WITH RECURSIVE tree AS (
  SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = $1::oid
  UNION ALL
  SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.inhrelid)
SELECT n.nspname, c.relname, c.relkind, c.relreplident, coalesce(pg_relation_filenode(c.oid), 0)::text
  FROM tree JOIN pg_class c ON c.oid = tree.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind <> 'p' ORDER BY 1, 2`, formatOID(table))
	if err != nil {
		return nil, err
	}
	leaves := make([]partitionFacts, len(rows))
	for i, row := range rows {
		leaves[i] = partitionFacts{name: row[0] + "." + row[1], sql: quoteTable(row[0], row[1]), kind: row[2], identity: firstByte(row[3]), filenode: row[4]}
	}
	return leaves, nil
}

// primaryKey returns the primary key's index, or nil.
func (t *tableFacts) primaryKey() *indexFacts {
	for i := range t.indexes {
		if t.indexes[i].primary {
			return &t.indexes[i]
		}
	}
	return nil
}

// key returns the columns that identify an aggregate, in the mapping's order:
// those that the mapping names, else the primary key; nil if there are none.
func (t *tableFacts) key() []string {
	if len(t.ref.Key) > 0 {
		return t.ref.Key
	}
	if pk := t.primaryKey(); pk != nil {
		return pk.columns
	}
	return nil
}

// keyIndex returns the index that makes the key unique and gives chunks their
// order, or nil: its columns are all NOT NULL and all in the key, and it is as
// strict as their own comparison. Of several, an index in default order comes
// first, then the primary key.
func (t *tableFacts) keyIndex() *indexFacts {
	key := t.key()
	var found *indexFacts
	for i := range t.indexes {
		index := &t.indexes[i]
		if !index.notNull || !index.distinct || !containsAll(key, index.columns) {
			continue
		}
		if index.ordered {
			return index
		}
		if found == nil {
			found = index
		}
	}
	return found
}

// identityColumns returns the columns of the replica identity; nil if the table
// has none that UPDATE and DELETE could be published with.
func (t *tableFacts) identityColumns() []string {
	switch t.identity {
	case identityFull:
		return t.columnNames()
	case identityDefault:
		if pk := t.primaryKey(); pk != nil && pk.immediate {
			return pk.columns
		}
	case identityIndex:
		for _, index := range t.indexes {
			if index.replident && index.immediate {
				return index.columns
			}
		}
	}
	return nil
}

// columnNames lists the columns that logical decoding delivers.
func (t *tableFacts) columnNames() []string {
	names := make([]string, 0, len(t.columns))
	for _, c := range t.columns {
		if !c.generated {
			names = append(names, c.name)
		}
	}
	return names
}

// generatedNames lists the columns that logical decoding leaves out.
func (t *tableFacts) generatedNames() []string {
	var names []string
	for _, c := range t.columns {
		if c.generated {
			names = append(names, c.name)
		}
	}
	return names
}

// captured lists the columns that the mapping asks for.
func (t *tableFacts) captured() []string {
	return slices.DeleteFunc(t.columnNames(), func(name string) bool { return slices.Contains(t.ref.Omit, name) })
}

// relation builds the Relation that the stream would announce.
func (t *tableFacts) relation(types map[uint32]ColumnType) *Relation {
	rel := &Relation{ID: t.oid, Schema: t.ref.Schema, Name: t.ref.Name, Identity: t.identity}
	identity := t.identityColumns()
	for _, c := range t.columns {
		if c.generated {
			continue
		}
		column := Column{Name: c.name, OID: c.oid, Mod: c.mod, Key: slices.Contains(identity, c.name)}
		column.comeDownTo(types[c.oid])
		rel.Columns = append(rel.Columns, column)
	}
	rel.KeyColumns = rel.indexes(t.key())
	return rel
}

// indexes returns the places of the named columns, or nil where one is missing.
func (r *Relation) indexes(names []string) []int {
	places := make([]int, len(names))
	for i, name := range names {
		places[i] = slices.IndexFunc(r.Columns, func(c Column) bool { return c.Name == name })
		if places[i] < 0 {
			return nil
		}
	}
	return places
}

// unflagged reports whether the relation has a column of one of the names that is not
// part of its identity.
func (r *Relation) unflagged(names []string) bool {
	return slices.ContainsFunc(r.Columns, func(c Column) bool { return !c.Key && slices.Contains(names, c.Name) })
}

// typeOIDs lists the types of the columns that logical decoding delivers.
func (t *tableFacts) typeOIDs() []uint32 {
	var oids []uint32
	for _, c := range t.columns {
		if !c.generated && !slices.Contains(oids, c.oid) {
			oids = append(oids, c.oid)
		}
	}
	return oids
}

// containsAll reports whether set has every element of part.
func containsAll(set, part []string) bool {
	for _, s := range part {
		if !slices.Contains(set, s) {
			return false
		}
	}
	return true
}

// missing returns the elements of want that have lacks.
func missing(have, want []string) []string {
	var out []string
	for _, s := range want {
		if !slices.Contains(have, s) {
			out = append(out, s)
		}
	}
	return out
}

func scanOID(text string) (uint32, error) {
	oid, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is no OID", text)
	}
	return uint32(oid), nil
}

func formatOID(oid uint32) string { return strconv.FormatUint(uint64(oid), 10) }

func firstByte(s string) byte {
	if s == "" {
		return 0
	}
	return s[0]
}
