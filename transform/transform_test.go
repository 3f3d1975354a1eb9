package transform_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"backstory/capture"
	"backstory/transform"
)

// story runs changes against one state and writes down what comes of them.
type story struct {
	t     *testing.T
	tr    *transform.Transformer
	st    *memory
	out   transform.Output
	b     bytes.Buffer
	title string
}

func newStory(t *testing.T, mapping string) *story {
	t.Helper()
	return &story{t: t, tr: transform.New(mustMapping(t, mapping), identity), st: newMemory()}
}

// act applies a change and writes its events, Puts and Agains down.
func (s *story) act(title string, c *capture.Change) {
	s.t.Helper()
	s.begin(title)
	if c.Op == capture.OpRead {
		s.end(s.tr.Row(&s.out, c, s.st, true))
		return
	}
	s.end(s.tr.Apply(&s.out, c, s.st))
}

func (s *story) begin(title string) {
	s.out.Reset()
	s.st.puts, s.title = 0, title
	clear(s.st.again)
}

func (s *story) end(err error) {
	s.t.Helper()
	fmt.Fprintf(&s.b, "# %s\n", s.title)
	if err != nil {
		fmt.Fprintf(&s.b, "error: %v\n", err)
	}
	for i := range s.out.Events {
		writeEvent(&s.b, &s.out.Events[i])
	}
	for _, f := range s.out.Filled {
		fmt.Fprintf(&s.b, "filled: %q from %q\n", f.Key, f.From)
	}
	if s.out.Mismatches > 0 {
		m := s.out.Mismatch
		fmt.Fprintf(&s.b, "mismatch: %d, first %s %q %s at %s\n", s.out.Mismatches, m.Table, m.Key, m.Column, m.Pos)
	}
	for key := range s.st.again {
		fmt.Fprintf(&s.b, "again: %q\n", key)
	}
	if len(s.out.Events) == 0 && s.st.puts == 0 {
		s.b.WriteString("nothing\n")
	} else {
		for _, key := range s.st.keys() {
			e := s.st.entries[key]
			fmt.Fprintf(&s.b, "state: %q v%d %s xid=%d %s\n",
				key, e.Version, transform.AppendSequence(nil, e.Place), e.XID, e.Image)
		}
	}
	s.b.WriteByte('\n')
}

func writeEvent(b *bytes.Buffer, e *transform.Event) {
	fmt.Fprintf(b, "%s %q v%d %s op=%s", e.Type, e.Key, e.Version, transform.AppendSequence(nil, e.Place), e.Op)
	if e.XID != 0 {
		fmt.Fprintf(b, " xid=%d", e.XID)
	}
	if e.Cause != transform.NoCause {
		fmt.Fprintf(b, " cause=%s", e.Cause)
	}
	if e.Related != nil {
		fmt.Fprintf(b, " related=%q", e.Related)
	}
	if e.Context != nil {
		fmt.Fprintf(b, " actor=%s", e.Context.Actor)
	}
	fmt.Fprintf(b, "\n  id    %s\n  time  %s\n  data  %s\n", e.ID, time.UnixMicro(e.Time).UTC().Format("2006-01-02T15:04:05.000000Z"), e.Data)
}

