package capture

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// existing returns the mapped tables that are there.
func (s *survey) existing() []*tableFacts {
	return slices.DeleteFunc(slices.Clone(s.tables), func(t *tableFacts) bool { return t.oid == 0 })
}

// checkPublication judges the publication as a whole.
func (d *Database) checkPublication(s *survey) {
	r, p := &s.report, s.publication
	check := "publication " + d.cfg.Publication
	name := quoteIdent(d.cfg.Publication)
	if d.cfg.ColumnList {
		d.checkColumnListOption(s)
	}
	if p.oid == 0 {
		if d.cfg.Create {
			r.ok(check, "will be created")
		} else {
			r.fail(check, d.createSQL(s.existing(), s.major)+"; or set source.create: true", "there is none, and source.create is false")
		}
		return
	}
	if len(p.lacks) > 0 {
		r.fail(check, d.publishSQL(s.major),
			"it does not publish %s", strings.Join(p.lacks, ", "))
	}
	if p.generated {
		r.fail(check, "ALTER PUBLICATION "+name+" SET (publish_generated_columns = none)", "it publishes generated columns, which are not captured")
	}
	switch {
	case p.allTables:
		r.warn(check, "make one of the mapped tables only, under another name: "+d.createSQL(s.existing(), s.major),
			"it is FOR ALL TABLES: UPDATE and DELETE fail on every later table without a primary key, and the changes of %d unmapped tables are sent", p.others)
	case p.schemas:
		r.warn(check, "publish the mapped tables only",
			"it is FOR TABLES IN SCHEMA: UPDATE and DELETE fail on every later table there without a primary key")
	case p.others > 0:
		r.warn(check, "publish the mapped tables only", "it publishes %d tables that are not mapped; their changes are sent and dropped", p.others)
	case len(p.lacks) == 0 && !p.generated:
		r.ok(check, "publishes insert, update, delete and truncate")
	}
}

// checkColumnListOption judges source.column_list.
func (d *Database) checkColumnListOption(s *survey) {
	if s.major < versionColumnLists {
		s.report.misuse("column_list", "set it to false", "needs Postgres %d, the server is %d", versionColumnLists, s.major)
		return
	}
	s.report.warn("source.column_list", "set it to false unless the columns hardly ever change",
		"DROP COLUMN and ALTER TYPE of a listed column, and a primary key over other columns, fail in the application; "+
			"a column added later stops the bridge until the list has it")
}

// reportMissing says that a table is not there, and which one might be meant.
func (s *survey) reportMissing(ctx context.Context, conn *pgconn.PgConn, ref TableRef) error {
	rows, err := query(ctx, conn, "list tables", `
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_'
 ORDER BY 1, 2 LIMIT 10000`)
	if err != nil {
		return err
	}
	names := make([]string, len(rows))
	for i, row := range rows {
		names[i] = row[0] + "." + row[1]
	}
	cure := "correct the name in the mapping, or create the table"
	if near := nearest(ref.String(), names); near != "" {
		cure = "did you mean " + near + "? " + cure
	}
	s.report.fail("table "+ref.String(), cure, "there is no such table in database %s", s.server.database)
	return nil
}

// checkTable judges one mapped table.
func (d *Database) checkTable(s *survey, t *tableFacts) {
	before := len(s.report.Findings)
	name := "table " + t.ref.String()
	if !s.checkKind(t, name) {
		return
	}
	s.checkRights(t, name)
	s.checkColumns(t, name)
	s.checkKey(t, name)
	s.checkIdentity(t, name)
	s.checkPartitions(t, name)
	if s.publication.oid != 0 {
		d.checkMember(s, t, name)
	} else if d.cfg.Create && !t.owned {
		s.report.fail(name+", owner", "as "+t.owner+" or a superuser: "+d.createSQL(s.existing(), s.major),
			"only its owner %s may publish it, not %s", t.owner, s.server.role)
	}
	if !slices.ContainsFunc(s.report.Findings[before:], func(f Finding) bool { return f.Level != LevelOK }) {
		s.report.ok(name, "key (%s), replica identity %s", strings.Join(t.key(), ", "), identityName(t.identity))
	}
}

