package transform_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"testing"

	"backstory/capture"
	"backstory/transform"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// legacy is a database that changes its table at random, and its schema too.
// Its column "description" is the large one that updates may leave out.
type legacy struct {
	rel     *capture.Relation
	rows    map[string]map[string]string // by id, then by column; null is a value
	wants   map[string]map[string]any    // what the image must say after the row's last change
	changes []*capture.Change
	names   int // columns made so far
}

func newLegacy() *legacy {
	return &legacy{rel: products(), rows: map[string]map[string]string{}, wants: map[string]map[string]any{}}
}

var ids = []string{"1", "2", "3", "4", "5"}

func (l *legacy) step(t *rapid.T) {
	id := rapid.SampledFrom(ids).Draw(t, "id")
	_, exists := l.rows[id]
	switch kind := rapid.IntRange(0, 9).Draw(t, "kind"); {
	case kind == 0:
		l.alter(t)
	case !exists:
		l.write(t, id, nil)
	case kind == 1:
		l.add(deletion(l.rel, capture.Position{}, id))
		delete(l.rows, id)
		delete(l.wants, id)
	case kind == 2:
		l.move(t, id)
	default:
		l.write(t, id, l.rows[id])
	}
}

// add gives the change its position: one or several in a transaction.
func (l *legacy) add(c *capture.Change) {
	n := uint32(len(l.changes))
	c.Pos = at(capture.LSN(0x100+n/3), n%3+1)
	c.XID = 700 + n/3
	l.changes = append(l.changes, c)
}

// alter adds, drops or renames a column that is neither key nor large.
func (l *legacy) alter(t *rapid.T) {
	rel := *l.rel
	rel.Columns = slices.Clone(rel.Columns)
	l.names++
	column := oneColumn(fmt.Sprintf("c%d", l.names), oidText, false)
	small := slices.IndexFunc(rel.Columns, func(c capture.Column) bool { return c.Name != "id" && c.Name != "description" })
	switch kind := rapid.IntRange(0, 2).Draw(t, "alter"); {
	case kind == 0 || small < 0:
		rel.Columns = append(rel.Columns, column)
		for _, row := range l.rows {
			row[column.Name] = null
		}
	case kind == 1:
		rel.Columns = slices.Delete(rel.Columns, small, small+1)
	default:
		for _, row := range l.rows {
			row[column.Name] = row[rel.Columns[small].Name]
		}
		rel.Columns[small].Name = column.Name
	}
	l.rel = &rel
}

// write inserts a row, or updates the former one.
func (l *legacy) write(t *rapid.T, id string, former map[string]string) {
	row := map[string]string{"id": id}
	tuple := make([]string, len(l.rel.Columns))
	for i, c := range l.rel.Columns {
		value := id
		if c.Name != "id" {
			value = l.value(t, c, former)
		}
		row[c.Name], tuple[i] = value, value
		if c.Name == "description" && former != nil && value != null && value == former[c.Name] {
			tuple[i] = unchanged
		}
	}
	c := insertion(l.rel, capture.Position{}, tuple...)
	if former != nil {
		c.Op = capture.OpUpdate
		if old := former["id"]; old != id {
			c.Old = keyTuple(l.rel, old)
		}
	}
	if rapid.Bool().Draw(t, "context") {
		c.Context = &capture.Context{Reason: []byte(`"why"`), Actor: "ann"}
	}
	l.add(c)
	l.rows[id], l.wants[id] = row, wanted(l.rel, row)
}

func (l *legacy) value(t *rapid.T, c capture.Column, former map[string]string) string {
	if former != nil && rapid.Bool().Draw(t, "keep") {
		return former[c.Name]
	}
	if c.Base == oidText {
		return rapid.SampledFrom([]string{"", "a", "\"\\}", "ü\n", null, "long long long"}).Draw(t, c.Name)
	}
	return fmt.Sprint(rapid.IntRange(0, 3).Draw(t, c.Name))
}

// move changes the key of a row to one that is free.
func (l *legacy) move(t *rapid.T, id string) {
	to := rapid.SampledFrom(ids).Draw(t, "to")
	if _, taken := l.rows[to]; taken {
		return
	}
	former := l.rows[id]
	delete(l.rows, id)
	delete(l.wants, id)
	l.write(t, to, former)
}

func wanted(rel *capture.Relation, row map[string]string) map[string]any {
	want := make(map[string]any)
	for _, c := range rel.Columns {
		switch value := row[c.Name]; {
		case value == null:
			want[c.Name] = nil
		case c.Base == oidInt8 || c.Base == oidInt4:
			want[c.Name] = json.Number(value)
		default:
			want[c.Name] = value
		}
	}
	return want
}

// partitions of the events topic.
const partitions = 3

// pipeline is the bridge in small: events reach their partitions, in which a
// crash may leave any prefix of a batch; the state is committed behind them.
type pipeline struct {
	t     *rapid.T
	m     *transform.Mapping
	topic [partitions][]transform.Event
	st    *memory // as committed
	marks [partitions]int
	next  int // first change that is not committed
}

func partition(key []byte) int {
	h := fnv.New32()
	h.Write(key)
	return int(h.Sum32() % partitions)
}

