package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxFindings bounds a report; the rest is counted.
const maxFindings = 5

// Report is the outcome of a comparison.
type Report struct {
	Keys, Events, Latest int
	Findings             []string // at most maxFindings
	Wrong                int
}

func (r *Report) add(format string, args ...any) {
	r.Wrong++
	if len(r.Findings) < maxFindings {
		r.Findings = append(r.Findings, fmt.Sprintf(format, args...))
	}
}

// String prints the report for a test's failure.
func (r *Report) String() string {
	return fmt.Sprintf("%d keys, %d events, %d latest records; %d wrong\n%s",
		r.Keys, r.Events, r.Latest, r.Wrong, strings.Join(r.Findings, "\n"))
}

// Compare holds the topics against what the writers committed: every event, its
// type, old and new values, reason, version, partition and the uniqueness of its
// id; and for each key the newest latest record.
func Compare(h History, events, latest []Record, partitions int32) *Report {
	r := CompareUnplaced(h, events, latest)
	for i := range events {
		r.partition(&events[i], partitions)
	}
	for i := range latest {
		r.partition(&latest[i], partitions)
	}
	return r
}

// CompareUnplaced is Compare for topics whose partitions follow another rule.
func CompareUnplaced(h History, events, latest []Record) *Report {
	r := &Report{Keys: len(h), Events: len(events), Latest: len(latest)}
	byKey, ids := map[string][]*Record{}, map[string]string{}
	for i := range events {
		e := &events[i]
		if err := json.Unmarshal(e.Value, &e.Data); err != nil {
			r.add("event %d/%d: value %s: %v", e.Partition, e.Offset, e.Value, err)
			continue
		}
		place := fmt.Sprintf("%d/%d", e.Partition, e.Offset)
		if at, ok := ids[e.Headers["ce_id"]]; ok {
			r.add("key %s: id %s stands at %s and %s", e.Key, e.Headers["ce_id"], at, place)
		}
		ids[e.Headers["ce_id"]] = place
		byKey[e.Key] = append(byKey[e.Key], e)
	}
	for _, key := range slices.Sorted(maps.Keys(h)) {
		r.key(key, h, byKey)
	}
	for key := range byKey {
		if h[key] == nil {
			r.add("key %s: %d events of a row that never was", key, len(byKey[key]))
		}
	}
	r.latest(h, byKey, latest)
	r.times(events)
	r.times(latest)
	return r
}

// earliest is before any audited run: a time before it was never set.
var earliest = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// times checks that each record has a time, which is its timestamp too, and that
// what one transaction did, or one chunk found, has one time.
func (r *Report) times(records []Record) {
	ofPlace := map[string]time.Time{}
	for i := range records {
		e := &records[i]
		at := e.Time
		if text, ok := e.Headers["ce_time"]; ok {
			var err error
			if at, err = time.Parse(time.RFC3339Nano, text); err != nil || at.UnixMilli() != e.Time.UnixMilli() {
				r.add("key %s: ce_time %s, the record's timestamp is %s", e.Key, text, e.Time.UTC().Format(time.RFC3339Nano))
			}
		}
		if at.Before(earliest) || at.After(time.Now().Add(time.Minute)) {
			r.add("key %s: version %d is of %s", e.Key, e.Version(), at.UTC().Format(time.RFC3339Nano))
		}
		place := e.Headers["ce_sequence"]
		if len(place) < positionLen {
			continue
		}
		place = place[:positionLen]
		if first, known := ofPlace[place]; known && !first.Equal(at) {
			r.add("key %s: version %d is of %s, others of %s are of %s", e.Key, e.Version(),
				at.UTC().Format(time.RFC3339Nano), place, first.UTC().Format(time.RFC3339Nano))
		}
		ofPlace[place] = at
	}
}

// positionLen is the length of LSN and kind at the front of a ce_sequence.
const positionLen = len("00000000015A2F30-1")

// partition checks that the record stands where Java's default partitioner
// would put it.
func (r *Report) partition(e *Record, partitions int32) {
	if want := int32(murmur2([]byte(e.Key))&0x7fffffff) % partitions; e.Partition != want {
		r.add("key %s: in partition %d, want %d", e.Key, e.Partition, want)
	}
}

// key holds one aggregate's events against its steps. A life of its row that the
// bridge may have met without having seen it begin (it stood before the audit, or
// came from a key that the bridge did not know) may enter with an event of the
// whole row, which may show any version of it, or not at all; from there on every
// step must be told.
func (r *Report) key(key string, h History, all map[string][]*Record) {
	steps, events := h[key], all[key]
	for i, e := range events {
		if e.Version() != int64(i+1) {
			r.add("key %s: version %d at place %d of its history", key, e.Version(), i+1)
			return
		}
	}
	m := match{key: key, steps: steps, events: events, unseen: make([]bool, len(steps)), dead: map[[2]int]bool{}}
	for i, s := range steps {
		m.unseen[i] = s.Standing || s.Cause == "key-changed" && s.New != nil && departures(h[s.Related], all[s.Related], key)
	}
	if !m.from(0, 0) {
		r.add("%s\n%s", m.why, story(steps, events))
	}
}

