package capture

import (
	"context"
	"fmt"
	"slices"
)

// relations knows the tables of one session as its RELATION messages describe
// them. A table is described before its first row and again after every change
// of it, also inside a transaction.
type relations struct {
	byName  map[tableName]bool    // the mapped tables
	catalog catalog               // where Prepare found them
	known   map[uint32]*tracked   // described so far
	last    *tracked              // of the row before: most rows follow one of the same table
	types   map[uint32]columnType // explained so far
	resolve typeResolver          // for the types that pgoutput does not explain
	charset *charset              // of the names
}

// tableName is a qualified name.
type tableName struct{ schema, name string }

func (n tableName) String() string { return n.schema + "." + n.name }

// tracked is a published table.
type tracked struct {
	*Relation
	mapped bool // else its rows are not passed on, they only count
}

// catalog says which OIDs the mapped tables had at a place in WAL.
type catalog struct {
	at     LSN
	tables map[uint32]tableName // nil: not known
}

// typeResolver is resolveTypes on a connection that the resolver provides.
type typeResolver func(ctx context.Context, oids []uint32) (map[uint32]columnType, error)

// newRelations tracks the given tables.
func newRelations(tables []TableRef, catalog catalog, resolve typeResolver) *relations {
	r := &relations{
		byName:  make(map[tableName]bool, len(tables)),
		catalog: catalog,
		known:   make(map[uint32]*tracked),
		types:   make(map[uint32]columnType),
		resolve: resolve,
	}
	for _, t := range tables {
		r.byName[tableName{t.Schema, t.Name}] = true
	}
	return r
}

// find returns the table of a row.
func (r *relations) find(id uint32) (*tracked, error) {
	if r.last != nil && r.last.ID == id {
		return r.last, nil
	}
	t := r.known[id]
	if t == nil {
		return nil, fmt.Errorf("row of relation %d, which was not described", id)
	}
	r.last = t
	return t, nil
}

// describe takes in a RELATION message of the transaction that commits at the
// given position. It asks the catalog where a mapped table has types that nothing
// explained so far. A description that equals the one before keeps its address, so
// that nobody has to plan for it again.
func (r *relations) describe(ctx context.Context, commit LSN, body []byte) error {
	rel, err := decodeRelation(body)
	if err != nil {
		return err
	}
	r.charset.names(rel)
	mapped, err := r.recognise(rel, commit)
	if err != nil {
		return err
	}
	if mapped {
		if err := r.explain(ctx, rel.Columns); err != nil {
			return fmt.Errorf("types of table %s.%s: %w", rel.Schema, rel.Name, err)
		}
	}
	if known := r.known[rel.ID]; known != nil && known.mapped == mapped && known.equal(rel) {
		return nil
	}
	r.known[rel.ID], r.last = &tracked{Relation: rel, mapped: mapped}, nil
	return nil
}

// recognise tells whether a table is a mapped one.
//
// What was written before Prepare looked at the catalog is history: a table
// counts under the mapped name that it had then, else under the one that it has
// since, which rel then gets. So a renaming that the mapping follows, or that was
// taken back, loses nothing, and none stops the stream at every start. From then
// on name and OID have to agree.
func (r *relations) recognise(rel *Relation, commit LSN) (bool, error) {
	name := tableName{rel.Schema, rel.Name}
	named := r.byName[name]
	now, prepared := r.catalog.tables[rel.ID]
	switch known := r.known[rel.ID]; {
	case r.catalog.tables == nil:
		if !named && known != nil && known.mapped {
			return false, renamed(tableName{known.Schema, known.Name}, name)
		}
		return named, nil
	case commit < r.catalog.at:
		if !named && prepared {
			rel.Schema, rel.Name = now.schema, now.name
		}
		return named || prepared, nil
	case prepared && now != name:
		return false, renamed(now, name)
	case named && !prepared:
		return false, &Refusal{Thing: "table " + name.String(), Problem: "another one has its name since the start",
			Cure: "start again when the table is as it should be: it is then compared with the state"}
	}
	return named, nil
}

// renamed refuses a mapped table that has another name since the start.
func renamed(from, to tableName) *Refusal {
	return &Refusal{
		Thing:   "table " + from.String(),
		Problem: "it was renamed to " + to.String(),
		Cure:    "give it its old name back, or put the new one into the mapping file",
	}
}

// equal reports whether both say the same.
func (t *tracked) equal(rel *Relation) bool {
	return t.Schema == rel.Schema && t.Name == rel.Name && t.Identity == rel.Identity &&
		slices.Equal(t.Columns, rel.Columns)
}

// explain fills in base and element types.
func (r *relations) explain(ctx context.Context, columns []Column) error {
	var unknown []uint32
	for _, column := range columns {
		if _, ok := r.typeOf(column.OID); !ok {
			unknown = append(unknown, column.OID)
		}
	}
	if len(unknown) > 0 {
		found, err := r.resolve(ctx, unknown)
		if err != nil {
			return err
		}
		for oid, t := range found {
			r.types[oid] = t
		}
	}
	for i := range columns {
		if t, ok := r.typeOf(columns[i].OID); ok {
			columns[i].Base, columns[i].Elem, columns[i].Delim = t.Base, t.Elem, t.Delim
		}
	}
	return nil
}

func (r *relations) typeOf(oid uint32) (columnType, bool) {
	if oid < firstUserOID {
		return builtinType(oid), true
	}
	t, ok := r.types[oid]
	return t, ok
}

// learn takes in a TYPE message: the base type of a domain as it was when the
// rows were written, even if the domain is gone by now. It serves where that is
// a type of every server; the others are left to the catalog.
func (r *relations) learn(body []byte) error {
	name, err := decodeType(body)
	if err != nil {
		return err
	}
	if len(name.schema) > 0 {
		return nil
	}
	if oid, ok := builtinOID(string(name.name)); ok {
		r.types[name.oid] = builtinType(oid)
	}
	return nil
}