func TestEvents(t *testing.T) {
	t.Parallel()
	rel := products()
	s := newStory(t, productsMapping)
	s.act("insert", insertion(rel, at(0x10, 1), "1", "Lamp", "19.90", "5", "A long text"))
	s.act("the same insert, redelivered", insertion(rel, at(0x10, 1), "1", "Lamp", "19.90", "5", "A long text"))
	c := updating(rel, at(0x20, 1), "1", "Lamp", "17.90", "5", unchanged)
	c.Context = &capture.Context{Reason: []byte(`"spring sale"`), Actor: "ann"}
	s.act("update of the price, large column left out", c)
	s.act("update of everything: one event for each rule, Updated last",
		updating(rel, at(0x30, 1), "1", "Desk lamp", "18.00", "4", "Another text"))
	s.act("update of nothing", updating(rel, at(0x30, 2), "1", "Desk lamp", "18.00", "4", unchanged))
	s.act("1.10 is not 1.100", updating(rel, at(0x30, 3), "1", "Desk lamp", "18.000", "4", unchanged))
	s.act("a change below the place is passed over", updating(rel, at(0x20, 1), "1", "Lamp", "17.90", "5", unchanged))
	s.act("insert of a key that exists", insertion(rel, at(0x31, 1), "1", "Desk lamp", "18.000", "3", null))
	mv := updating(rel, at(0x40, 1), "2", "Desk lamp", "18.000", "3", unchanged)
	mv.Old = keyTuple(rel, "1")
	s.act("changed key", mv)
	s.act("changed key, redelivered", mv)
	s.act("delete", deletion(rel, at(0x50, 1), "2"))
	s.act("delete, redelivered", deletion(rel, at(0x50, 1), "2"))
	s.act("delete of a deleted key is noted and keeps the version", deletion(rel, at(0x51, 1), "2"))
	s.act("a key that comes back goes on counting", insertion(rel, at(0x52, 1), "2", "Lamp", "1.00", "1", null))
	s.begin("truncate")
	truncate := capture.Change{Op: capture.OpTruncate, Pos: at(0x60, 1), XID: 701, Time: commitTime, Relation: rel}
	s.end(s.tr.Remove(&s.out, s.tr.Table(rel), []byte("2"), truncate, transform.Truncated, s.st))
	s.begin("truncate, redelivered")
	s.end(s.tr.Remove(&s.out, s.tr.Table(rel), []byte("2"), truncate, transform.Truncated, s.st))
	golden(t, "events.golden", s.b.Bytes())
}

func TestUnknownKeys(t *testing.T) {
	t.Parallel()
	rel := products()
	s := newStory(t, productsMapping)
	s.act("update of an unknown key", updating(rel, at(0x10, 1), "1", "Lamp", "19.90", "5", "text"))
	s.act("update of an unknown key that can't be completed", updating(rel, at(0x10, 2), "2", "Lamp", "19.90", "5", unchanged))
	s.act("delete of an unknown key", deletion(rel, at(0x10, 3), "3"))
	mv := updating(rel, at(0x10, 4), "5", "Lamp", "19.90", "5", "text")
	mv.Old = keyTuple(rel, "4")
	s.act("changed key, the old one unknown", mv)
	mv = updating(rel, at(0x10, 5), "7", "Lamp", "19.90", "5", unchanged)
	mv.Old = keyTuple(rel, "6")
	s.act("changed key, the old one unknown, not to be completed", mv)
	s.act("row of a noted key", reading(rel, 0x20, "2", "Lamp", "19.90", "5", "text"))
	s.act("equal row", reading(rel, 0x21, "2", "Lamp", "19.90", "5", "text"))
	s.act("different row", reading(rel, 0x22, "2", "Lamp", "20.00", "4", "text"))
	s.act("row below the place of its aggregate", reading(rel, 0x21, "2", "Lamp", "20.00", "5", "text"))
	s.act("delete", deletion(rel, at(0x30, 1), "2"))
	s.act("row of a deleted aggregate", reading(rel, 0x31, "2", "Lamp", "20.00", "4", "text"))
	s.begin("row that is gone")
	gone := capture.Change{Op: capture.OpRead, Pos: capture.Position{LSN: 0x32, Index: 9}, Time: commitTime}
	s.end(s.tr.Remove(&s.out, s.tr.Table(rel), []byte("2"), gone, transform.Reconciliation, s.st))
	s.act("update of a deleted aggregate", updating(rel, at(0x33, 1), "2", "Lamp", "20.00", "4", "text"))
	golden(t, "unknown.golden", s.b.Bytes())
}

