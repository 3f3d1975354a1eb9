package verify_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"backstory/capture"
	"backstory/internal/verify"
	"backstory/sink"
	"backstory/transform"
)

// world is a database with writers, a bridge and two topics, all of which go on by
// random steps whenever somebody looks at them. A transaction is committed in WAL
// some steps before it becomes visible, and the bridge may publish it meanwhile.
type world struct {
	tb      testing.TB
	rng     *rand.Rand
	mapping *transform.Mapping
	mapped  *transform.Table
	rel     *capture.Relation
	id      capture.Identity

	lsn     capture.LSN
	xid     uint32
	keys    int
	rows    map[string]int // what a new snapshot sees: key → stock
	frozen  map[string]bool
	hot     *writing // of a key whose newest change no snapshot ever sees; nil: there is none
	locked  map[string]bool
	stuck   bool // nothing becomes visible for a while, as when a standby must confirm
	running []*writing
	hanging []*writing // committed and not yet visible
	wal     []*writing // in commit order; the bridge takes them from the front

	tr        *transform.Transformer
	state     memory
	again     map[string]bool
	piece     *piece
	committed capture.LSN
	topics    [2][]sink.Scanned
	read      [2]int
	gone      int64 // events that retention has taken
	commits   map[uint32]capture.LSN
	former    []transform.Former
}

// writing is a transaction.
type writing struct {
	xid   uint32
	lsn   capture.LSN
	keys  []string
	after []*int // stock; nil: deleted
	was   []bool // the row was there
}

// piece is what the bridge is publishing.
type piece struct {
	stage   int // 0: events, 1: latest, 2: state
	out     transform.Output
	entries map[string]transform.Entry
	end     capture.LSN
}

// memory is a state.
type memory map[string]transform.Entry

// overlay is a state with the writes of a piece over it.
type overlay struct {
	below, own memory
}

func (o overlay) Get(_ uint16, key []byte) (transform.Entry, bool, error) {
	if e, ok := o.own[string(key)]; ok {
		return e, true, nil
	}
	e, ok := o.below[string(key)]
	return e, ok, nil
}

func (o overlay) Put(_ uint16, key []byte, e transform.Entry) error {
	e.Image = slices.Clone(e.Image)
	o.own[string(key)] = e
	return nil
}

func (o overlay) Again(uint16, []byte) error {
	return fmt.Errorf("no change of this world is incomplete")
}

func (overlay) OldImage(capture.Position) []byte { return nil }

func (overlay) SetOldImage(capture.Position, []byte) {}

func newWorld(tb testing.TB, seed uint64, keys int) *world {
	table := &transform.Table{ID: 1, Schema: "public", Name: "products", Aggregate: "Product", Key: []string{"id"},
		Topics: transform.Topics{Events: "product.events", Latest: "product.latest", Partitions: 1}}
	m := &transform.Mapping{Tables: []*transform.Table{table}}
	id := capture.Identity{System: 7, Timeline: 1, Database: "legacy"}
	w := &world{
		tb: tb, rng: rand.New(rand.NewPCG(seed, 1)), mapping: m, mapped: table, id: id, lsn: 1000, xid: 100, keys: keys,
		rel: &capture.Relation{ID: 1, Schema: "public", Name: "products", Identity: 'd', Columns: []capture.Column{
			{Name: "id", OID: 25, Base: 25, Key: true}, {Name: "stock", OID: 23, Base: 23}, {Name: "name", OID: 25, Base: 25}}},
		rows: map[string]int{}, frozen: map[string]bool{}, locked: map[string]bool{},
		tr: transform.New(m, id), state: memory{}, again: map[string]bool{}, commits: map[uint32]capture.LSN{},
	}
	for range 30 * keys {
		w.step()
	}
	return w
}

func key(i int) string { return fmt.Sprintf("k%04d", i) }

// steps lets some time pass.
func (w *world) steps() {
	for range w.rng.IntN(6) {
		w.step()
	}
}

func (w *world) step() {
	if w.rng.IntN(60) == 0 {
		w.stuck = !w.stuck
	}
	switch p := w.rng.IntN(10); {
	case len(w.wal) > 8: // writers do not leave the bridge behind for ever
		w.publish()
	case p < 3 && len(w.running) < 4:
		w.begin()
	case p < 5 && len(w.running) > 0 && len(w.hanging) < 8:
		w.commit()
	case p < 7 && len(w.hanging) > 0 && !w.stuck:
		w.show()
	default:
		w.publish()
	}
}

// begin starts a transaction on rows that nobody else holds.
func (w *world) begin() {
	w.xid++
	t := &writing{xid: w.xid}
	for range 1 + w.rng.IntN(3) {
		k := key(w.rng.IntN(w.keys))
		if w.rng.IntN(3) == 0 {
			k = key(w.rng.IntN(2)) // hot
		}
		if w.locked[k] || w.frozen[k] {
			continue
		}
		w.locked[k] = true
		_, there := w.rows[k]
		n := w.rng.IntN(1000)
		t.keys, t.was = append(t.keys, k), append(t.was, there)
		if there && w.rng.IntN(4) == 0 {
			t.after = append(t.after, nil)
		} else {
			t.after = append(t.after, &n)
		}
	}
	w.running = append(w.running, t)
}