// deliver applies a batch. If it is cut, only a prefix of it reaches each
// partition and nothing is committed.
func (p *pipeline) deliver(changes []*capture.Change, cut bool) {
	st := p.st.clone()
	var out transform.Output
	tr := transform.New(p.m, identity)
	for _, c := range changes {
		if err := tr.Apply(&out, c, st); err != nil {
			p.t.Fatal(err)
		}
	}
	if len(st.again) > 0 {
		p.t.Fatalf("keys to be read again, though everything was known: %v", st.again)
	}
	var parts [partitions][]transform.Event
	for _, e := range out.Events {
		i := partition(e.Key)
		parts[i] = append(parts[i], e)
	}
	for i, events := range parts {
		n := len(events)
		if cut {
			n = rapid.IntRange(0, n).Draw(p.t, "landed")
		}
		p.topic[i] = append(p.topic[i], events[:n]...)
	}
	if !cut {
		p.st = st
		for i := range p.topic {
			p.marks[i] = len(p.topic[i])
		}
	}
}

// recover folds what stands in the topic beyond the marks, and commits that.
func (p *pipeline) recover() {
	tr := transform.New(p.m, identity)
	for i, events := range p.topic {
		for _, e := range events[p.marks[i]:] {
			record := transform.Stored{Event: e, Topic: transform.Events}
			record.State = nil
			entry := p.st.entries[string(e.Key)]
			applied, _, err := transform.Fold(&entry, &record, nil)
			if err != nil || !applied {
				p.t.Fatalf("fold of %s: %v, %v", e.ID, applied, err)
			}
			if !bytes.Equal(entry.Image, e.State) {
				p.t.Fatalf("fold of %s gives %s, the event says %s", e.ID, entry.Image, e.State)
			}
			p.st.entries[string(e.Key)] = entry
			if err := tr.Moved(&record, p.st); err != nil {
				p.t.Fatal(err)
			}
		}
		p.marks[i] = len(events)
	}
}

func (p *pipeline) run(changes []*capture.Change, crashes bool) {
	for p.next < len(changes) {
		n := min(rapid.IntRange(1, 8).Draw(p.t, "batch"), len(changes)-p.next)
		from := p.next
		if crashes && rapid.IntRange(0, 2).Draw(p.t, "crash") == 0 {
			p.deliver(changes[from:from+n], true)
			p.recover()
			p.next = max(0, from-rapid.IntRange(0, 5).Draw(p.t, "slot goes back"))
			continue
		}
		p.deliver(changes[from:from+n], false)
		p.next = from + n
	}
}

// byKey returns the events of each aggregate.
func (p *pipeline) byKey() map[string][]transform.Event {
	events := make(map[string][]transform.Event)
	for _, part := range p.topic {
		for _, e := range part {
			e.Table = nil
			events[string(e.Key)] = append(events[string(e.Key)], e)
		}
	}
	return events
}

// Whatever crashes and redeliveries there are, each aggregate has the events of
// an undisturbed run, byte for byte, with versions without a gap, and their fold
// is the row.
func TestHistories(t *testing.T) {
	t.Parallel()
	m := mustMapping(t, productsMapping)
	rapid.Check(t, func(t *rapid.T) {
		db := newLegacy()
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			db.step(t)
		}
		calm := &pipeline{t: t, m: m, st: newMemory()}
		calm.run(db.changes, false)
		rough := &pipeline{t: t, m: m, st: newMemory()}
		rough.run(db.changes, true)
		if diff := cmp.Diff(calm.byKey(), rough.byKey()); diff != "" {
			t.Fatalf("crashes changed the events (-calm +rough):\n%s", diff)
		}
		for key, events := range rough.byKey() {
			checkHistory(t, key, events, rough.st.entries[key], db.wants[key])
		}
		for key := range db.wants {
			if e := rough.st.entries[key]; !e.Exists() {
				t.Fatalf("aggregate %q is not in the state", key)
			}
		}
	})
}

// checkHistory folds the events of one aggregate from nothing and compares with
// the state and the row.
func checkHistory(t *rapid.T, key string, events []transform.Event, state transform.Entry, want map[string]any) {
	var entry transform.Entry
	for i, e := range events {
		if e.Version != uint64(i+1) {
			t.Fatalf("aggregate %q: got version %d, want %d", key, e.Version, i+1)
		}
		record := transform.Stored{Event: e, Topic: transform.Events}
		if applied, _, err := transform.Fold(&entry, &record, nil); err != nil || !applied {
			t.Fatalf("aggregate %q version %d: fold: %v, %v", key, e.Version, applied, err)
		}
		if again, _, err := transform.Fold(&entry, &record, nil); err != nil || again {
			t.Fatalf("aggregate %q version %d: folded twice: %v, %v", key, e.Version, again, err)
		}
	}
	if !bytes.Equal(entry.Image, state.Image) {
		t.Fatalf("aggregate %q: the fold is %s, the state %s", key, entry.Image, state.Image)
	}
	if want == nil {
		if entry.Image != nil {
			t.Fatalf("aggregate %q: got %s, want it deleted", key, entry.Image)
		}
		return
	}
	got := make(map[string]any)
	d := json.NewDecoder(bytes.NewReader(entry.Image))
	d.UseNumber()
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	for name, value := range got {
		if _, ok := want[name]; !ok && value == nil {
			delete(got, name) // a column that the table has no more
		}
	}
	if price, ok := want["price"]; ok && price != nil {
		want["price"] = fmt.Sprint(price) // numeric is a decimal string
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("aggregate %q: image differs from the row (-row +image):\n%s", key, diff)
	}
}