// departures reports whether a row left for the key to without an event of the
// aggregate that it left.
func departures(steps []Step, events []*Record, to string) bool {
	untold := 0
	for _, s := range steps {
		if s.New == nil && s.Cause == "key-changed" && s.Related == to {
			untold++
		}
	}
	for _, e := range events {
		if e.Headers["ce_cause"] == "key-changed" && e.Headers["ce_related"] == to && len(e.Data.New) == 0 {
			untold--
		}
	}
	return untold > 0
}

// match looks for a way to read the steps of a key in its events.
type match struct {
	key    string
	steps  []Step
	events []*Record
	unseen []bool          // the life that the step begins may have gone unseen
	dead   map[[2]int]bool // no way from here
	best   int
	why    string // of the way that led furthest
}

// from reports whether events[e:] tell steps[i:].
func (m *match) from(i, e int) bool {
	at := [2]int{i, e}
	if m.dead[at] {
		return false
	}
	if m.strictly(i, e) || i < len(m.steps) && m.unseen[i] && m.late(i, e) {
		return true
	}
	m.dead[at] = true
	return false
}

// strictly reads each step in its events, until a life begins that may be unseen.
func (m *match) strictly(i, e int) bool {
	known := m.folded(e)
	for begun := i; i < len(m.steps); i++ {
		if m.unseen[i] && i > begun {
			return m.from(i, e)
		}
		wants := m.steps[i].events(known)
		if m.steps[i].Schema && !m.told(wants, e) {
			continue
		}
		for _, w := range wants {
			if w.found && e == 0 {
				w.kind = "ProductImported"
			}
			if !m.reads(w, e) {
				return false
			}
			known.fold(m.events[e])
			e++
		}
	}
	if e < len(m.events) {
		v := m.events[e]
		m.fail(e, "%d events too many, the first is %s at %d/%d: %s", len(m.events)-e, v.Headers["ce_type"], v.Partition, v.Offset, v.Value)
		return false
	}
	return true
}

// told reports whether the next events are exactly those of a comparison with
// the table.
func (m *match) told(wants []want, e int) bool {
	for n, w := range wants {
		if e+n >= len(m.events) || w.diff(m.events[e+n]) != "" {
			return false
		}
	}
	return true
}

// folded is the image after the first e events.
func (m *match) folded(e int) image {
	begin := e
	for begin > 0 && !m.events[begin-1].deletes() {
		begin--
	}
	im := image{}
	for _, event := range m.events[begin:e] {
		im.fold(event)
	}
	return im
}

// fold takes an event into an image.
func (im image) fold(e *Record) {
	if e.deletes() {
		clear(im)
		return
	}
	for name, value := range e.Data.New {
		im[name] = columnOf(name).canonicalJSON(value)
	}
}

// late lets the life that begins at step i enter at any of its steps, or never.
func (m *match) late(i, e int) bool {
	for ; i < len(m.steps) && m.steps[i].New != nil; i++ {
		w := want{kind: "ProductCreated", old: image{}, new: m.steps[i].image(), entry: true}
		if e == 0 {
			w.kind = "ProductImported"
		}
		if m.reads(w, e) && m.from(i+1, e+1) {
			return true
		}
	}
	return i < len(m.steps) && m.from(i+1, e)
}

func (m *match) reads(w want, e int) bool {
	if e >= len(m.events) {
		m.fail(e, "event %d (%s) is missing", e+1, w.kind)
		return false
	}
	if diff := w.diff(m.events[e]); diff != "" {
		m.fail(e, "version %d at %d/%d: %s", e+1, m.events[e].Partition, m.events[e].Offset, diff)
		return false
	}
	return true
}

// fail keeps the reason of the way that has read the most events.
func (m *match) fail(e int, format string, args ...any) {
	if m.why == "" || e > m.best {
		m.best, m.why = e, fmt.Sprintf("key %s: ", m.key)+fmt.Sprintf(format, args...)
	}
}

// story tells what was committed and what was published of a key, for people.
func story(steps []Step, events []*Record) string {
	var b strings.Builder
	for i, s := range steps {
		fmt.Fprintf(&b, "    step %d: %s", i, s.Cause)
		switch {
		case s.Standing:
			b.WriteString("standing")
		case s.Schema:
			b.WriteString("columns changed")
		}
		for _, row := range []Row{s.Old, s.New} {
			text := "none"
			if row != nil {
				text = fmt.Sprint(row.image())
			}
			fmt.Fprintf(&b, " → %.400s", text)
		}
		if len(s.More) > 0 {
			fmt.Fprintf(&b, " and %s", s.More)
		}
		b.WriteByte('\n')
	}
	for _, e := range events {
		fmt.Fprintf(&b, "    event %d/%d: %s %s %.400s\n", e.Partition, e.Offset, e.Headers["ce_type"], e.Headers["ce_cause"], e.Value)
	}
	return b.String()
}

