package transform_test

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"backstory/capture"
	"backstory/transform"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got to a file of testdata, or writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

// memory is a state in memory.
type memory struct {
	entries map[string]transform.Entry
	again   map[string]bool
	old     map[capture.Position][]byte
	puts    int
}

func newMemory() *memory {
	return &memory{entries: map[string]transform.Entry{}, again: map[string]bool{}, old: map[capture.Position][]byte{}}
}

func (m *memory) Get(_ uint16, key []byte) (transform.Entry, bool, error) {
	e, ok := m.entries[string(key)]
	return e, ok, nil
}

func (m *memory) Put(_ uint16, key []byte, e transform.Entry) error {
	m.puts++
	e.Image = bytes.Clone(e.Image)
	m.entries[string(key)] = e
	return nil
}

func (m *memory) Again(_ uint16, key []byte) error {
	m.again[string(key)] = true
	return nil
}

func (m *memory) OldImage(pos capture.Position) []byte { return m.old[pos] }

func (m *memory) SetOldImage(pos capture.Position, image []byte) {
	if image == nil {
		delete(m.old, pos)
		return
	}
	m.old[pos] = bytes.Clone(image)
}

func (m *memory) clone() *memory {
	return &memory{entries: maps.Clone(m.entries), again: maps.Clone(m.again), old: maps.Clone(m.old)}
}

func (m *memory) keys() []string { return slices.Sorted(maps.Keys(m.entries)) }

const (
	oidInt8        = 20
	oidInt4        = 23
	oidText        = 25
	oidNumeric     = 1700
	oidTimestampTZ = 1184
)

func oneColumn(name string, oid uint32, key bool) capture.Column {
	return capture.Column{Name: name, OID: oid, Base: oid, Key: key}
}

// products is the table of most tests: description is the large column.
func products() *capture.Relation {
	return &capture.Relation{ID: 1, Schema: "public", Name: "products", Identity: 'd', Columns: []capture.Column{
		oneColumn("id", oidInt8, true), oneColumn("name", oidText, false), oneColumn("price", oidNumeric, false),
		oneColumn("stock", oidInt4, false), oneColumn("description", oidText, false),
	}}
}

const productsMapping = `
tables:
  - table: products
    aggregate: Product
    key: [id]
    events:
      - {type: PriceChanged, when: [price]}
      - {type: StockAdjusted, when: [stock]}
`

func mustMapping(tb testing.TB, text string) *transform.Mapping {
	tb.Helper()
	m, err := transform.ParseMapping("test.yaml", []byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	for i, table := range m.Tables {
		table.ID = uint16(i + 1)
	}
	return m
}

var identity = capture.Identity{System: 7012345678901234567, Timeline: 1, Database: "legacy"}

// unchanged stands for an unchanged TOAST value, absent for a column that an old
// key tuple does not have, null for SQL NULL.
const (
	unchanged = "\x00unchanged"
	absent    = "\x00absent"
	null      = "\x00null"
)

func tuple(values ...string) []capture.Value {
	row := make([]capture.Value, len(values))
	for i, v := range values {
		switch v {
		case unchanged:
			row[i].Kind = capture.Unchanged
		case absent:
			row[i].Kind = capture.Absent
		case null:
			row[i].Kind = capture.Null
		default:
			row[i] = capture.Value{Kind: capture.Text, Data: []byte(v)}
		}
	}
	return row
}

func at(lsn capture.LSN, index uint32) capture.Position {
	return capture.Position{LSN: lsn, Kind: capture.KindChange, Index: index}
}

// commitTime is 2026-01-01T00:00:00.123456Z.
const commitTime = 1767225600123456

func insertion(rel *capture.Relation, pos capture.Position, row ...string) *capture.Change {
	return &capture.Change{Op: capture.OpInsert, Pos: pos, XID: 700, Time: commitTime, Relation: rel, New: tuple(row...)}
}

func updating(rel *capture.Relation, pos capture.Position, row ...string) *capture.Change {
	c := insertion(rel, pos, row...)
	c.Op = capture.OpUpdate
	return c
}

func deletion(rel *capture.Relation, pos capture.Position, key string) *capture.Change {
	c := insertion(rel, pos)
	c.Op, c.New, c.Old = capture.OpDelete, nil, keyTuple(rel, key)
	return c
}

func reading(rel *capture.Relation, lsn capture.LSN, row ...string) *capture.Change {
	c := insertion(rel, capture.Position{LSN: lsn, Kind: capture.KindBackfill, Index: 1}, row...)
	c.Op, c.XID = capture.OpRead, 0
	return c
}

func keyTuple(rel *capture.Relation, key string) []capture.Value {
	row := make([]capture.Value, len(rel.Columns))
	row[0] = capture.Value{Kind: capture.Text, Data: []byte(key)}
	return row
}
