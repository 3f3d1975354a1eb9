package capture

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Postgres versions from which the server can do what the package would use.
const (
	versionTruncate    = 11 // TRUNCATE is published
	versionViaRoot     = 13 // publish_via_partition_root
	versionColumnLists = 15 // column lists, row filters, FOR TABLES IN SCHEMA
	versionGenerated   = 18 // publish_generated_columns
)

// publicationFacts is what the catalog says of the publication.
type publicationFacts struct {
	oid       uint32 // 0: there is none
	version   string // differs after each ALTER PUBLICATION of its options or owner
	owned     bool
	allTables bool
	schemas   bool // has FOR TABLES IN SCHEMA
	viaRoot   bool
	generated bool     // publishes stored generated columns
	lacks     []string // of insert, update, delete, truncate: what is not published
	others    int      // published tables that are not mapped
	members   map[string]memberFacts
}

// memberFacts says how a mapped table stands in the publication; the key is
// TableRef.String.
type memberFacts struct {
	covered bool   // its changes are published under its own name
	entry   uint32 // OID of the table's own entry, which a re-added table changes; 0: none
	schema  uint32 // the same of its schema's entry
	columns []string
	list    bool // has a column list: columns
	filter  string
}

// readPublication reads the facts about the publication and the mapped tables.
func (d *Database) readPublication(ctx context.Context, conn *pgconn.PgConn) (*publicationFacts, error) {
	p := &publicationFacts{members: make(map[string]memberFacts, len(d.tables))}
	major := serverMajor(conn)
	step := "read publication " + d.cfg.Publication
	rows, err := query(ctx, conn, step, publicationQuery(major), d.cfg.Publication)
	if err != nil || len(rows) == 0 {
		return p, err
	}
	r := rows[0]
	if p.oid, err = scanOID(r[0]); err != nil {
		return nil, fmt.Errorf("%s: %w", step, err)
	}
	p.owned, p.allTables, p.viaRoot, p.generated = r[1] == "t", r[2] == "t", r[7] == "t", r[8] == "t"
	p.schemas, p.version = r[9] == "t", r[10]
	for i, operation := range []string{"insert", "update", "delete", "truncate"} {
		if r[3+i] != "t" {
			p.lacks = append(p.lacks, operation)
		}
	}
	if err := d.readCovered(ctx, conn, p); err != nil {
		return nil, err
	}
	for _, ref := range d.tables {
		if err := p.readMember(ctx, conn, ref, major); err != nil {
			return nil, err
		}
	}
	if p.schemas {
		return p, d.readSchemas(ctx, conn, p)
	}
	return p, nil
}

// publicationQuery puts constants where an older server has no column.
func publicationQuery(major int) string {
	truncate, viaRoot, generated, schemas := "'t'", "'f'", "'f'", "'f'"
	if major >= versionTruncate {
		truncate = "p.pubtruncate"
	}
	if major >= versionViaRoot {
		viaRoot = "p.pubviaroot"
	}
	if major >= versionColumnLists {
		schemas = "EXISTS (SELECT FROM pg_publication_namespace s WHERE s.pnpubid = p.oid)"
	}
	if major >= versionGenerated {
		generated = "p.pubgencols <> 'n'"
	}
	return `
SELECT p.oid::text, pg_has_role(p.pubowner, 'USAGE'), p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, ` +
		truncate + `, ` + viaRoot + `, ` + generated + `, ` + schemas + `, p.xmin::text
  FROM pg_publication p WHERE p.pubname = $1`
}

// readCovered reads which tables are published under their own names.
func (d *Database) readCovered(ctx context.Context, conn *pgconn.PgConn, p *publicationFacts) error {
	rows, err := query(ctx, conn, "read tables of publication "+d.cfg.Publication, `
SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1`, d.cfg.Publication)
	if err != nil {
		return err
	}
	for _, row := range rows {
		name := TableRef{Schema: row[0], Name: row[1]}.String()
		if slices.ContainsFunc(d.tables, func(t TableRef) bool { return t.Schema == row[0] && t.Name == row[1] }) {
			p.members[name] = memberFacts{covered: true}
		} else {
			p.others++
		}
	}
	return nil
}