func TestFullIdentity(t *testing.T) {
	t.Parallel()
	rel := products()
	rel.Identity = 'f'
	s := newStory(t, productsMapping)
	full := func(c *capture.Change, old ...string) *capture.Change {
		c.Old, c.OldFull = tuple(old...), true
		return c
	}
	s.act("insert", insertion(rel, at(0x10, 1), "1", "Lamp", "19.90", "5", "text"))
	s.act("update with the old row", full(updating(rel, at(0x11, 1), "1", "Lamp", "17.90", "5", unchanged),
		"1", "Lamp", "19.90", "5", "text"))
	s.act("the old row differs: the state missed a change of the large column and the stock",
		full(updating(rel, at(0x12, 1), "1", "Lamp", "16.90", "4", unchanged), "1", "Lamp", "17.90", "4", "new text"))
	mv := full(updating(rel, at(0x13, 1), "2", "Lamp", "16.90", "4", unchanged), "1", "Lamp", "16.90", "4", "new text")
	s.act("changed key", mv)
	s.act("changed key of an unknown aggregate: the old row has what is missing",
		full(updating(rel, at(0x14, 1), "4", "Lamp", "16.90", "4", unchanged), "3", "Lamp", "16.90", "4", "old text"))
	s.act("delete, the old row differs", full(&capture.Change{Op: capture.OpDelete, Pos: at(0x15, 1), XID: 700,
		Time: commitTime, Relation: rel}, "2", "Lamp", "16.90", null, "new text"))
	golden(t, "full.golden", s.b.Bytes())
}

func TestSchemaChanges(t *testing.T) {
	t.Parallel()
	rel := products()
	s := newStory(t, productsMapping)
	s.act("insert", insertion(rel, at(0x10, 1), "1", "Lamp", "19.90", "5", "text"))
	added := products()
	added.Columns = append(added.Columns, oneColumn("colour", oidText, false))
	s.act("column added", updating(added, at(0x20, 1), "1", "Lamp", "19.90", "5", unchanged, "red"))
	dropped := products()
	dropped.Columns = append(dropped.Columns[:2:2], oneColumn("stock", oidInt4, false), oneColumn("info", oidText, false))
	s.act("price and colour dropped, description renamed", updating(dropped, at(0x30, 1), "1", "Lamp", "5", "text"))
	s.act("null once", updating(dropped, at(0x40, 1), "1", "Lamp", "4", "text"))
	large := products()
	large.Columns = append(large.Columns, oneColumn("manual", oidText, false))
	s.act("a large column that the state does not have", updating(large, at(0x50, 1), "1", "Lamp", "1", "4", "text", unchanged))
	clash := newStory(t, `tables: [{table: products, aggregate: Product, key: [id], fields: {price: info}}]`)
	both := products()
	both.Columns = append(both.Columns, oneColumn("info", oidText, false))
	clash.act("two columns become one field", insertion(both, at(0x10, 1), "1", "Lamp", "19.90", "5", "text", "x"))
	s.b.Write(clash.b.Bytes())
	golden(t, "schema.golden", s.b.Bytes())
}

