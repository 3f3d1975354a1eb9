package capture

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// relations knows the tables of one session as its RELATION messages describe
// them. A table is described before its first row and again after every change
// of it, also inside a transaction.
type relations struct {
	byName  map[tableName]TableRef // the mapped tables
	catalog catalog                // where Prepare found them
	known   map[uint32]*tracked    // described so far
	last    *tracked               // of the row before: most rows follow one of the same table
	types   map[uint32]ColumnType  // explained so far
	names   map[uint32]typeName    // of types that TYPE messages named and did not explain
	resolve typeResolver           // for the types that pgoutput does not explain
	charset *charset               // of the names

	look    lookAgain         // nil: nobody can look
	looked  span              // when the newest look was
	shapes  map[uint32]*Shape // of the mapped tables, by OID; as the newest look found them
	changed []Shape           // that nobody was told of yet
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
type typeResolver func(ctx context.Context, oids []uint32) (map[uint32]ColumnType, error)

// newRelations tracks the given tables.
func newRelations(tables []TableRef, catalog catalog, resolve typeResolver) *relations {
	r := &relations{
		byName:  make(map[tableName]TableRef, len(tables)),
		catalog: catalog,
		known:   make(map[uint32]*tracked),
		types:   make(map[uint32]ColumnType),
		names:   make(map[uint32]typeName),
		resolve: resolve,
		shapes:  make(map[uint32]*Shape),
	}
	for _, t := range tables {
		r.byName[tableName{t.Schema, t.Name}] = t
	}
	return r
}

// begin takes in the look that the session begins with, and the shapes that it found.
func (r *relations) begin(look lookAgain, at span, shapes []Shape) {
	r.look, r.looked = look, at
	for i := range shapes {
		r.shapes[shapes[i].Table] = &shapes[i]
	}
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
// given position. The server sends one before the first row behind every ALTER of the
// table or its publication, so it is the place to look both up, before the rows are
// passed on; the error is then a *Refusal where they are not what they were. A
// description that equals the one before keeps its address, so that nobody has to plan
// for it again.
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
		if err := r.lookUp(ctx, commit); err != nil {
			return err
		}
		if err := r.interpret(ctx, rel); err != nil {
			return err
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
	_, named := r.byName[name]
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
	return t.Schema == rel.Schema && t.Name == rel.Name && t.Identity == rel.Identity && t.Problem == rel.Problem && t.Unseen == rel.Unseen &&
		slices.Equal(t.KeyColumns, rel.KeyColumns) && slices.EqualFunc(t.Columns, rel.Columns, sameColumn)
}

func sameColumn(a, b Column) bool {
	inner := a.Inner.equal(b.Inner)
	a.Inner, b.Inner = nil, nil
	return inner && a == b
}

// interpret fills in what a RELATION message does not say: what the types come down
// to, which columns are the key, and since when each is what it is.
func (r *relations) interpret(ctx context.Context, rel *Relation) error {
	ref := r.byName[tableName{rel.Schema, rel.Name}]
	shape := r.shapes[rel.ID]
	if err := r.explain(ctx, rel, shape, ref.Omit); err != nil {
		return fmt.Errorf("types of table %s: %w", ref, err)
	}
	if shape == nil {
		return nil // nobody has looked: the key is where its names are
	}
	if rel.Unseen = !shape.fit(rel); rel.Unseen {
		doubted := *shape
		if doubted.doubt(r.looked.after); !doubted.Equal(shape) {
			*shape = doubted
			r.changed = append(r.changed, doubted)
		}
	}
	if rel.KeyColumns == nil && rel.Problem == "" {
		rel.Problem = fmt.Sprintf("its key (%s) is not to be found among the columns that it had then", strings.Join(shape.keyNames(), ", "))
	}
	return nil
}

// explain fills in base and element types: as the catalog has them, else as the
// shapes of before do, else as TYPE messages say. Where nothing tells whether a
// value is an array, the relation has a problem.
func (r *relations) explain(ctx context.Context, rel *Relation, shape *Shape, omit []string) error {
	if err := r.resolveTypes(ctx, rel.Columns, shape); err != nil {
		return err
	}
	for i := range rel.Columns {
		c := &rel.Columns[i]
		t, ok := r.typeOf(c.OID)
		if ok {
			c.comeDownTo(t)
			continue
		}
		name, named := r.names[c.OID]
		if array := !named || bytes.HasPrefix(name.name, []byte("_")); array && !slices.Contains(omit, c.Name) {
			rel.Problem = fmt.Sprintf("column %s has type %s (OID %d), which was dropped since: whether its values are arrays, and of what, is not known",
				c.Name, name, c.OID)
		}
	}
	return nil
}

// resolveTypes looks up the types that nothing explained so far.
func (r *relations) resolveTypes(ctx context.Context, columns []Column, shape *Shape) error {
	var unknown []uint32
	for _, column := range columns {
		if _, ok := r.typeOf(column.OID); !ok {
			unknown = append(unknown, column.OID)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	found, err := r.resolve(ctx, unknown)
	if err != nil {
		return err
	}
	maps.Copy(r.types, found)
	for _, oid := range unknown {
		if _, ok := r.types[oid]; ok || shape == nil {
			continue
		}
		if t, ok := shape.Types[oid]; ok {
			r.types[oid] = t
		}
	}
	return nil
}

func (r *relations) typeOf(oid uint32) (ColumnType, bool) {
	if oid < firstUserOID {
		return builtinType(oid), true
	}
	t, ok := r.types[oid]
	return t, ok
}

// learn takes in a TYPE message: the base type of a domain as it was when the
// rows were written, even if the domain is gone by now. It explains what comes down
// to a type of every server. Of others it tells the name: an array type's begins with
// an underscore, and what is none is written as text.
func (r *relations) learn(body []byte) error {
	name, err := decodeType(body)
	if err != nil {
		return err
	}
	if len(name.schema) > 0 {
		r.names[name.oid] = typeName{oid: name.oid, schema: bytes.Clone(name.schema), name: bytes.Clone(name.name)}
		return nil
	}
	if oid, ok := builtinOID(string(name.name)); ok {
		r.types[name.oid] = builtinType(oid)
	}
	return nil
}