// readMember reads a table's own entry in the publication, if it has one: one
// row for each column of its list, or a single row without a list.
func (p *publicationFacts) readMember(ctx context.Context, conn *pgconn.PgConn, ref TableRef, major int) error {
	list, filter, join := "false", "''", "false"
	if major >= versionColumnLists {
		list, filter = "r.prattrs IS NOT NULL", "coalesce(pg_get_expr(r.prqual, r.prrelid), '')"
		join = "a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])"
	}
	step := "read entry of table " + ref.String() + " in the publication"
	rows, err := query(ctx, conn, step, `
SELECT r.oid::text, `+list+`, `+filter+`, coalesce(a.attname, '')
  FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON `+join+`
 WHERE r.prpubid = $1::oid AND n.nspname = $2 AND c.relname = $3 ORDER BY a.attnum`,
		formatOID(p.oid), ref.Schema, ref.Name)
	if err != nil || len(rows) == 0 {
		return err
	}
	member := p.members[ref.String()]
	if member.entry, err = scanOID(rows[0][0]); err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	member.list, member.filter = rows[0][1] == "t", rows[0][2]
	for _, row := range rows {
		if member.list {
			member.columns = append(member.columns, row[3])
		}
	}
	p.members[ref.String()] = member
	return nil
}

// readSchemas reads the entries of the mapped tables' schemas.
func (d *Database) readSchemas(ctx context.Context, conn *pgconn.PgConn, p *publicationFacts) error {
	step := "read schemas of publication " + d.cfg.Publication
	rows, err := query(ctx, conn, step, `
SELECT n.nspname, s.oid::text FROM pg_publication_namespace s JOIN pg_namespace n ON n.oid = s.pnnspid
 WHERE s.pnpubid = $1::oid`, formatOID(p.oid))
	if err != nil {
		return err
	}
	for _, row := range rows {
		entry, err := scanOID(row[1])
		if err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
		for _, ref := range d.tables {
			if member, ok := p.members[ref.String()]; ok && ref.Schema == row[0] {
				member.schema = entry
				p.members[ref.String()] = member
			}
		}
	}
	return nil
}

// same reports whether what is published of a table is what it was.
func (m memberFacts) same(n memberFacts) bool {
	return m.covered == n.covered && m.entry == n.entry && m.schema == n.schema && m.list == n.list &&
		m.filter == n.filter && slices.Equal(m.columns, n.columns)
}

// lineage is TableInfo.Lineage. ALTER PUBLICATION … SET TABLE gives a table a new
// entry where it changes its columns or its filter.
func (p *publicationFacts) lineage(ref TableRef, table uint32) string {
	m := p.members[ref.String()]
	return fmt.Sprintf("publication %d version %s entry %d schema %d table %d", p.oid, p.version, m.entry, m.schema, table)
}

// uncovered returns the mapped tables that the publication lacks.
func (p *publicationFacts) uncovered(tables []*tableFacts) []*tableFacts {
	var out []*tableFacts
	for _, t := range tables {
		if t.oid != 0 && !p.members[t.ref.String()].covered {
			out = append(out, t)
		}
	}
	return out
}

// createSQL is the statement that makes the publication.
func (d *Database) createSQL(tables []*tableFacts, major int) string {
	options := publishOption(major)
	partitioned := func(t *tableFacts) bool { return t.kind == kindPartitioned }
	if major >= versionViaRoot && slices.ContainsFunc(tables, partitioned) {
		options += ", publish_via_partition_root = true"
	}
	return "CREATE PUBLICATION " + quoteIdent(d.cfg.Publication) + " FOR TABLE " +
		d.memberSQL(tables, major) + " WITH (" + options + ")"
}