func TestReason(t *testing.T) {
	t.Parallel()
	rel := products()
	s := newStory(t, `
type_prefix: com.example.
tables:
  - table: products
    aggregate: Product
    key: [id, name]
    fields: {price: amount}
    omit: [stock]
    reason: {column: description}
    events: [{type: PriceChanged, when: [amount]}]
`)
	said := &capture.Context{Reason: []byte(`{"code": 7}`), Actor: "ben"}
	with := func(c *capture.Change) *capture.Change { c.Context = said; return c }
	s.act("the column's reason, before the context's", with(insertion(rel, at(0x10, 1), "1", "a/b", "1", "5", "first \"price\"")))
	s.act("the context's, where the column is null", with(updating(rel, at(0x20, 1), "1", "a/b", "2", "5", null)))
	s.act("the context's, where the column is left out", with(updating(rel, at(0x20, 2), "1", "a/b", "3", "5", unchanged)))
	s.act("a change of the reason alone is none", with(updating(rel, at(0x20, 3), "1", "a/b", "3", "5", "why")))
	s.act("a change of an omitted column is none", updating(rel, at(0x20, 4), "1", "a/b", "3", "9", "why"))
	s.act("the row's, where it stands there as before", with(updating(rel, at(0x20, 5), "1", "a/b", "4", "9", "why")))
	s.act("none, where the column is left out and nothing is said", updating(rel, at(0x20, 6), "1", "a/b", "5", "9", unchanged))
	full := with(updating(rel, at(0x20, 7), "1", "a/b", "6", "9", unchanged))
	full.Old, full.OldFull = updating(rel, at(0x20, 7), "1", "a/b", "5", "9", "as before").New, true
	s.act("the old row's, where that is whole and the new one leaves it out", full)
	last := with(deletion(rel, at(0x30, 1), "1"))
	last.Old[1] = capture.Value{Kind: capture.Text, Data: []byte("a/b")}
	s.act("a delete has the context's", last)
	golden(t, "reason.golden", s.b.Bytes())
}

func TestApplyRefuses(t *testing.T) {
	t.Parallel()
	rel := products()
	other := products()
	other.Name = "orders"
	keyless := products()
	keyless.Columns[0].Name = "number"
	noKey := deletion(rel, at(0x10, 1), "1")
	noKey.Old[0].Kind = capture.Absent
	for _, tt := range []struct {
		name   string
		change *capture.Change
		want   string
		usage  bool
	}{
		{"unmapped", insertion(other, at(0x10, 1), "1", "", "1", "1", ""), "0/10 change 1: table public.orders: the table is not mapped", false},
		{"lost key", insertion(keyless, at(0x10, 1), "1", "", "1", "1", ""), `lost its key column "id"`, true},
		{"null key", insertion(rel, at(0x10, 1), null, "", "1", "1", ""), `key column "id" is null`, false},
		{"no key", noKey, `key column "id" is not in the row`, false},
		{"short row", insertion(rel, at(0x10, 1), "1"), "has 1 values, the table 5 columns", false},
		{"truncate", &capture.Change{Op: capture.OpTruncate, Relation: rel, New: tuple("1", "", "1", "1", "")}, "truncate", false},
		{"absent", insertion(rel, at(0x10, 1), "1", absent, "1", "1", ""), `field "name"`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out transform.Output
			err := transform.New(mustMapping(t, productsMapping), identity).Apply(&out, tt.change, newMemory())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want an error with %q", err, tt.want)
			}
			var u interface{ Usage() bool }
			if got := errors.As(err, &u); got != tt.usage {
				t.Errorf("got usage %v, want %v", got, tt.usage)
			}
		})
	}
}

// The slices of events stay as they are while the output grows.
func TestOutputKeepsBytes(t *testing.T) {
	t.Parallel()
	rel := products()
	tr := transform.New(mustMapping(t, productsMapping), identity)
	var out transform.Output
	for round := range 2 {
		out.Reset()
		st := newMemory()
		for i := range uint32(2000) {
			c := insertion(rel, at(0x10, i+1), fmt.Sprint(i), "n", "1", "1", strings.Repeat("x", int(i%9)*20_000))
			c.Context = &capture.Context{Actor: fmt.Sprint(i)}
			if err := tr.Apply(&out, c, st); err != nil {
				t.Fatal(err)
			}
		}
		for i, e := range out.Events {
			want := st.entries[fmt.Sprint(i)].Image
			if string(e.Key) != fmt.Sprint(i) || e.Context.Actor != fmt.Sprint(i) || !bytes.Equal(e.State, want) {
				t.Fatalf("round %d: event %d is of %q by %s, or its bytes changed", round, i, e.Key, e.Context.Actor)
			}
		}
		if out.Bytes() < 2000*80_000 {
			t.Errorf("got %d bytes, want those of all events", out.Bytes())
		}
	}
}
