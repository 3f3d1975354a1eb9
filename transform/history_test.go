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
	names   int  // columns made so far
	full    bool // REPLICA IDENTITY FULL
}

func newLegacy(full bool) *legacy {
	return &legacy{rel: products(), rows: map[string]map[string]string{}, wants: map[string]map[string]any{}, full: full}
}

var ids = []string{"1", "2", "3", "4", "5"}

func (l *legacy) step(t *rapid.T) {
	id := rapid.SampledFrom(ids).Draw(t, "id")
	_, exists := l.rows[id]
	switch kind := rapid.IntRange(0, 9).Draw(t, "kind"); {
	case kind == 0:
		l.alter(t)
	case kind == 1 && rapid.IntRange(0, 4).Draw(t, "truncate") == 0:
		l.add(&capture.Change{Op: capture.OpTruncate, Time: commitTime, Relation: l.rel})
		clear(l.rows)
		clear(l.wants)
	case !exists:
		l.write(t, id, nil)
	case kind == 1:
		c := deletion(l.rel, capture.Position{}, id)
		l.addOld(c, l.rows[id])
		l.add(c)
		delete(l.rows, id)
		delete(l.wants, id)
	case kind <= 3:
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

// addOld gives the change the old tuple that the table's identity makes.
func (l *legacy) addOld(c *capture.Change, former map[string]string) {
	if !l.full {
		c.Old = keyTuple(l.rel, former["id"])
		return
	}
	values := make([]string, len(l.rel.Columns))
	for i, column := range l.rel.Columns {
		values[i] = former[column.Name]
	}
	c.Old, c.OldFull = tuple(values...), true
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
		if l.full || former["id"] != id {
			l.addOld(c, former)
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

// partitions of both topics.
const partitions = 3

type log [partitions][]transform.Event

// ends are the lengths of a topic's partitions.
type ends [partitions]int

func (l *log) ends() (e ends) {
	for i := range l {
		e[i] = len(l[i])
	}
	return e
}

// pipeline is the bridge in small: events reach their partitions, then states
// those of the latest topic, then the state is committed. A crash may leave any
// prefix of a batch in each partition.
type pipeline struct {
	t      *rapid.T
	m      *transform.Mapping
	events log
	latest log
	st     *memory // as committed, and how far into both topics it goes:
	marks  [2]ends
	next   int // first change that is not committed
}

func partition(key []byte) int {
	h := fnv.New32()
	h.Write(key)
	return int(h.Sum32() % partitions)
}

// publish appends a batch, of which a cut lets only a prefix reach each partition.
func (p *pipeline) publish(to *log, batch []transform.Event, cut bool) {
	var parts log
	for _, e := range batch {
		i := partition(e.Key)
		parts[i] = append(parts[i], e)
	}
	for i, part := range parts {
		n := len(part)
		if cut {
			n = rapid.IntRange(0, n).Draw(p.t, "landed")
		}
		to[i] = append(to[i], part[:n]...)
	}
}

// newest returns the last event of each key, in the order in which they came.
func newest(events []transform.Event) []transform.Event {
	last := make(map[string]int)
	for i, e := range events {
		last[string(e.Key)] = i
	}
	var states []transform.Event
	for i, e := range events {
		if last[string(e.Key)] == i {
			states = append(states, e)
		}
	}
	return states
}

// The steps of a batch in which it may break off.
const (
	unbroken = iota
	inEvents
	inLatest
	beforeState
)

// deliver applies a batch and publishes what comes of it. Nothing is committed
// of one that is broken.
func (p *pipeline) deliver(changes []*capture.Change, broken int) {
	st := p.st.clone()
	var out transform.Output
	tr := transform.New(p.m, identity)
	for _, c := range changes {
		if err := apply(tr, &out, c, st); err != nil {
			p.t.Fatal(err)
		}
	}
	if len(st.again) > 0 {
		p.t.Fatalf("keys to be read again, though everything was known: %v", st.again)
	}
	if out.Mismatches > 0 {
		p.t.Fatalf("an old row is not what the state has: %+v", out.Mismatch)
	}
	p.publish(&p.events, out.Events, broken == inEvents)
	if broken == inEvents {
		return
	}
	p.publish(&p.latest, newest(out.Events), broken == inLatest)
	if broken == unbroken {
		p.st, p.marks = st, [2]ends{p.events.ends(), p.latest.ends()}
	}
}

// apply applies a change as the bridge does: a TRUNCATE removes each aggregate.
func apply(tr *transform.Transformer, out *transform.Output, c *capture.Change, st *memory) error {
	if c.Op != capture.OpTruncate {
		return tr.Apply(out, c, st)
	}
	for _, key := range st.keys() {
		if err := tr.Remove(out, tr.Table(c.Relation), []byte(key), *c, transform.Truncated, st); err != nil {
			return err
		}
	}
	return nil
}

// recover folds what stands in the topics beyond the marks: latest is committed
// at once, the events only when latest has what they moved. It reports false if
// it broke off before.
func (p *pipeline) recover() bool {
	for i, states := range p.latest {
		for _, e := range states[p.marks[1][i]:] {
			p.fold(p.st, e, transform.Latest)
		}
	}
	st := p.st.clone()
	tr := transform.New(p.m, identity)
	var moved []transform.Event
	for i, events := range p.events {
		for _, e := range events[p.marks[0][i]:] {
			if p.fold(st, e, transform.Events) {
				moved = append(moved, e)
			}
			record := transform.Stored{Event: e, Topic: transform.Events}
			if err := tr.Moved(&record, st); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	broken := rapid.IntRange(0, 3).Draw(p.t, "recovery breaks off") == 0
	p.publish(&p.latest, newest(moved), broken)
	if !broken {
		p.st, p.marks = st, [2]ends{p.events.ends(), p.latest.ends()}
	}
	return !broken
}

// fold takes a record into the state and reports whether it was news.
func (p *pipeline) fold(st *memory, e transform.Event, topic transform.Topic) bool {
	record := transform.Stored{Event: e, Topic: topic}
	if topic == transform.Events {
		record.State = nil
	} else {
		record.Data = nil
	}
	entry := st.entries[string(e.Key)]
	applied, _, err := transform.Fold(&entry, &record, nil)
	if err != nil {
		p.t.Fatalf("fold of %s: %v", e.ID, err)
	}
	if applied && !bytes.Equal(entry.Image, e.State) {
		p.t.Fatalf("fold of %s gives %s, the event says %s", e.ID, entry.Image, e.State)
	}
	st.entries[string(e.Key)] = entry
	return applied
}

func (p *pipeline) run(changes []*capture.Change, crashes bool) {
	for p.next < len(changes) {
		n := min(rapid.IntRange(1, 8).Draw(p.t, "batch"), len(changes)-p.next)
		broken := unbroken
		if crashes {
			broken = max(unbroken, rapid.IntRange(-3, beforeState).Draw(p.t, "broken"))
		}
		p.deliver(changes[p.next:p.next+n], broken)
		if broken == unbroken {
			p.next += n
			continue
		}
		for !p.recover() {
		}
		p.next = max(0, p.next-rapid.IntRange(0, 5).Draw(p.t, "slot goes back"))
	}
}

// byKey returns the events of each aggregate.
func (p *pipeline) byKey() map[string][]transform.Event {
	events := make(map[string][]transform.Event)
	for _, part := range p.events {
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
		db := newLegacy(rapid.Bool().Draw(t, "full"))
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
		if len(rough.st.old) > 0 {
			t.Fatalf("old images were kept that no change needs any more: %q", rough.st.old)
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
