package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/e2e/audit"
)

// relation is the table of the audit package as capture would describe it.
var relation = &capture.Relation{ID: 16400, Schema: "public", Name: "products", Identity: 'd', Columns: []capture.Column{
	{Name: "id", OID: 20, Base: 20, Key: true}, {Name: "sku", OID: 25, Base: 25}, {Name: "name", OID: 25, Base: 25},
	{Name: "description", OID: 25, Base: 25}, {Name: "price", OID: 1700, Base: 1700}, {Name: "currency", OID: 1042, Base: 1042},
	{Name: "stock", OID: 23, Base: 23}, {Name: "attributes", OID: 3802, Base: 3802}, {Name: "tags", OID: 1009, Base: 1009, Elem: 25},
	{Name: "active", OID: 16, Base: 16}, {Name: "weight", OID: 701, Base: 701}, {Name: "updated_at", OID: 1184, Base: 1184},
}}

// relations are the tables: the second one, where a test has it, is like the first,
// with the same keys.
var relations = [2]*capture.Relation{relation, func() *capture.Relation {
	second := *relation
	second.ID, second.Name = 16500, "articles"
	return &second
}()}

// prefixes tell the keys of the tables apart in rows and history.
var prefixes = [2]string{"", "article "}

// tableOf is the number of a table.
func tableOf(name string) int {
	return slices.IndexFunc(relations[:], func(r *capture.Relation) bool { return r.Name == name })
}

// keys is how many rows writers choose from.
const keys = 15

const (
	colID, colDescription, colPrice, colStock = 0, 3, 4, 6
)

// transaction is an entry of the fake WAL.
type transaction struct {
	xid         uint32
	commit, end capture.LSN
	changes     []capture.Change
	visible     bool // to snapshots; its commit record is in WAL before that
	undo        map[string]audit.Row
	steps       []string // keys whose history has a step of it, one for each
}

// fakeDB is a database with one table or two: commits are in WAL at once and become
// visible later; the slot redelivers from what was confirmed.
type fakeDB struct {
	mu        sync.Mutex
	cond      *sync.Cond
	rng       *rand.Rand
	two       bool                 // tables
	rows      map[string]audit.Row // with every commit record
	history   audit.History
	wal       []*transaction
	tip       capture.LSN
	xid       uint32
	timeline  int32
	forks     map[int32]capture.LSN // where former timelines ended
	confirmed capture.LSN
	created   bool
	sources   int
	// opening, chunking and marking, where they are there, are called before a
	// reader is opened, a chunk is read and its watermark is written. They are set
	// while no process runs.
	marking  func()
	opening  func()
	chunking func(context.Context) error
	busy     bool    // writers write
	faults   float64 // probability that a look at the slot, or at a table, kills the process
}

func newFakeDB(seed uint64) *fakeDB {
	db := &fakeDB{rng: rand.New(rand.NewPCG(seed, 1)), rows: map[string]audit.Row{}, history: audit.History{}, tip: 1000, xid: 700, timeline: 1, forks: map[int32]capture.LSN{}}
	db.cond = sync.NewCond(&db.mu)
	return db
}

func text(s string) *string { return &s }

func newRow(id, description, price, stock string) audit.Row {
	row := make(audit.Row, len(relation.Columns))
	row[colID], row[colPrice], row[colStock] = text(id), text(price), text(stock)
	if description != "" {
		row[colDescription] = text(description)
	}
	return row
}

// standing puts a row into the table before the story begins.
func (db *fakeDB) standing(row audit.Row) { db.stand(*row[colID], row) }

func (db *fakeDB) stand(key string, row audit.Row) {
	db.rows[key] = row
	db.history[key] = append(db.history[key], audit.Step{New: row, Standing: true})
}

// begin forgets what was before the slot: its rows stand in the table. Making a
// slot waits for the transactions that run.
func (db *fakeDB) begin() {
	for _, t := range db.wal {
		t.visible = true
	}
	db.history = audit.History{}
	for key, row := range db.rows {
		db.stand(key, row)
	}
}

// restore brings the database back to an earlier position, with other rows and
// without a slot. What was written after the backup is gone.
func (db *fakeDB) restore(tip capture.LSN) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.wal, db.tip, db.xid, db.created, db.confirmed = nil, tip, db.xid/2, false, 0
	for key, row := range db.rows {
		switch db.rng.IntN(4) {
		case 0:
			delete(db.rows, key)
		case 1:
			db.rows[key] = db.changed(row)
		}
	}
	db.begin()
}