// publishOption publishes all that the server can.
func publishOption(major int) string {
	if major < versionTruncate {
		return "publish = 'insert, update, delete'"
	}
	return "publish = 'insert, update, delete, truncate'"
}

// publishSQL is the statement that makes the publication publish all operations.
func (d *Database) publishSQL(major int) string {
	return "ALTER PUBLICATION " + quoteIdent(d.cfg.Publication) + " SET (" + publishOption(major) + ")"
}

// addSQL is the statement that adds tables to the publication.
func (d *Database) addSQL(tables []*tableFacts, major int) string {
	return "ALTER PUBLICATION " + quoteIdent(d.cfg.Publication) + " ADD TABLE " + d.memberSQL(tables, major)
}

// memberSQL lists tables as a publication's members. ONLY keeps inheritance
// children out; they would be published under their own names.
func (d *Database) memberSQL(tables []*tableFacts, major int) string {
	parts := make([]string, len(tables))
	for i, t := range tables {
		parts[i] = "ONLY " + quoteTable(t.ref.Schema, t.ref.Name)
		if d.cfg.ColumnList && major >= versionColumnLists && t.identity != identityFull {
			parts[i] += " (" + quoteIdents(t.published()) + ")"
		}
	}
	return strings.Join(parts, ", ")
}

// published lists the columns of a column list: those that are captured, and
// the replica identity, without which the application's UPDATE would fail.
func (t *tableFacts) published() []string {
	captured, identity := t.captured(), t.identityColumns()
	return slices.DeleteFunc(t.columnNames(), func(name string) bool {
		return !slices.Contains(captured, name) && !slices.Contains(identity, name)
	})
}

// publicationChange is what ensurePublication did, and how to undo it.
type publicationChange struct {
	created bool
	added   []TableRef
}

// ensurePublication creates the publication or adds the tables that it lacks.
// It is committed when the function returns: a slot made later sees it.
func (d *Database) ensurePublication(ctx context.Context, conn *pgconn.PgConn, s *survey) (publicationChange, error) {
	var change publicationChange
	if s.publication.oid == 0 {
		if err := exec(ctx, conn, "create publication "+d.cfg.Publication, d.createSQL(s.tables, s.major)); err != nil {
			return change, err
		}
		change.created = true
		d.log.Info("publication created", "publication", d.cfg.Publication, "tables", len(s.tables))
		return change, nil
	}
	lacking := s.publication.uncovered(s.tables)
	if len(lacking) == 0 {
		return change, nil
	}
	if err := exec(ctx, conn, "add tables to publication "+d.cfg.Publication, d.addSQL(lacking, s.major)); err != nil {
		return change, err
	}
	for _, t := range lacking {
		change.added = append(change.added, t.ref)
		d.log.Info("table added to publication", "publication", d.cfg.Publication, "table", t.ref.String())
	}
	return change, nil
}

// undoPublication takes back what ensurePublication did.
func (d *Database) undoPublication(ctx context.Context, conn *pgconn.PgConn, change publicationChange) error {
	name := quoteIdent(d.cfg.Publication)
	switch {
	case change.created:
		return exec(ctx, conn, "drop publication "+d.cfg.Publication, "DROP PUBLICATION IF EXISTS "+name)
	case len(change.added) > 0:
		parts := make([]string, len(change.added))
		for i, ref := range change.added {
			parts[i] = "ONLY " + quoteTable(ref.Schema, ref.Name)
		}
		return exec(ctx, conn, "take tables out of publication "+d.cfg.Publication,
			"ALTER PUBLICATION "+name+" DROP TABLE "+strings.Join(parts, ", "))
	}
	return nil
}

// quoteIdents quotes a list of identifiers for SQL.
func quoteIdents(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = quoteIdent(name)
	}
	return strings.Join(quoted, ", ")
}