// commit writes a commit record; the stream has the transaction from here on.
func (w *world) commit() {
	i := w.rng.IntN(len(w.running))
	t := w.running[i]
	w.running = slices.Delete(w.running, i, i+1)
	w.lsn += 8
	t.lsn = w.lsn
	w.commits[t.xid] = t.lsn
	w.hanging, w.wal = append(w.hanging, t), append(w.wal, t)
}

// show makes a committed transaction visible and lets go of its rows.
func (w *world) show() {
	t := w.hanging[w.rng.IntN(len(w.hanging))]
	if t != w.hot {
		w.reveal(t)
	}
}

func (w *world) reveal(t *writing) {
	i := slices.Index(w.hanging, t)
	w.hanging = slices.Delete(w.hanging, i, i+1)
	for i, k := range t.keys {
		delete(w.locked, k)
		if t.after[i] == nil {
			delete(w.rows, k)
		} else {
			w.rows[k] = *t.after[i]
		}
	}
}

// heat changes a key that nobody holds, and keeps the change invisible until the
// next snapshot is taken.
func (w *world) heat(k string) {
	if w.hot != nil {
		w.reveal(w.hot)
	}
	w.xid++
	_, there := w.rows[k]
	n := w.rng.IntN(1000)
	w.locked[k] = true
	w.lsn += 8
	w.commits[w.xid] = w.lsn
	w.hot = &writing{xid: w.xid, lsn: w.lsn, keys: []string{k}, after: []*int{&n}, was: []bool{there}}
	w.hanging, w.wal = append(w.hanging, w.hot), append(w.wal, w.hot)
}

func (w *world) row(k string, stock int) []capture.Value {
	return []capture.Value{{Kind: capture.Text, Data: []byte(k)}, {Kind: capture.Text, Data: []byte(strconv.Itoa(stock))},
		{Kind: capture.Text, Data: []byte("name of " + k)}}
}

// publish is one step of the bridge: a piece goes to the events, then to latest,
// then into the state.
func (w *world) publish() {
	p := w.piece
	switch {
	case p == nil && len(w.wal) == 0:
		w.committed = w.lsn // by a keepalive
	case p == nil:
		w.take()
	case p.stage == 0:
		w.append(transform.Events)
		p.stage++
	case p.stage == 1:
		w.append(transform.Latest)
		p.stage++
	default:
		maps.Copy(w.state, p.entries)
		w.committed, w.piece = p.end, nil
	}
}

// take maps up to three transactions.
func (w *world) take() {
	w.piece = &piece{entries: map[string]transform.Entry{}}
	n := min(1+w.rng.IntN(3), len(w.wal))
	for _, t := range w.wal[:n] {
		for i, k := range t.keys {
			c := &capture.Change{Pos: capture.Position{LSN: t.lsn, Kind: capture.KindChange, Index: uint32(i + 1)}, XID: t.xid, Time: timeOf(t.lsn), Relation: w.rel}
			switch {
			case t.after[i] == nil:
				c.Op, c.Old = capture.OpDelete, []capture.Value{{Kind: capture.Text, Data: []byte(k)}, {}, {}}
			case t.was[i]:
				c.Op, c.New = capture.OpUpdate, w.row(k, *t.after[i])
			default:
				c.Op, c.New = capture.OpInsert, w.row(k, *t.after[i])
			}
			if err := w.tr.Apply(&w.piece.out, c, overlay{w.state, w.piece.entries}); err != nil {
				w.tb.Fatal(err)
			}
		}
		w.piece.end = t.lsn + 4
	}
	w.wal = w.wal[n:]
}

func (w *world) append(topic transform.Topic) {
	below := w.gone + int64(len(w.topics[transform.Events])-len(w.piece.out.Events))
	for i := range w.piece.out.Events {
		e := w.piece.out.Events[i]
		s := transform.Stored{Event: e, Topic: topic, Offset: w.gone + int64(len(w.topics[topic]))}
		s.Source = transform.SourceOf(w.id, w.mapped.Schema, w.mapped.Name)
		if topic == transform.Latest {
			s.Offset -= w.gone
		}
		s.Key, s.Data = slices.Clone(e.Key), slices.Clone(e.Data)
		if topic == transform.Latest {
			if slices.ContainsFunc(w.piece.out.Events[i+1:], func(n transform.Event) bool { return string(n.Key) == string(e.Key) }) {
				continue // only the newest state of the piece
			}
			s.State, s.EventsOffset, s.Data = slices.Clone(e.State), below, nil
		}
		w.topics[topic] = append(w.topics[topic], sink.Scanned{Stored: s, Timestamp: s.Time / 1000})
	}
}

// timeOf is the commit time of a transaction, or the time of a chunk.
func timeOf(lsn capture.LSN) int64 { return 1_700_000_000_123_456 + int64(lsn) }

