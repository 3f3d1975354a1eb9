package capture

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is a table of one row whose columns come, go, change their names, types and
// contents, its WAL, and what a reader of that knows of the row.
type world struct {
	t       *rapid.T
	columns []worldColumn
	next    int16 // attnum
	storage int
	end     LSN
	wal     []walRow
	pending bool // a RELATION message is due

	rels   *relations
	read   int   // of wal
	shapes Shape // as the state has it
	image  map[string]string
	place  LSN
	again  bool // the row is to be read from the table
	filled int
}

type worldColumn struct {
	num     int16
	name    string
	oid     uint32
	version int
	value   int // of the row
}

// content is what the row has in the column.
func (c worldColumn) content() string { return fmt.Sprintf("%d:%d", c.num, c.value) }

// walRow is an update of the row.
type walRow struct {
	commit  LSN
	columns []worldColumn // as they were
	sent    []bool        // else unchanged
	tells   bool          // a RELATION message stands before it
}

func newWorld(t *rapid.T) *world {
	w := &world{t: t, end: 1000, image: map[string]string{}}
	w.add("id")
	w.add("a")
	w.add("b")
	for _, c := range w.columns {
		w.image[c.name] = c.content()
	}
	w.place = w.end
	w.shapes = w.look().shapes()[0]
	w.begin()
	return w
}

func (w *world) add(name string) {
	w.next++
	w.columns = append(w.columns, worldColumn{num: w.next, name: name, oid: 25})
}

// look is what a look at the catalog finds now.
func (w *world) look() *look {
	facts := &tableFacts{ref: TableRef{Schema: "public", Name: "t", Key: []string{"id"}}, oid: 16400, kind: kindTable, filenode: fmt.Sprint(w.storage)}
	for _, c := range w.columns {
		facts.columns = append(facts.columns, columnFacts{num: c.num, name: c.name, oid: c.oid, mod: -1, version: fmt.Sprint(c.version)})
	}
	return &look{span: span{w.end, w.end}, at: time.Unix(1, 0), tables: []*tableFacts{facts}, publication: &publicationFacts{}}
}

// begin is the start of a session.
func (w *world) begin() {
	l := w.look()
	w.shapes = l.shapes()[0].Follow(&w.shapes, l.after, 1)
	w.rels = newRelations([]TableRef{l.tables[0].ref}, catalog{}, func(context.Context, []uint32) (map[uint32]ColumnType, error) { return nil, nil })
	w.rels.begin(func(context.Context) (*look, error) { return w.look(), nil }, l.span, []Shape{w.shapes})
	if w.read < len(w.wal) {
		w.wal[w.read].tells = true
	}
	w.pending = w.pending || w.read == len(w.wal)
}

// transaction changes table and row.
func (w *world) transaction() {
	commit := w.end
	for range rapid.IntRange(1, 4).Draw(w.t, "statements") {
		w.statement(commit)
	}
	w.end += 10
}

func (w *world) statement(commit LSN) {
	other := func() *worldColumn {
		return &w.columns[rapid.IntRange(1, len(w.columns)-1).Draw(w.t, "column")]
	}
	what := rapid.IntRange(0, 12).Draw(w.t, "statement")
	if len(w.columns) == 1 {
		what = 0
	}
	w.pending = w.pending || what < 8
	switch what {
	case 0:
		if name := w.unused(); name != "" {
			w.add(name)
		}
	case 1: // DROP COLUMN
		at := rapid.IntRange(1, len(w.columns)-1).Draw(w.t, "dropped")
		w.columns = slices.Delete(slices.Clone(w.columns), at, at+1)
	case 2:
		if name := w.unused(); name != "" {
			other().name = name
		}
	case 3: // names change places
		c, d := other(), other()
		c.name, d.name = d.name, c.name
	case 4: // ALTER TYPE
		c := other()
		c.oid = []uint32{25, 1043, 114}[rapid.IntRange(0, 2).Draw(w.t, "type")]
		c.version, c.value, w.storage = c.version+1, c.value+1, w.storage+1
	case 5: // ALTER TYPE to the same type, USING something else
		c := other()
		c.version, c.value, w.storage = c.version+1, c.value+1, w.storage+1
	case 6: // SET STATISTICS
		other().version++
	case 7: // VACUUM FULL
		w.storage++
	default:
		w.update(commit)
	}
}

