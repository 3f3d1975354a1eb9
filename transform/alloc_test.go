package transform_test

import (
	"fmt"
	"testing"

	"backstory/capture"
	"backstory/transform"
)

// memoryOne is a state of one aggregate that does not allocate.
type memoryOne struct {
	entry transform.Entry
	image []byte
}

func (m *memoryOne) Get(uint16, []byte) (transform.Entry, bool, error) { return m.entry, true, nil }

func (m *memoryOne) Put(_ uint16, _ []byte, e transform.Entry) error {
	if e.Image != nil {
		m.image = append(m.image[:0], e.Image...)
		e.Image = m.image
	}
	m.entry = e
	return nil
}

func (m *memoryOne) Again(uint16, []byte) error { return nil }

func (m *memoryOne) OldImage(capture.Position) []byte { return nil }

func (m *memoryOne) SetOldImage(capture.Position, []byte) {}

// wide is a table of ten columns, and a row of it.
func wide() (rel *capture.Relation, row func(price, stock, updated string) []string) {
	rel = products()
	rel.Columns = append(rel.Columns, oneColumn("sku", oidText, false), oneColumn("currency", 1042, false),
		oneColumn("attributes", 3802, false), oneColumn("updated_at", oidTimestampTZ, false), oneColumn("active", 16, false))
	return rel, func(price, stock, updated string) []string {
		return []string{"123456", "Product 123456 a9f3c1b2d4e5", price, stock,
			"Article 123456 - 0cc175b9c0f1b6a831c399e269772661 92eb5ffee6ae2fec3ad71c777531578f robust, tested, ships in two days.",
			"SKU-000123456", "EUR", `{"ean": "4444444123456", "tags": ["a6", "b16"], "color": "red", "weight_g": 3456}`,
			"2026-01-01 00:00:00." + updated + "+00", "t"}
	}
}

// life is an insert, updates that match one rule, two and none, with and without
// the large column, and a delete.
func life() (changes []*capture.Change, events int) {
	rel, row := wide()
	toasted := row("17.90", "41", "4")
	toasted[4] = unchanged
	changes = []*capture.Change{
		insertion(rel, at(1, 1), row("19.90", "42", "1")...),
		updating(rel, at(1, 1), row("18.90", "42", "1")...),
		updating(rel, at(1, 1), row("17.90", "41", "2")...),
		updating(rel, at(1, 1), row("17.90", "41", "3")...),
		updating(rel, at(1, 1), toasted...),
		updating(rel, at(1, 1), toasted...),
		deletion(rel, at(1, 1), "123456"),
	}
	for _, c := range changes {
		c.Context = &capture.Context{Reason: []byte(`"spring sale"`), Actor: "ann"}
	}
	return changes, 1 + 1 + 3 + 1 + 1 + 0 + 1
}

// lives returns a function that lets the aggregate live once. The output is
// reset as a bridge does between batches.
func lives(tb testing.TB, changes []*capture.Change, want int) func() {
	tb.Helper()
	tr := transform.New(mustMapping(tb, productsMapping), identity)
	st := &memoryOne{}
	var out transform.Output
	n := 0
	return func() {
		if n%1000 == 0 {
			out.Reset()
		}
		before := len(out.Events)
		for _, c := range changes {
			n++
			c.Pos = at(capture.LSN(n+1), 1)
			if err := tr.Apply(&out, c, st); err != nil {
				tb.Fatal(err)
			}
		}
		if got := len(out.Events) - before; got != want {
			tb.Fatalf("got %d events, want %d", got, want)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	changes, events := life()
	live := lives(t, changes, events)
	for range 3000 {
		live()
	}
	if got := testing.AllocsPerRun(3000, live); got != 0 {
		t.Errorf("got %v allocations in %d changes, want 0", got, len(changes))
	}
}

func TestNoAllocationsInTruncate(t *testing.T) {
	rel, row := wide()
	tr := transform.New(mustMapping(t, productsMapping), identity)
	table, key := tr.Table(rel), []byte("123456")
	st := &memoryOne{}
	var out transform.Output
	insert := insertion(rel, at(1, 1), row("19.90", "42", "1")...)
	n := 0
	truncate := func() {
		if n%1000 == 0 {
			out.Reset()
		}
		insert.Pos = at(capture.LSN(n+1), 1)
		if err := tr.Apply(&out, insert, st); err != nil {
			t.Fatal(err)
		}
		at := capture.Change{Op: capture.OpTruncate, Pos: at(capture.LSN(n+2), 1), Relation: rel}
		if err := tr.Remove(&out, table, key, at, transform.Truncated, st); err != nil {
			t.Fatal(err)
		}
		n += 2
	}
	for range 3000 {
		truncate()
	}
	if got := testing.AllocsPerRun(3000, truncate); got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

func BenchmarkUpdate(b *testing.B) {
	rel, row := wide()
	tr := transform.New(mustMapping(b, productsMapping), identity)
	st := &memoryOne{}
	var out transform.Output
	if err := tr.Apply(&out, insertion(rel, at(1, 1), row("19.90", "42", "1")...), st); err != nil {
		b.Fatal(err)
	}
	changes := make([]*capture.Change, 16)
	for i := range changes {
		changes[i] = updating(rel, at(2, 1), row(fmt.Sprintf("%d.90", i), "42", fmt.Sprint(100000+i))...)
		changes[i].Context = &capture.Context{Reason: []byte(`"spring sale"`), Actor: "ann"}
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%1000 == 0 {
			out.Reset()
		}
		c := changes[n%len(changes)]
		c.Pos = at(capture.LSN(n+3), 1)
		if err := tr.Apply(&out, c, st); err != nil {
			b.Fatal(err)
		}
	}
}