// cut takes back what was committed at or behind a position, as if it had never been.
func (db *fakeDB) cut(at capture.LSN) {
	for len(db.wal) > 0 {
		t := db.wal[len(db.wal)-1]
		if t.end <= at {
			break
		}
		for _, key := range t.steps {
			db.history[key] = db.history[key][:len(db.history[key])-1]
		}
		for key, row := range t.undo {
			if row == nil {
				delete(db.rows, key)
			} else {
				db.rows[key] = row
			}
		}
		db.wal = db.wal[:len(db.wal)-1]
	}
	db.tip = at
}

// promote makes a standby the server: it has the WAL up to a position, and of the slot
// a copy that lags behind. Sessions with the former primary end.
func (db *fakeDB) promote(at, confirmed capture.LSN) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.cut(at)
	db.forks[db.timeline] = at
	db.timeline++
	db.confirmed = min(db.confirmed, confirmed, at)
	db.sources++
	db.cond.Broadcast()
}

// putBack brings the data directory back to an earlier copy, on the same timeline,
// with the slot as it was then.
func (db *fakeDB) putBack(at, confirmed capture.LSN) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.cut(at)
	db.confirmed = min(db.confirmed, confirmed, at)
	db.xid += 1000 // an xid counter does not come to the same again in the tests' few transactions
	db.sources++
	db.cond.Broadcast()
}

// tx is a transaction being written, to one table after another.
type tx struct {
	db    *fakeDB
	t     *transaction
	table int
}

// key is that of a row in the table being written.
func (t *tx) key(row audit.Row) string { return prefixes[t.table] + *row[colID] }

// commit runs f in a transaction and appends it to the WAL, not yet visible. It
// first waits for none: keys whose last transaction is invisible are locked, and
// f must not touch them.
func (db *fakeDB) commit(f func(t *tx)) *transaction {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.xid++
	t := &tx{db: db, t: &transaction{xid: db.xid, undo: map[string]audit.Row{}}}
	f(t)
	t.t.commit = db.tip
	if len(t.t.changes) > 0 && db.rng.IntN(2) == 0 {
		// Else its rows were written before its predecessor committed, whose end
		// its commit LSN then equals.
		t.t.commit += 8 * capture.LSN(len(t.t.changes)+db.rng.IntN(3))
	}
	t.t.end = t.t.commit + 8
	db.tip = t.t.end
	for i := range t.t.changes {
		c := &t.t.changes[i]
		c.Pos = capture.Position{LSN: t.t.commit, Kind: capture.KindChange, Index: uint32(i + 1)}
		c.XID, c.Time = t.t.xid, 1_700_000_000_000_000+int64(t.t.commit)
	}
	db.wal = append(db.wal, t.t)
	db.cond.Broadcast()
	return t.t
}

func (t *tx) put(op capture.Op, old, now audit.Row) {
	c := capture.Change{Op: op, Relation: relations[t.table]}
	if now != nil {
		c.New = values(now)
	}
	if op == capture.OpDelete || (op == capture.OpUpdate && *old[colID] != *now[colID]) {
		c.Old = make([]capture.Value, len(relation.Columns))
		c.Old[colID] = capture.Value{Kind: capture.Text, Data: []byte(*old[colID])}
	}
	if op == capture.OpUpdate && old[colDescription] != nil && len(*old[colDescription]) > 20 && old[colDescription] == now[colDescription] {
		c.New[colDescription] = capture.Value{Kind: capture.Unchanged}
	}
	t.t.changes = append(t.t.changes, c)
	t.note(old, now)
}

// note does to table and history what the change did.
func (t *tx) note(old, now audit.Row) {
	step := audit.Step{Old: old, New: now}
	switch {
	case old == nil:
		t.set(t.key(now), now, step)
	case now == nil:
		t.set(t.key(old), nil, step)
	case *old[colID] != *now[colID]:
		t.set(t.key(old), nil, audit.Step{Old: old, Cause: "key-changed", Related: t.key(now)})
		t.set(t.key(now), now, audit.Step{New: now, Cause: "key-changed", Related: t.key(old)})
	default:
		t.set(t.key(now), now, step)
	}
}