// checkKind reports false if the relation is none whose changes can be captured.
func (s *survey) checkKind(t *tableFacts, name string) bool {
	r := &s.report
	switch {
	case t.kind == kindPartitioned && s.major < versionViaRoot:
		r.fail(name, "map its partitions, or upgrade", "a partitioned table cannot be published before Postgres %d", versionViaRoot)
	case t.kind != kindTable && t.kind != kindPartitioned:
		r.fail(name, "map the table behind it", "is %s, which has no changes of its own", kindName(t.kind))
	case t.persistence == unlogged:
		r.fail(name, "ALTER TABLE "+t.sql()+" SET LOGGED", "is unlogged: its changes are not in WAL")
	case t.persistence == temporary:
		r.fail(name, "map a permanent table", "is temporary: its changes are not in WAL")
	default:
		return true
	}
	return false
}

// checkRights judges what the role may do with the table.
func (s *survey) checkRights(t *tableFacts, name string) {
	r, role := &s.report, quoteIdent(s.server.role)
	if !t.readable {
		r.fail(name+", right to read", "GRANT USAGE ON SCHEMA "+quoteIdent(t.ref.Schema)+" TO "+role+
			"; GRANT SELECT ON "+t.sql()+" TO "+role, "role %s may not read it", s.server.role)
	}
	if t.rowSecurity {
		r.fail(name+", row level security", "ALTER ROLE "+role+" BYPASSRLS", "its policies hide rows from role %s", s.server.role)
	}
	if t.children {
		r.warn(name+", inheritance", "map the inheriting tables too, if their rows matter", "rows of inheriting tables are not captured with it")
	}
}

// checkColumns judges the columns that the mapping names.
func (s *survey) checkColumns(t *tableFacts, name string) {
	columns, generated := t.columnNames(), t.generatedNames()
	for _, use := range []struct {
		what  string
		names []string
	}{{"key", t.key()}, {"omit", t.ref.Omit}} {
		for _, column := range missing(columns, use.names) {
			switch {
			case slices.Contains(generated, column) && use.what == "key":
				s.report.misuse(name+", "+use.what, "name other columns as key in the mapping", "column %s is generated, and logical decoding leaves it out", column)
			case slices.Contains(generated, column):
			case use.what == "key":
				s.report.misuse(name+", "+use.what, t.keyCure(column), "there is no column %s", column)
			default:
				s.report.misuse(name+", "+use.what, columnCure(column, columns), "there is no column %s", column)
			}
		}
	}
	for _, column := range t.key() {
		if slices.Contains(t.ref.Omit, column) {
			s.report.misuse(name+", omit", "take it out of omit", "column %s is part of the key", column)
		}
	}
	if len(generated) > 0 {
		s.report.ok(name+", generated columns", "not captured: %s", strings.Join(generated, ", "))
	}
}

// keyCure says what the key may be now that one of its columns is not there.
func (t *tableFacts) keyCure(column string) string {
	cure := columnCure(column, t.columnNames())
	if pk := t.primaryKey(); pk != nil && len(pk.columns) == len(t.ref.Key) {
		cure += "; if it was renamed, write key: [" + strings.Join(pk.columns, ", ") + "], and the history goes on"
	}
	return cure
}

func columnCure(column string, columns []string) string {
	if near := nearest(column, columns); near != "" {
		return "did you mean " + near + "?"
	}
	return "the columns are " + strings.Join(columns, ", ")
}

// checkKey judges whether the key tells rows apart.
func (s *survey) checkKey(t *tableFacts, name string) {
	r, pk := &s.report, t.primaryKey()
	key := t.key()
	switch index := t.keyIndex(); {
	case key == nil:
		r.fail(name+", primary key", "ALTER TABLE "+t.sql()+" ADD PRIMARY KEY (…)", "it has none, so its rows cannot be told apart")
	case len(missing(t.columnNames(), key)) > 0: // said by checkColumns
	case index == nil:
		r.fail(name+", key", t.uniqueSQL(key)+"; or map the primary key", "no unique index over NOT NULL columns lies in (%s)", strings.Join(key, ", "))
	case !index.ordered:
		r.warn(name+", key", "CREATE UNIQUE INDEX CONCURRENTLY ON "+t.sql()+" ("+quoteIdents(index.columns)+")",
			"index %s is not in default order: each chunk of a backfill sorts the table", index.name)
	}
	if pk != nil && !pk.immediate && t.identity == identityDefault {
		r.fail(name+", primary key", "ALTER TABLE "+t.sql()+" REPLICA IDENTITY "+t.identityCure()+", or make the primary key anew", "it is deferrable and therefore no replica identity: once published, UPDATE and DELETE fail")
	}
}