// unused is a name that no column has.
func (w *world) unused() string {
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(w.t, "name")
	if slices.ContainsFunc(w.columns, func(c worldColumn) bool { return c.name == name }) {
		return ""
	}
	return name
}

func (w *world) update(commit LSN) {
	row := walRow{commit: commit, tells: w.pending || rapid.IntRange(0, 5).Draw(w.t, "invalidated") == 0, sent: []bool{true}}
	w.pending = false
	w.columns = slices.Clone(w.columns)
	for i := range w.columns[1:] {
		row.sent = append(row.sent, rapid.Bool().Draw(w.t, "sent"))
		if row.sent[i+1] {
			w.columns[i+1].value++
		}
	}
	row.columns = slices.Clone(w.columns)
	w.wal = append(w.wal, row)
}

// next takes one row of WAL in.
func (w *world) take() {
	row := w.wal[w.read]
	w.read++
	if row.tells {
		rel := &Relation{ID: 16400, Schema: "public", Name: "t", Identity: identityDefault}
		for i, c := range row.columns {
			rel.Columns = append(rel.Columns, Column{Name: c.name, OID: c.oid, Base: c.oid, Mod: -1, Key: i == 0})
		}
		if err := w.rels.lookUp(context.Background(), row.commit); err != nil {
			w.t.Fatal(err)
		}
		if err := w.rels.interpret(context.Background(), rel); err != nil {
			w.t.Fatal(err)
		}
		if !slices.Equal(rel.KeyColumns, []int{0}) {
			w.t.Fatalf("key: got columns %v of %v", rel.KeyColumns, row.columns)
		}
		w.rels.known[rel.ID] = &tracked{Relation: rel, mapped: true}
		for _, s := range w.rels.changed {
			w.shapes = s
		}
		w.rels.changed = nil
	}
	w.apply(row, w.rels.known[16400].Columns)
}

// apply changes what is known of the row as transform does.
func (w *world) apply(row walRow, columns []Column) {
	now, changed := map[string]string{}, false
	for i, c := range row.columns {
		known, there := w.image[c.name]
		switch {
		case row.sent[i]:
			now[c.name] = c.content()
			changed = changed || known != c.content()
		case there && w.place >= columns[i].Since:
			if w.filled++; !w.again && known != c.content() {
				w.t.Fatalf("column %s of %v at %d: filled with %s of an image of %d, since %d", c.name, row.columns, row.commit, known, w.place, columns[i].Since)
			}
			now[c.name] = known
		default:
			if there {
				now[c.name] = known
			}
			w.again = true
		}
	}
	for name := range w.image {
		if _, there := now[name]; !there {
			changed = true
		}
	}
	if w.image = now; changed {
		w.place = row.commit
	}
}

// reread reads the row from the table, at a position that the stream has reached.
func (w *world) reread() {
	w.image, w.place, w.again = map[string]string{}, w.end, false
	for _, c := range w.columns {
		w.image[c.name] = c.content()
	}
	w.end += 10
}

// Whatever happens to a table's columns, and however far the stream is behind, a value
// that WAL leaves out is only filled with what that very column had.
func TestFilledWithTheSameColumn(t *testing.T) {
	t.Parallel()
	filled := 0
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				w.begin()
			case 1, 2, 3, 4:
				w.transaction()
			default:
				if w.read < len(w.wal) {
					w.take()
				} else if w.again {
					w.reread()
				}
			}
		}
		filled += w.filled
	})
	if filled == 0 {
		t.Error("nothing was ever filled")
	}
}