func (t *tx) set(key string, row audit.Row, step audit.Step) {
	if _, ok := t.t.undo[key]; !ok {
		t.t.undo[key] = t.db.rows[key]
	}
	if row == nil {
		delete(t.db.rows, key)
	} else {
		t.db.rows[key] = row
	}
	t.db.history[key] = append(t.db.history[key], step)
	t.t.steps = append(t.t.steps, key)
}

// truncate holds its lock until it is visible, so that no snapshot can miss it
// that is taken under the lock of a chunk.
func (t *tx) truncate() {
	t.t.visible = true
	t.t.changes = append(t.t.changes, capture.Change{Op: capture.OpTruncate, Relation: relations[t.table]})
	for _, key := range slices.Sorted(keysOf(t.db.rows)) {
		if _, ok := idIn(t.table, key); !ok {
			continue
		}
		t.set(key, nil, audit.Step{Old: t.db.rows[key], Cause: "truncate"})
	}
}

// idIn is the id of a key, if it is one of the table's.
func idIn(table int, key string) (string, bool) {
	id, second := strings.CutPrefix(key, prefixes[1])
	return id, second == (table == 1)
}

func keysOf(m map[string]audit.Row) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func values(row audit.Row) []capture.Value {
	vs := make([]capture.Value, len(row))
	for i, v := range row {
		vs[i] = capture.Value{Kind: capture.Null}
		if v != nil {
			vs[i] = capture.Value{Kind: capture.Text, Data: []byte(*v)}
		}
	}
	return vs
}

// locked reports whether an invisible transaction wrote the key.
func (db *fakeDB) locked(key string) bool {
	return slices.ContainsFunc(db.wal, func(t *transaction) bool { _, ok := t.undo[key]; return ok && !t.visible })
}

// appear makes some of the committed transactions visible; all of them if all is set.
func (db *fakeDB) appear(all bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, t := range db.wal {
		if all || db.rng.IntN(2) == 0 {
			t.visible = true
		}
	}
	db.cond.Broadcast()
}

// idle lets WAL grow by what is written to other tables.
func (db *fakeDB) idle() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.tip += 8 * capture.LSN(1+db.rng.IntN(3))
	db.cond.Broadcast()
}

// snapshot is a table without the invisible transactions.
func (db *fakeDB) snapshot(table int) (map[string]audit.Row, capture.Snapshot) {
	rows := map[string]audit.Row{}
	for k, r := range db.rows {
		if id, ok := idIn(table, k); ok {
			rows[id] = r
		}
	}
	s := capture.Snapshot{Xmin: uint64(db.xid) + 1, Xmax: uint64(db.xid) + 1}
	for _, t := range slices.Backward(db.wal) {
		if t.visible {
			continue
		}
		s.Running = append(s.Running, uint64(t.xid))
		s.Xmin = min(s.Xmin, uint64(t.xid))
		for k, r := range t.undo {
			id, ok := idIn(table, k)
			switch {
			case !ok:
			case r == nil:
				delete(rows, id)
			default:
				rows[id] = r
			}
		}
	}
	slices.Sort(s.Running)
	return rows, s
}

// ---- bridge.Database

func (db *fakeDB) Prepare(_ context.Context, create bool) (*capture.Prepared, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	p := &capture.Prepared{Identity: capture.Identity{System: 7, Timeline: db.timeline, Database: "shop"}, Server: 150000}
	for i, r := range relations {
		if i == 0 || db.two {
			p.Tables = append(p.Tables, capture.TableInfo{TableRef: capture.TableRef{Schema: r.Schema, Name: r.Name}, PrimaryKey: []string{"id"}, Relation: r})
		}
	}
	if !db.created {
		if !create {
			return nil, errors.New("the slot is gone")
		}
		db.created, db.confirmed, p.Slot.Created = true, db.tip, true
		db.begin()
	}
	p.Slot.Name, p.Slot.Confirmed = "backstory", db.confirmed
	return p, nil
}

func (db *fakeDB) Recall([]capture.Shape) {}

func (db *fakeDB) SlotStatus(context.Context) (capture.SlotStatus, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.rng.Float64() < db.faults {
		return capture.SlotStatus{}, &crash{"looking at the slot"}
	}
	return capture.SlotStatus{Name: "backstory", Exists: true, Confirmed: db.confirmed, Current: db.tip}, nil
}