// uniqueSQL makes the columns a key.
func (t *tableFacts) uniqueSQL(columns []string) string {
	var actions strings.Builder
	for _, c := range t.columns {
		if slices.Contains(columns, c.name) && !c.notNull {
			actions.WriteString("ALTER " + quoteIdent(c.name) + " SET NOT NULL, ")
		}
	}
	return "ALTER TABLE " + t.sql() + " " + actions.String() + "ADD UNIQUE (" + quoteIdents(columns) + ")"
}

// checkIdentity judges whether WAL says which row an UPDATE or DELETE met.
func (s *survey) checkIdentity(t *tableFacts, name string) {
	r, identity, key := &s.report, t.identityColumns(), t.key()
	check := name + ", replica identity"
	pk := t.primaryKey()
	switch {
	case t.identity == identityNothing:
		r.fail(check, "ALTER TABLE "+t.sql()+" REPLICA IDENTITY DEFAULT", "it is NOTHING: once published, UPDATE and DELETE fail")
	case t.identity == identityDefault && identity == nil && (pk == nil && t.ref.Key == nil || pk != nil): // said by checkKey
	case identity == nil:
		r.fail(check, "ALTER TABLE "+t.sql()+" REPLICA IDENTITY "+t.identityCure(), "it has none: once published, UPDATE and DELETE fail")
	case s.major >= versionGenerated && t.identityGenerated() && len(missing(t.columnNames(), key)) == 0:
		r.fail(check, t.withoutGenerated(), "it has generated columns, which are not published: UPDATE and DELETE fail")
	case t.identity == identityFull:
		r.warn(check, "ALTER TABLE "+t.sql()+" REPLICA IDENTITY DEFAULT, if nobody else needs it",
			"it is FULL: correct, but the application writes about twice the WAL; the bridge does not need it")
	case len(missing(t.columnNames(), key)) == 0 && !containsAll(identity, key):
		r.fail(check, "ALTER TABLE "+t.sql()+" REPLICA IDENTITY "+t.identityCure(),
			"a DELETE does not say which %s it met", strings.Join(missing(identity, key), ", "))
	}
}

// identityIndex returns an index that can be the replica identity for the key,
// or nil. Primary keys come first.
func (t *tableFacts) identityIndex() *indexFacts {
	for i := range t.indexes {
		index := &t.indexes[i]
		if index.immediate && index.notNull && containsAll(index.columns, t.key()) && containsAll(t.columnNames(), index.columns) {
			return index
		}
	}
	return nil
}

// identityCure is the replica identity that the key needs.
func (t *tableFacts) identityCure() string {
	if index := t.identityIndex(); index != nil {
		return "USING INDEX " + quoteIdent(index.name)
	}
	return "FULL"
}

// identityGenerated reports whether generated columns are in the replica identity.
func (t *tableFacts) identityGenerated() bool {
	generated := t.generatedNames()
	return len(generated) > 0 && (t.identity == identityFull ||
		slices.ContainsFunc(t.identityColumns(), func(name string) bool { return slices.Contains(generated, name) }))
}

// withoutGenerated makes a replica identity without generated columns.
func (t *tableFacts) withoutGenerated() string {
	if index := t.identityIndex(); index != nil {
		return "ALTER TABLE " + t.sql() + " REPLICA IDENTITY USING INDEX " + quoteIdent(index.name)
	}
	return "make a unique index over stored NOT NULL columns, its columns the key in the mapping; then ALTER TABLE " + t.sql() + " REPLICA IDENTITY USING INDEX …"
}