// retain asks for retention, and has it take the oldest events that nobody has read.
func (w *world) retain(n int) {
	w.mapped.Topics.Retention = time.Hour
	n = min(n, len(w.topics[transform.Events])-w.read[transform.Events])
	if w.read[transform.Events] == 0 {
		w.topics[transform.Events] = w.topics[transform.Events][n:]
		w.gone += int64(n)
	}
}

// snapshot is what a transaction sees that begins now.
func (w *world) snapshot() capture.Snapshot {
	s := capture.Snapshot{Xmin: uint64(w.xid) + 1, Xmax: uint64(w.xid) + 1}
	for _, t := range slices.Concat(w.running, w.hanging) {
		s.Xmin = min(s.Xmin, uint64(t.xid))
		s.Running = append(s.Running, uint64(t.xid))
	}
	slices.Sort(s.Running)
	return s
}

func (w *world) chunk(keys []string) *capture.Chunk {
	w.steps()
	c := &capture.Chunk{Relation: w.rel, Snapshot: w.snapshot(), Time: timeOf(w.lsn)}
	for _, k := range keys {
		if stock, ok := w.rows[k]; ok {
			c.Changes = append(c.Changes, capture.Change{Op: capture.OpRead, Time: c.Time, Relation: w.rel, New: w.row(k, stock)})
			c.Last = []string{k}
		}
	}
	if w.hot != nil {
		w.heat(w.hot.keys[0])
	}
	w.steps()
	w.lsn += 8
	c.Watermark = w.lsn
	for i := range c.Changes {
		c.Changes[i].Pos = capture.Position{LSN: c.Watermark, Kind: capture.KindBackfill, Index: uint32(i + 1)}
	}
	w.steps()
	return c
}

// The world as its verifier sees it.

func (w *world) Horizon(context.Context) (capture.LSN, uint64, error) {
	w.lsn += 8
	return w.lsn, uint64(w.xid) + 1, nil
}

func (w *world) Wait(_ context.Context, xmax uint64) error {
	if w.hot != nil {
		w.heat(w.hot.keys[0])
	}
	for w.snapshot().Xmin < xmax {
		w.step()
	}
	return nil
}

func (w *world) Chunk(_ context.Context, after []string, limit int) (*capture.Chunk, error) {
	w.steps()
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(w.rows)) {
		if (after == nil || k > after[0]) && len(keys) < limit {
			keys = append(keys, k)
		}
	}
	last, more := "", false
	if len(keys) > 0 {
		last = keys[len(keys)-1]
	}
	for k := range w.rows {
		more = more || last != "" && k > last
	}
	// What is read is read at the snapshot, a moment later.
	c := w.chunk(keys)
	if len(keys) > 0 {
		c.Last = []string{last}
	}
	c.Done = !more
	return c, nil
}

func (w *world) Lookup(_ context.Context, keys [][]string) (*capture.Chunk, error) {
	flat := make([]string, len(keys))
	for i, k := range keys {
		flat[i] = k[0]
	}
	return w.chunk(flat), nil
}

func (w *world) Former(context.Context, string) ([]transform.Former, error) { return w.former, nil }

// CommitTimes knows every second transaction.
func (w *world) CommitTimes(_ context.Context, xids []uint32) (map[uint32]int64, error) {
	times := map[uint32]int64{}
	for _, xid := range xids {
		if lsn, ok := w.commits[xid]; ok && xid%2 == 0 {
			times[xid] = timeOf(lsn)
		}
	}
	return times, nil
}

func (w *world) Advance(_ context.Context, topic transform.Topic, fn func(*sink.Scanned) error) error {
	w.steps()
	for end := len(w.topics[topic]); w.read[topic] < end; w.read[topic]++ {
		s := w.topics[topic][w.read[topic]]
		if err := fn(&s); err != nil {
			return err
		}
		w.steps()
	}
	return nil
}

func (w *world) Spans(topic transform.Topic) []sink.Span {
	if topic == transform.Events {
		return []sink.Span{{Start: w.gone, End: w.gone + int64(w.read[topic])}}
	}
	return []sink.Span{{End: int64(w.read[topic])}}
}

func (w *world) Entries(_ context.Context, _ string, after capture.LSN, keys []string, images bool) ([]verify.StateEntry, error) {
	for w.committed < after {
		w.step()
	}
	entries := make([]verify.StateEntry, len(keys))
	for i, k := range keys {
		w.steps()
		e := w.state[k]
		entries[i] = verify.StateEntry{Version: e.Version, Place: e.Place, XID: e.XID, Noted: e.Place.Index == 0, Again: w.again[k]}
		if e.Exists() {
			sum := sha256.Sum256(e.Image)
			entries[i].Digest = sum[:16]
			if images {
				entries[i].Image = slices.Clone(e.Image)
			}
		}
	}
	return entries, nil
}

func (w *world) Keys(_ context.Context, _ string, part int) ([][]byte, error) {
	w.steps()
	var keys [][]byte
	for k, e := range w.state {
		if e.Version > 0 && len(k)%2 == part {
			keys = append(keys, []byte(k))
		}
	}
	slices.SortFunc(keys, func(a, b []byte) int { return cmp.Compare(string(a), string(b)) })
	return keys, nil
}
