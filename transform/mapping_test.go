package transform_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"backstory/capture"
	"backstory/transform"
)

// shop is the database that the mapping files are bound to.
func shop() []capture.TableInfo {
	info := func(name string, key, generated []string, columns ...string) capture.TableInfo {
		rel := &capture.Relation{Schema: "public", Name: name}
		for _, c := range columns {
			rel.Columns = append(rel.Columns, oneColumn(c, oidText, false))
		}
		return capture.TableInfo{
			TableRef: capture.TableRef{Schema: "public", Name: name}, PrimaryKey: key, Relation: rel, Generated: generated,
		}
	}
	return []capture.TableInfo{
		info("products", []string{"id"}, []string{"twice"}, "id", "sku", "name", "unit_price", "image", "price_reason"),
		info("log", nil, nil, "line", "reason"),
		info("lines", []string{"order_id", "line"}, nil, "order_id", "line", "amount"),
	}
}

// Each bad file is refused with all of its mistakes, by place and nearest known
// name, in the order of the file.
func TestBadMappings(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/mapping/*.bad.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("got %d files, %v", len(files), err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			m, err := transform.ParseMapping(filepath.Base(path), data)
			if err == nil {
				err = m.Bind(shop())
			}
			var wrong *transform.MappingError
			if !errors.As(err, &wrong) {
				t.Fatalf("got %v, want a *MappingError", err)
			}
			golden(t, filepath.Join("mapping", strings.TrimSuffix(filepath.Base(path), ".yaml")+".txt"), []byte(err.Error()+"\n"))
		})
	}
}

func TestGoodMapping(t *testing.T) {
	t.Parallel()
	m, err := transform.LoadMapping("testdata/mapping/all.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, table := range m.Tables {
		fmt.Fprintf(&b, "%q %q: %s key %q slot %d\n  topics %+v\n  fields %v omit %v rules %v reason %q\n  types %s %s int64 text %v, replace %v\n",
			table.Schema, table.Name, table.Aggregate, table.Key, table.Slot, table.Topics, table.Fields, table.Omit, table.Rules,
			table.Reason, table.EventType("X"), table.StateType(), table.Int64Text, table.Replace)
	}
	for i, ref := range m.Refs() {
		if ref.Replace != m.Tables[i].Replace {
			t.Errorf("capture is told to replace: %t, want %t", ref.Replace, m.Tables[i].Replace)
		}
	}
	fmt.Fprintf(&b, "%+v\n", m.Refs())
	golden(t, "mapping/all.good.txt", []byte(b.String()))
}

// The parts of a mapping by slots have each table once, know of the others, and
// name places of the whole file.
func TestMappingBySlots(t *testing.T) {
	t.Parallel()
	m, err := transform.ParseMapping("m.yaml", []byte(`
tables:
  - {table: products, aggregate: Product}
  - {table: absent, aggregate: Absent, slot: 9}
  - {table: lines, aggregate: Line}
`))
	if err != nil {
		t.Fatal(err)
	}
	text := func(tables []*transform.Table) string { return fmt.Sprint(tables) }
	one, nine := m.OfSlot(1), m.OfSlot(9)
	got := fmt.Sprint(m.Slots(), text(m.Elsewhere()), text(one.Tables), text(one.Elsewhere()), text(nine.Tables), text(nine.Elsewhere()))
	const both, absent = "[public.products public.lines]", "[public.absent]"
	if want := fmt.Sprint([]int{1, 9}, "[]", both, absent, absent, both); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if err := one.Bind(shop()); err != nil {
		t.Errorf("bind the tables of slot 1: %v", err)
	}
	err = nine.Bind(shop())
	if want := "m.yaml:4:"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want a mistake at %s", err, want)
	}
}

func TestMappingFileMissing(t *testing.T) {
	t.Parallel()
	_, err := transform.LoadMapping("testdata/mapping/absent.yaml")
	var wrong *transform.MappingError
	if !errors.As(err, &wrong) || !wrong.Usage() || !strings.Contains(err.Error(), "absent.yaml") {
		t.Errorf("got %v, want a *MappingError that names the file", err)
	}
}

func TestBindTakesThePrimaryKey(t *testing.T) {
	t.Parallel()
	m, err := transform.ParseMapping("test.yaml", []byte("tables: [{table: lines, aggregate: Line}]"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a table is bound again when it has changed
		if err := m.Bind(shop()); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(m.Tables[0].Key); got != "[order_id line]" {
			t.Errorf("got key %s, want that of the table", got)
		}
	}
}

// The fingerprint changes with all that makes the bytes of events, and with
// nothing else.
func TestFingerprint(t *testing.T) {
	t.Parallel()
	const base = `tables: [{table: p, aggregate: P, key: [a, b], fields: {c: d}, omit: [e, f], reason: {column: r},
  events: [{type: X, when: [d, g]}, {type: Y, when: [h]}], topics: {events: x, latest: y}}]`
	print := func(text string) [32]byte { return mustMapping(t, text).Tables[0].Fingerprint() }
	replaced := func(pairs ...string) [32]byte {
		changed := strings.NewReplacer(pairs...).Replace(base)
		if changed == base {
			t.Fatalf("%q is not in the mapping", pairs)
		}
		return print(changed)
	}
	for _, pairs := range [][]string{
		{"latest: y", "latest: z, partitions: 9"}, {"[d, g]", "[g, d]"}, {"[e, f]", "[f, e]"}, {"{c: d}", "{c: d, x: x}"},
		{"column: r}", "column: r}, undecodable: refuse"},
	} {
		if replaced(pairs...) != print(base) {
			t.Errorf("%q changes the fingerprint", pairs)
		}
	}
	seen := map[[32]byte]string{print(base): "the base"}
	for _, pairs := range [][]string{
		{"table: p", "table: q"}, {"table: p", "table: s.p"}, {"aggregate: P", "aggregate: Q"}, {"[a, b]", "[b, a]"}, {"[a, b]", "[ab]"},
		{"{c: d}", "{c: i}"}, {"{c: d}", "{}"}, {"[e, f]", "[e]"}, {"column: r", "column: s"}, {"type: X", "type: Z"},
		{"[d, g]", "[d]"}, {"type: X", "type: Y", "type: Y", "type: X"}, {"tables:", "int64: string\ntables:"}, {"tables:", "type_prefix: a\ntables:"},
		{"column: r}", "column: r}, undecodable: replace"},
	} {
		print := replaced(pairs...)
		if before, ok := seen[print]; ok {
			t.Errorf("%q has the fingerprint of %s", pairs, before)
		}
		seen[print] = fmt.Sprint(pairs)
	}
}

func FuzzParseMapping(f *testing.F) {
	files, err := filepath.Glob("testdata/mapping/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := transform.ParseMapping("fuzz.yaml", data)
		if err != nil {
			var wrong *transform.MappingError
			if !errors.As(err, &wrong) || len(wrong.Mistakes) == 0 {
				t.Fatalf("got %v, want a *MappingError with mistakes", err)
			}
			return
		}
		if len(m.Tables) == 0 {
			t.Fatal("a mapping without tables was accepted")
		}
		for _, table := range m.Tables {
			if table.Schema == "" || table.Name == "" || table.Aggregate == "" || table.Topics.Events == table.Topics.Latest {
				t.Fatalf("accepted %+v", table)
			}
		}
		if err := m.Bind(shop()); err != nil {
			var wrong *transform.MappingError
			if !errors.As(err, &wrong) {
				t.Fatalf("got %v, want a *MappingError", err)
			}
		}
	})
}