// checkPartitions judges the leaves, whose own replica identities decide.
func (s *survey) checkPartitions(t *tableFacts, name string) {
	if t.kind == kindPartitioned {
		s.report.warn(name+", partitions", "DELETE a partition's rows before it goes, and attach empty ones",
			"TRUNCATE, DROP, DETACH and ATTACH of a single partition are not in the stream")
	}
	for _, leaf := range t.partitions {
		check := name + ", partition " + leaf.name
		switch {
		case leaf.kind != kindTable:
			s.report.fail(check, "detach it, or map the ordinary partitions", "is %s, whose changes are not in WAL", kindName(leaf.kind))
		case leaf.identity == identityNothing:
			s.report.fail(check, "ALTER TABLE "+leaf.sql+" REPLICA IDENTITY DEFAULT", "its replica identity is NOTHING: once published, UPDATE and DELETE fail")
		case leaf.identity != t.identity:
			s.report.warn(check, "ALTER TABLE "+leaf.sql+" REPLICA IDENTITY "+strings.ToUpper(identityName(t.identity)),
				"its replica identity is %s, that of the table %s", identityName(leaf.identity), identityName(t.identity))
		}
	}
}

// checkMember judges how an existing publication publishes the table.
func (d *Database) checkMember(s *survey, t *tableFacts, name string) {
	r, p := &s.report, s.publication
	m := p.members[t.ref.String()]
	check := name + ", publication"
	publication := "ALTER PUBLICATION " + quoteIdent(d.cfg.Publication)
	again := "BEGIN; " + publication + " DROP TABLE " + t.sql() + "; " + d.addSQL([]*tableFacts{t}, s.major) + "; COMMIT"
	switch {
	case t.kind == kindPartitioned && !p.viaRoot && (m.entry != 0 || p.allTables || p.schemas || !m.covered):
		r.fail(check, publication+" SET (publish_via_partition_root = true)", "changes come under the names of the partitions")
		return
	case !m.covered && d.cfg.Create && p.owned && t.owned:
		r.ok(check, "will be added")
		return
	case !m.covered:
		r.fail(check, d.addSQL([]*tableFacts{t}, s.major)+"; as the owner of both", "%s does not have it", d.cfg.Publication)
		return
	}
	if m.filter != "" {
		r.fail(check, again, "it has a row filter: changes outside it are not sent, and UPDATE fails where it uses other columns than the replica identity")
	}
	if !m.list {
		return
	}
	if t.identity == identityFull {
		r.fail(check, again, "it has a column list, with which UPDATE and DELETE of a table with REPLICA IDENTITY FULL fail")
	} else if listed := missing(t.columnNames(), m.columns); len(listed) > 0 {
		r.fail(check, again, "its column list has %s, which is generated and not captured", strings.Join(listed, ", "))
	} else if lacks := missing(m.columns, t.identityColumns()); len(lacks) > 0 {
		r.fail(check, again, "its column list lacks %s of the replica identity: UPDATE and DELETE fail", strings.Join(lacks, ", "))
	} else if lacks := missing(m.columns, t.captured()); len(lacks) > 0 {
		r.fail(check, again+"; or omit the columns in the mapping", "its column list lacks %s, which the mapping captures", strings.Join(lacks, ", "))
	}
}

// sql is the table's name, quoted.
func (t *tableFacts) sql() string { return quoteTable(t.ref.Schema, t.ref.Name) }

func identityName(identity byte) string {
	switch identity {
	case identityDefault:
		return "default"
	case identityNothing:
		return "nothing"
	case identityFull:
		return "full"
	}
	return "index"
}

func kindName(kind string) string {
	switch kind {
	case "v":
		return "a view"
	case "m":
		return "a materialized view"
	case "f":
		return "a foreign table"
	case "S":
		return "a sequence"
	case "i", "I":
		return "an index"
	case "c":
		return "a composite type"
	}
	return "a relation of kind " + kind
}

// nearest returns the candidate that name is most likely a slip of the pen for,
// or "".
func nearest(name string, candidates []string) string {
	best, limit := "", max(2, len(name)/4)+1
	for _, c := range candidates {
		if n := distance(strings.ToLower(name), strings.ToLower(c)); n < limit {
			best, limit = c, n
		}
	}
	return best
}

// distance is Levenshtein's, in bytes.
func distance(a, b string) int {
	line := make([]int, len(b)+1)
	for j := range line {
		line[j] = j
	}
	for i := range len(a) {
		diagonal := line[0]
		line[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = line[j+1]
			line[j+1] = min(cost, line[j]+1, diagonal+1)
		}
	}
	return line[len(b)]
}
