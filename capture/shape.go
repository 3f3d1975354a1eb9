package capture

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Shape is a mapped table as a look at the catalog found it, and since when each of
// its columns has been what it is. Who streams keeps the newest one of each table and
// gives it to the next [Database.Prepare] and Open by [Shape.Follow] and
// [Database.Recall]: what a RELATION message says of a table is not enough to tell
// whether a column is the one of before.
type Shape struct {
	Schema  string                `json:"schema"` // as the mapping names the table
	Name    string                `json:"name"`
	Table   uint32                `json:"table"`   // pg_class OID
	Storage string                `json:"storage"` // filenodes; each rewrite of the table changes them
	Columns []ShapeColumn         `json:"columns"` // those that are published, in attnum order
	Key     []int16               `json:"key"`     // attnums of the aggregate's key, in the order of the mapping
	Types   map[uint32]ColumnType `json:"types,omitempty"`
	// Former is the shape before, without its own Former: WAL may still have it. nil:
	// there was no other.
	Former *Shape `json:"former,omitempty"`
	// Changed is when a look found the newest change, in seconds since 1970; 0: never.
	Changed int64 `json:"changed,omitempty"`
	// At is the position of that look: what commits there or above was written under
	// the shape as it is.
	At LSN `json:"at,omitempty"`
	// Names are those columns that are not what they were before the newest change.
	Names []string `json:"names,omitempty"`
}

// ShapeColumn is a column of a Shape.
type ShapeColumn struct {
	Num     int16  `json:"num"` // attnum: what a column is through all renamings
	Name    string `json:"name"`
	OID     uint32 `json:"oid"` // type as declared
	Mod     int32  `json:"mod"`
	Version string `json:"version"` // of its row in the catalog
	Filled  bool   `json:"filled,omitempty"`
	Since   LSN    `json:"since,omitempty"` // as in Column
}

// shape is what a look found of the table, which the publication has as member.
func (t *tableFacts) shape(types map[uint32]ColumnType, member memberFacts) Shape {
	s := Shape{Schema: t.ref.Schema, Name: t.ref.Name, Table: t.oid, Storage: t.storage(), Types: map[uint32]ColumnType{}}
	for _, c := range t.columns {
		if c.generated || member.list && !slices.Contains(member.columns, c.name) {
			continue
		}
		s.Columns = append(s.Columns, ShapeColumn{Num: c.num, Name: c.name, OID: c.oid, Mod: c.mod, Version: c.version, Filled: c.filled})
		if found, ok := types[c.oid]; ok && c.oid >= firstUserOID {
			s.Types[c.oid] = found
		}
	}
	for _, name := range t.key() {
		if i := slices.IndexFunc(t.columns, func(c columnFacts) bool { return c.name == name }); i >= 0 {
			s.Key = append(s.Key, t.columns[i].num)
		}
	}
	return s
}

// storage names the files that have the table's rows.
func (t *tableFacts) storage() string {
	if t.kind != kindPartitioned {
		return t.filenode
	}
	nodes := make([]string, len(t.partitions))
	for i, leaf := range t.partitions {
		nodes[i] = leaf.filenode
	}
	return strings.Join(nodes, " ")
}

// Follow is the shape that a look found, after the one that was known before: a
// column keeps its Since if it provably is what it was, else it counts from seen on.
// What commits at seen or above was written under what the look saw, or later. now is
// the time of the look in seconds since 1970. Without a former shape every column has
// been what it is for ever.
func (s Shape) Follow(was *Shape, seen LSN, now int64) Shape {
	if was == nil {
		return s
	}
	s.Types = maps.Clone(s.Types)
	for oid, t := range was.Types {
		if _, ok := s.Types[oid]; !ok {
			s.Types[oid] = t
		}
	}
	s.Columns = slices.Clone(s.Columns)
	var changed []string
	for i := range s.Columns {
		c := &s.Columns[i]
		before := was.column(c.Num)
		switch {
		case s.Table != was.Table || before == nil || !c.same(before) || was.rewrote(&s, before, c):
			c.Since = seen
			changed = append(changed, c.Name)
		default:
			c.Since = min(before.Since, seen) // above: of another history
		}
	}
	for _, c := range was.Columns {
		if s.column(c.Num) == nil {
			changed = append(changed, c.Name)
		}
	}
	s.Changed, s.At, s.Names, s.Former = was.Changed, min(was.At, seen), was.Names, was.Former
	if len(changed) > 0 {
		slices.Sort(changed)
		s.Changed, s.At, s.Names = now, seen, slices.Compact(changed)
	}
	if s.Table != was.Table || !slices.EqualFunc(s.Columns, was.Columns, func(a, b ShapeColumn) bool { return a.Num == b.Num && a.same(&b) }) {
		former := *was
		former.Former, former.Types = nil, nil
		s.Former = &former
	}
	return s
}