func (db *fakeDB) Succession(_ context.Context, from capture.Identity, at capture.LSN) (capture.Succession, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	s := capture.Succession{To: capture.Identity{System: 7, Timeline: db.timeline, Database: "shop"}, Kind: capture.Unrelated}
	fork, ok := db.forks[from.Timeline]
	switch {
	case from.Timeline == db.timeline:
		s.Kind = capture.SameTimeline
	case !ok:
		return s, nil
	case at < fork:
		s.Branched, s.Kind = fork, capture.Continues
	default:
		s.Branched, s.Kind = fork, capture.Diverged
	}
	s.Began = db.forks[from.Timeline-1]
	return s, nil
}

func (db *fakeDB) Open(_ context.Context, start capture.LSN) (bridge.Source, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.sources++
	return &fakeSource{db: db, generation: db.sources, from: max(start, db.confirmed)}, nil
}

// fakeSource streams what lies above from, in pieces of random size.
type fakeSource struct {
	db         *fakeDB
	generation int
	from       capture.LSN
	next       int // transaction
	change     int // in it
	batch      capture.Batch
	before     []capture.Change // of the batch before, which is in use still
}

func (s *fakeSource) Next(ctx context.Context) (*capture.Batch, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	defer context.AfterFunc(ctx, func() { s.db.mu.Lock(); s.db.cond.Broadcast(); s.db.mu.Unlock() })()
	for {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if s.generation != s.db.sources {
			return nil, &capture.ConnError{Step: "stream", Err: errors.New("the server is gone")}
		}
		if s.fill() {
			return &s.batch, nil
		}
		s.db.cond.Wait()
	}
}

// fill takes some changes; it may end inside a transaction.
func (s *fakeSource) fill() bool {
	changes, progress := s.before[:0], false
	for room := 1 + s.db.rng.IntN(5); room > 0 && s.next < len(s.db.wal); {
		t := s.db.wal[s.next]
		if t.commit < s.from {
			s.next++
			continue
		}
		s.batch.Reached = max(s.batch.Reached, t.commit)
		n := min(room, len(t.changes)-s.change)
		changes = append(changes, t.changes[s.change:s.change+n]...)
		s.change, room, progress = s.change+n, room-max(n, 1), true
		if s.change == len(t.changes) {
			s.next, s.change = s.next+1, 0
			s.batch.Reached, s.batch.End = t.end, t.end
		}
	}
	if s.next == len(s.db.wal) && s.batch.End < s.db.tip { // a keepalive: nothing is open
		s.batch.Reached, s.batch.End, progress = s.db.tip, s.db.tip, true
	}
	if progress {
		s.before, s.batch.Changes = s.batch.Changes, changes
	}
	return progress
}

func (s *fakeSource) Confirm(lsn capture.LSN) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if s.generation == s.db.sources {
		s.db.confirmed = max(s.db.confirmed, lsn)
		s.db.cond.Broadcast()
	}
}

func (s *fakeSource) Close() error { return nil }

// ---- bridge.Reader

type fakeReader struct {
	db    *fakeDB
	table int
}