// diff says how an event differs from what is wanted; empty if it does not.
func (w *want) diff(e *Record) string {
	if got := strings.TrimSuffix(e.Headers["ce_type"], ".v1"); got != w.kind {
		return fmt.Sprintf("type %s, want %s", got, w.kind)
	}
	if d := diffFields("old", e.Data.Old, w.old); d != "" {
		return d
	}
	if d := diffFields("new", e.Data.New, w.new); d != "" {
		return d
	}
	if w.entry { // by a chunk, or by an update of the stream with its own context
		return ""
	}
	if got, want := string(e.Data.Reason), reasonJSON(w.reason); got != want {
		return fmt.Sprintf("reason %s, want %s", got, want)
	}
	if got := e.Headers["ce_cause"]; got != w.cause {
		return fmt.Sprintf("cause %q, want %q", got, w.cause)
	}
	if got := e.Headers["ce_related"]; got != w.related {
		return fmt.Sprintf("related %q, want %q", got, w.related)
	}
	return ""
}

func diffFields(side string, got map[string]json.RawMessage, want image) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%s has fields %v, want %v", side, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		raw, ok := got[name]
		if !ok {
			return fmt.Sprintf("%s lacks %s", side, name)
		}
		if g := columnOf(name).canonicalJSON(raw); g != want[name] {
			return fmt.Sprintf("%s %s is %.200s, want %.200s", side, name, g, want[name])
		}
	}
	return ""
}

func reasonJSON(reason *string) string {
	if reason == nil {
		return "null"
	}
	j, _ := json.Marshal(*reason) // a string always marshals
	return string(j)
}

// latest checks each key's newest record of the latest topic: the newest row, or
// a tombstone, with the version of the newest event; and that no record of a key
// shows an older version than the one before it.
func (r *Report) latest(h History, events map[string][]*Record, latest []Record) {
	newest := map[string]*Record{}
	for i := range latest {
		l := &latest[i]
		if old := newest[l.Key]; old != nil && l.Version() <= old.Version() {
			r.add("latest of key %s: version %d at %d/%d after version %d", l.Key, l.Version(), l.Partition, l.Offset, old.Version())
		}
		newest[l.Key] = l
	}
	for key, es := range events {
		l, last := newest[key], es[len(es)-1]
		if l == nil {
			r.add("latest of key %s: nothing, want version %d", key, last.Version())
			continue
		}
		if l.Version() != last.Version() || l.Headers["ce_id"] != last.Headers["ce_id"] {
			r.add("latest of key %s: version %d, want %d", key, l.Version(), last.Version())
		}
		if steps := h[key]; steps != nil {
			r.image(key, l, steps[len(steps)-1].New)
		}
		r.foldsTo(key, es, l)
	}
	for key := range newest {
		if events[key] == nil {
			r.add("latest of key %s: there, but without any event", key)
		}
	}
}

// image compares a latest record with the newest committed row, as far as both
// have the same columns; foldsTo does the rest.
func (r *Report) image(key string, l *Record, row Row) {
	if row == nil {
		if l.Value != nil {
			r.add("latest of key %s: %.200s, want a tombstone", key, l.Value)
		}
		return
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal(l.Value, &got); err != nil {
		r.add("latest of key %s: value %.200s: %v", key, l.Value, err)
		return
	}
	want := row.image()
	for name := range got {
		if _, ok := want[name]; !ok {
			delete(got, name)
		}
	}
	if d := diffFields("image", got, want); d != "" {
		r.add("latest of key %s: %s", key, d)
	}
}

// foldsTo checks that folding new over the events gives latest's value.
func (r *Report) foldsTo(key string, events []*Record, l *Record) {
	state := map[string]json.RawMessage{}
	for _, e := range events {
		if e.deletes() {
			state = map[string]json.RawMessage{}
			continue
		}
		maps.Copy(state, e.Data.New)
	}
	if l.Value == nil {
		return
	}
	var got map[string]json.RawMessage
	if json.Unmarshal(l.Value, &got) != nil {
		return // image has told
	}
	if !maps.EqualFunc(got, state, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
		r.add("latest of key %s: is not the fold of its events", key)
	}
}

// murmur2 is the hash of Java's default partitioner (org.apache.kafka.common.utils.Utils).
func murmur2(b []byte) uint32 {
	const m, seed = 0x5bd1e995, 0x9747b28c
	h := uint32(seed) ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		k *= m
		k ^= k >> 24
		h = h*m ^ k*m
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(b[0])) * m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}