// same reports whether both look the same in a RELATION message.
func (c *ShapeColumn) same(d *ShapeColumn) bool {
	return c.Name == d.Name && c.OID == d.OID && c.Mod == d.Mod
}

// rewrote reports whether ALTER TYPE has rewritten the column on the way to another
// shape. It gives the table new files and the column a new row in the catalog;
// TRUNCATE and VACUUM FULL do the first only, SET STATISTICS the second.
func (s *Shape) rewrote(now *Shape, before, after *ShapeColumn) bool {
	return s.Storage != now.Storage && before.Version != after.Version
}

// column finds a column by its attnum; nil if there is none.
func (s *Shape) column(num int16) *ShapeColumn {
	i := slices.IndexFunc(s.Columns, func(c ShapeColumn) bool { return c.Num == num })
	if i < 0 {
		return nil
	}
	return &s.Columns[i]
}

// Equal reports whether both say the same.
func (s *Shape) Equal(t *Shape) bool {
	if s == nil || t == nil {
		return s == t
	}
	return s.Schema == t.Schema && s.Name == t.Name && s.Table == t.Table && s.Storage == t.Storage &&
		s.Changed == t.Changed && s.At == t.At && slices.Equal(s.Columns, t.Columns) && slices.Equal(s.Key, t.Key) &&
		maps.EqualFunc(s.Types, t.Types, sameType) && s.Former.Equal(t.Former)
}

func sameType(a, b ColumnType) bool {
	return a.Base == b.Base && a.Elem == b.Elem && a.Delim == b.Delim && a.Inner.equal(b.Inner)
}

// SameKey reports whether the key is made of the same columns of the same table,
// whatever their names.
func (s *Shape) SameKey(was *Shape) bool {
	return s.Table == was.Table && slices.Equal(s.Key, was.Key)
}

// KeyChange says why the text of a row's key may not be what it was under the former
// shape, although no row was changed; empty if it is.
func (s *Shape) KeyChange(was *Shape) string {
	if s.Table != was.Table {
		return "" // another table: its rows are compared anyway
	}
	if !slices.Equal(s.Key, was.Key) {
		return fmt.Sprintf("its key was made of other columns (%s) and is now of %s", strings.Join(was.keyNames(), ", "), strings.Join(s.keyNames(), ", "))
	}
	for _, num := range s.Key {
		before, after := was.column(num), s.column(num)
		switch {
		case before == nil || after == nil:
		case before.OID == after.OID && before.Mod == after.Mod:
			if was.rewrote(s, before, after) {
				return fmt.Sprintf("its key column %s was rewritten", after.Name)
			}
		case was.base(before.OID) == s.base(after.OID) && before.Mod == after.Mod: // a domain came or went
		case !sameText(was.base(before.OID), s.base(after.OID)):
			return fmt.Sprintf("the type of its key column %s was changed", after.Name)
		}
	}
	return ""
}

// keyNames are the key's columns by name.
func (s *Shape) keyNames() []string {
	names := make([]string, len(s.Key))
	for i, num := range s.Key {
		names[i] = "?"
		if c := s.column(num); c != nil {
			names[i] = c.Name
		}
	}
	return names
}

// base unwraps the domains of a column's type.
func (s *Shape) base(oid uint32) uint32 {
	if t, ok := s.Types[oid]; ok {
		return t.Base
	}
	return oid
}