func (db *fakeDB) OpenReader(_ context.Context, table capture.TableInfo, _ string) (bridge.Reader, error) {
	if db.opening != nil {
		db.opening()
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.rng.Float64() < db.faults {
		return nil, &crash{"opening a reader"}
	}
	return &fakeReader{db: db, table: tableOf(table.Name)}, nil
}

func (r *fakeReader) Horizon(context.Context) (capture.LSN, uint64, error) {
	r.db.mu.Lock()
	defer r.db.mu.Unlock()
	return r.db.tip, uint64(r.db.xid) + 1, nil
}

func (r *fakeReader) Wait(ctx context.Context, xmax uint64) error {
	r.db.mu.Lock()
	defer r.db.mu.Unlock()
	defer context.AfterFunc(ctx, func() { r.db.mu.Lock(); r.db.cond.Broadcast(); r.db.mu.Unlock() })()
	for {
		if _, s := r.db.snapshot(r.table); s.Xmin >= xmax {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.db.cond.Wait()
	}
}

func (r *fakeReader) Chunk(ctx context.Context, after []string, limit int) (*capture.Chunk, error) {
	if r.db.chunking != nil {
		if err := r.db.chunking(ctx); err != nil {
			return nil, err
		}
	}
	return r.read(func(ids []string) ([]string, bool) {
		from := 0
		if after != nil {
			from, _ = slices.BinarySearch(ids, after[0]+"\x00")
		}
		to := min(from+limit, len(ids))
		return ids[from:to], to == len(ids)
	})
}

func (r *fakeReader) Lookup(_ context.Context, keys [][]string) (*capture.Chunk, error) {
	return r.read(func(ids []string) ([]string, bool) {
		return slices.DeleteFunc(ids, func(id string) bool {
			return !slices.ContainsFunc(keys, func(k []string) bool { return k[0] == id })
		}), true
	})
}

// read takes a snapshot, lets others commit, and then writes the watermark.
func (r *fakeReader) read(choose func(ids []string) ([]string, bool)) (*capture.Chunk, error) {
	r.db.mu.Lock()
	rows, snapshot := r.db.snapshot(r.table)
	ids, done := choose(slices.Sorted(keysOf(rows)))
	relation := relations[r.table]
	chunk := &capture.Chunk{Relation: relation, Snapshot: snapshot, Done: done, Time: 1_700_000_000_000_000 + int64(r.db.tip)}
	r.db.mu.Unlock()
	r.mark(chunk)
	for i, id := range ids {
		chunk.Changes = append(chunk.Changes, capture.Change{Op: capture.OpRead, Relation: relation, New: values(rows[id]),
			Time: chunk.Time, Pos: capture.Position{LSN: chunk.Watermark, Kind: capture.KindBackfill, Index: uint32(i + 1)}})
		chunk.Last = []string{id}
	}
	return chunk, nil
}

// mark writes the watermark. Another transaction may commit between the message
// and the end of its transaction: at the very LSN of the watermark.
func (r *fakeReader) mark(chunk *capture.Chunk) {
	if r.db.marking != nil {
		r.db.marking()
	}
	r.db.mu.Lock()
	chunk.Watermark = r.db.tip
	between := r.db.busy && r.db.rng.IntN(2) == 0
	r.db.mu.Unlock()
	if between {
		r.db.random(keys)
	}
	own := r.db.commit(func(*tx) {})
	r.db.mu.Lock()
	defer r.db.mu.Unlock()
	own.visible = true
}

func (r *fakeReader) StandbyLag(context.Context) (int64, error) { return 0, nil }
func (r *fakeReader) Close() error                              { return nil }

// random commits one random transaction on unlocked keys 1 to n of the tables.
func (db *fakeDB) random(n int) {
	db.commit(func(t *tx) {
		for range 1 + db.rng.IntN(4) {
			if db.two {
				t.table = db.rng.IntN(2)
			}
			t.random(n)
		}
	})
}

// random changes one unlocked row, or none.
func (t *tx) random(n int) {
	db := t.db
	id := strconv.Itoa(1 + db.rng.IntN(n))
	key := prefixes[t.table] + id
	if db.locked(key) {
		return
	}
	row := db.rows[key]
	switch p := db.rng.IntN(20); {
	case row == nil:
		t.put(capture.OpInsert, nil, newRow(id, db.description(), "1.00", "0"))
	case p < 3:
		t.put(capture.OpDelete, row, nil)
	case p < 5:
		to := strconv.Itoa(1 + db.rng.IntN(n))
		if db.rows[prefixes[t.table]+to] != nil || db.locked(prefixes[t.table]+to) {
			return
		}
		now := slices.Clone(row)
		now[colID] = text(to)
		t.put(capture.OpUpdate, row, now)
	case p == 5 && !slices.ContainsFunc(db.wal, func(t *transaction) bool { return len(t.undo) > 0 && !t.visible }):
		t.truncate()
	default:
		t.put(capture.OpUpdate, row, db.changed(row))
	}
}

func (db *fakeDB) description() string {
	if db.rng.IntN(2) == 0 {
		return ""
	}
	return fmt.Sprintf("a large description, stored out of line %d", db.rng.IntN(1000))
}

func (db *fakeDB) changed(row audit.Row) audit.Row {
	now := slices.Clone(row)
	if db.rng.IntN(2) == 0 {
		now[colPrice] = text(fmt.Sprintf("%d.50", db.rng.IntN(100)))
	}
	if db.rng.IntN(2) == 0 {
		now[colStock] = text(strconv.Itoa(db.rng.IntN(100)))
	}
	if db.rng.IntN(4) == 0 {
		now[colDescription] = text("another large description, out of line " + strconv.Itoa(db.rng.IntN(1000)))
	}
	return now
}