// Types whose values print alike.
var (
	integerTypes = []uint32{20, 21, 23}
	textTypes    = []uint32{25, 1043}
)

// sameText reports whether a value prints the same as either type, whatever the
// type modifiers.
func sameText(a, b uint32) bool {
	for _, family := range [][]uint32{integerTypes, textTypes} {
		if slices.Contains(family, a) && slices.Contains(family, b) {
			return true
		}
	}
	return false
}

// announcedBy reports whether a RELATION message has exactly these columns.
func (s *Shape) announcedBy(rel *Relation) bool {
	return slices.EqualFunc(s.Columns, rel.Columns, func(c ShapeColumn, d Column) bool {
		return c.Name == d.Name && c.OID == d.OID && c.Mod == d.Mod
	})
}

// survives reports whether every column of the shape is in the later one, too: then
// nothing that looks like it can have been made of other columns.
func (s *Shape) survives(later *Shape) bool {
	return !slices.ContainsFunc(s.Columns, func(c ShapeColumn) bool { return later.column(c.Num) == nil })
}

// doubt says that until now, and up to the position, rows were written under a shape
// that nobody has seen: no column need have been the one of its name.
func (s *Shape) doubt(up LSN) {
	s.Columns = slices.Clone(s.Columns)
	for i := range s.Columns {
		s.Columns[i].Since = max(s.Columns[i].Since, up)
	}
}

// fit fills in which columns of a RELATION message are the key, and since when each
// has been what it is. It returns false where the message is of a shape that was never
// seen; then a column's name says nothing.
func (s *Shape) fit(rel *Relation) bool {
	var of *Shape
	switch {
	case s.announcedBy(rel):
		of = s
	case s.Former != nil && s.Former.announcedBy(rel) && s.Former.survives(s):
		of = s.Former
	}
	if of == nil {
		for i := range rel.Columns {
			rel.Columns[i].Since = Never
		}
		rel.KeyColumns = s.findKey(rel)
		return false
	}
	nums := make([]int16, len(of.Columns))
	for i := range of.Columns {
		nums[i] = of.Columns[i].Num
		c := &rel.Columns[i]
		c.Since = Never
		if now := s.column(nums[i]); now != nil && now.same(&of.Columns[i]) {
			c.Since, c.Filled = now.Since, now.Filled
		}
	}
	rel.KeyColumns = nil
	for _, num := range s.Key {
		if at := slices.Index(nums, num); at >= 0 {
			rel.KeyColumns = append(rel.KeyColumns, at)
		}
	}
	if len(rel.KeyColumns) != len(s.Key) {
		rel.KeyColumns = nil
	}
	return true
}

// findKey looks for the key in a RELATION message of a shape that was never seen: by
// the names that the key has or had, if the message says that they identify a row;
// else by what it says identifies a row, if that can only be the key. nil: it is not
// to be found.
func (s *Shape) findKey(rel *Relation) []int {
	for _, of := range []*Shape{s, s.Former} {
		if of == nil {
			continue
		}
		key := rel.indexes(of.keyNames())
		if key != nil && !slices.ContainsFunc(key, func(i int) bool { return !rel.Columns[i].Key }) {
			return key
		}
	}
	for _, of := range []*Shape{s, s.Former} {
		if of != nil && rel.unflagged(of.keyNames()) {
			return nil // the key is there, and the identity is another
		}
	}
	var flagged []int
	for i := range rel.Columns {
		if rel.Columns[i].Key {
			flagged = append(flagged, i)
		}
	}
	if rel.Identity == identityFull || len(flagged) != len(s.Key) {
		return nil
	}
	key := make([]int, len(s.Key))
	for i, rank := range ranks(s.Key) {
		key[i] = flagged[rank]
	}
	return key
}

// ranks says for each number how many of the others are smaller.
func ranks(nums []int16) []int {
	sorted := slices.SortedFunc(slices.Values(nums), cmp.Compare[int16])
	out := make([]int, len(nums))
	for i, n := range nums {
		out[i] = slices.Index(sorted, n)
	}
	return out
}
