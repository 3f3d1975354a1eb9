package capture

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// Bounds up to which a transaction is held until it is complete, because a
// context message at its end applies to all of it. They count what WAL says, so
// that a transaction is held, or not, at every redelivery alike.
const (
	heldChanges = 1000
	heldBytes   = 1 << 20 // of row messages
)

// maxBatchChanges and maxBatchValues bound a batch beside its bytes.
const (
	maxBatchChanges = 10_000
	maxBatchValues  = 1 << 18
)

// Errors of the order of messages. They mean that the server is not what it
// says, or that this package is wrong.
var (
	errNoTransaction = errors.New("message outside a transaction")
	errInTransaction = errors.New("transaction begins inside another")
	errOtherCommit   = errors.New("commit record differs from the one that the transaction began with")
	errManyChanges   = errors.New("transaction has more than 4294967295 changes")
)

// assembler makes batches of pgoutput messages. It does no input or output,
// except that a new table may ask the catalog for types.
type assembler struct {
	rels     *relations
	texts    *texts // nil: the texts are UTF-8
	maxBytes int    // of a batch
	tx       transaction
	cur      *arena      // of the batch that is being built
	other    *arena      // of the batch before
	unused   slab[Value] // for rows that are decoded only to be checked
	out      Batch
	// prompt: somebody waits for out.Reached, so progress alone is worth a batch.
	prompt       bool
	transactions int   // complete ones, ever
	committed    int64 // commit time of the last one that began, microseconds since 1970
}

// transaction is the one that is open.
type transaction struct {
	begin
	open  bool
	index uint32 // ordinal of the last row change
	// held: its changes, from cur.changes[from] on, are not passed on yet.
	held    bool
	from    int
	bytes   int      // of its row messages, while held
	context *Context // of the last message
	said    bool     // there was a message
}

// newAssembler starts at a position below which all is passed on already.
func newAssembler(rels *relations, maxBytes int, start LSN) *assembler {
	return &assembler{
		rels: rels, maxBytes: maxBytes, cur: newArena(), other: newArena(),
		unused: slab[Value]{blockLen: valueBlock},
		out:    Batch{Reached: start, End: start},
	}
}

// next starts a new batch: what was passed on is given up, what is held is
// carried over.
func (a *assembler) next() {
	passed := a.passed()
	a.cur, a.other = a.other, a.cur
	a.cur.reset()
	a.cur.adopt(a.other.changes[passed:])
	a.tx.from = 0
	a.prompt = false
}

// passed is the number of changes that the batch may pass on now.
func (a *assembler) passed() int {
	if a.tx.held {
		return a.tx.from
	}
	return len(a.cur.changes)
}

// full reports whether the batch has reached one of its bounds. A held
// transaction alone makes no batch; it has bounds of its own.
func (a *assembler) full() bool {
	return a.passed() > 0 && (len(a.cur.changes) >= maxBatchChanges ||
		a.cur.bytes.used >= a.maxBytes || a.cur.values.used >= maxBatchValues)
}

// batch returns what can be passed on. The changes are valid until the call of
// next after the following one; the Batch is the same one every time.
func (a *assembler) batch() *Batch {
	a.out.Changes = a.cur.changes[:a.passed()]
	return &a.out
}

// reach notes that every transaction that commits below lsn is in the batch or
// was in one before.
func (a *assembler) reach(lsn LSN) { a.out.Reached = max(a.out.Reached, lsn) }

// end notes that the slot may be confirmed at lsn.
func (a *assembler) end(lsn LSN) {
	a.reach(lsn)
	a.out.End = max(a.out.End, lsn)
}

// keepalive takes in the server's position. Between transactions nothing below
// it is still to come; inside one it says nothing.
func (a *assembler) keepalive(walEnd LSN) {
	if !a.tx.open {
		a.end(walEnd)
	}
}

// message takes in one message of pgoutput, which is not kept. An error is final.
func (a *assembler) message(ctx context.Context, at LSN, data []byte) error {
	if len(data) == 0 {
		return decodeError(0, at, errShort)
	}
	kind, body := data[0], data[1:]
	if err := a.dispatch(ctx, kind, body); err != nil {
		var refusal *Refusal
		if errors.As(err, &refusal) {
			return err // it is about the database, and says what to do
		}
		if at == 0 || a.tx.open {
			at = a.tx.commit
		}
		var conn *ConnError
		if refused(err) || misused(err) || errors.As(err, &conn) {
			return fmt.Errorf("transaction that commits at %s: %w", at, err)
		}
		return decodeError(kind, at, err)
	}
	return nil
}

func (a *assembler) dispatch(ctx context.Context, kind byte, body []byte) error {
	switch kind {
	case msgInsert, msgUpdate, msgDelete:
		return a.row(kind, body)
	case msgBegin:
		return a.begin(body)
	case msgCommit:
		return a.commit(body)
	case msgRelation:
		return a.rels.describe(ctx, a.tx.commit, body)
	case msgType:
		return a.rels.learn(body)
	case msgTruncate:
		return a.truncate(body)
	case msgMessage:
		return a.logical(body)
	case msgOrigin:
		return decodeOrigin(body)
	case msgStreamAbort:
		return decodeStreamAbort(body)
	case msgBeginPrepare, msgPrepare, msgCommitPrepared, msgRollbackPrepared, msgStreamPrepare:
		return errTwoPhase
	}
	return errors.New("unknown message")
}

func (a *assembler) begin(body []byte) error {
	m, err := decodeBegin(body)
	if err != nil {
		return err
	}
	if a.tx.open {
		return errInTransaction
	}
	a.tx = transaction{begin: m, open: true, held: true, from: len(a.cur.changes)}
	a.committed = m.time
	a.reach(m.commit)
	return nil
}

func (a *assembler) commit(body []byte) error {
	m, err := decodeCommit(body)
	switch {
	case err != nil:
		return err
	case !a.tx.open:
		return errNoTransaction
	case m.commit != a.tx.commit || m.end < m.commit:
		return errOtherCommit
	}
	a.tx = transaction{}
	a.transactions++
	a.end(m.end)
	return nil
}

// row takes in an insert, update or delete.
func (a *assembler) row(kind byte, body []byte) error {
	id, err := relationID(body)
	if err != nil {
		return err
	}
	table, err := a.rels.find(id)
	if err != nil {
		return err
	}
	if err := a.count(); err != nil {
		return err
	}
	data, values := body, &a.unused
	if table.mapped {
		data, values = a.cur.copy(body), &a.cur.values
	}
	a.unused.reset()
	r, err := decodeRow(kind, data, len(table.Columns), values)
	if err != nil {
		return fmt.Errorf("table %s.%s: %w", table.Schema, table.Name, err)
	}
	if !table.mapped {
		return nil // it was only checked
	}
	change := a.add(table.Relation, len(body))
	switch kind {
	case msgInsert:
		change.Op = OpInsert
	case msgUpdate:
		change.Op = OpUpdate
	case msgDelete:
		change.Op = OpDelete
	}
	change.New, change.Old, change.OldFull = r.new, r.old, r.oldFull
	if a.texts != nil {
		return a.texts.change(change, a.cur.copy)
	}
	return nil
}

// truncate takes in a TRUNCATE of one or more tables, each a change.
func (a *assembler) truncate(body []byte) error {
	m, err := decodeTruncate(body)
	if err != nil {
		return err
	}
	for range m.count {
		table, err := a.rels.find(m.ids.uint32())
		if err != nil {
			return err
		}
		if err := a.count(); err != nil {
			return err
		}
		if table.mapped {
			a.add(table.Relation, 0).Op = OpTruncate
		}
	}
	return nil
}

// count gives the next row change of the transaction its ordinal.
func (a *assembler) count() error {
	switch {
	case !a.tx.open:
		return errNoTransaction
	case a.tx.index == math.MaxUint32:
		return errManyChanges
	}
	a.tx.index++
	return nil
}

// add appends a change of the open transaction, and lets go of the transaction
// if it has become too large to be held.
func (a *assembler) add(rel *Relation, size int) *Change {
	if a.tx.held {
		a.tx.bytes += size
		if len(a.cur.changes)-a.tx.from >= heldChanges || a.tx.bytes > heldBytes {
			a.tx.held = false
		}
	}
	a.cur.changes = append(a.cur.changes, Change{
		Pos:      Position{LSN: a.tx.commit, Kind: KindChange, Index: a.tx.index},
		XID:      a.tx.xid,
		Time:     a.tx.time,
		Relation: rel,
		Context:  a.tx.context,
	})
	return &a.cur.changes[len(a.cur.changes)-1]
}

// logical takes in a message of pg_logical_emit_message.
func (a *assembler) logical(body []byte) error {
	m, err := decodeMessage(body)
	if err != nil {
		return err
	}
	switch {
	case !m.transactional:
		if !a.tx.open {
			a.reach(m.lsn)
			a.prompt = a.prompt || isOwn(m.prefix)
		}
	case !a.tx.open:
		return errNoTransaction
	case string(m.prefix) == contextPrefix:
		a.say(parseContext(a.texts.message(m.content)))
	case isOwn(m.prefix): // a watermark; its commit is worth a batch
		a.prompt = true
	}
	return nil
}

func isOwn(prefix []byte) bool {
	return len(prefix) >= len(ownPrefix) && string(prefix[:len(ownPrefix)]) == ownPrefix
}

// say puts a context in force: for the changes to come, and as the first one of
// its transaction also for those before it that are still held.
func (a *assembler) say(said *Context) {
	if !a.tx.said && a.tx.held {
		held := a.cur.changes[a.tx.from:]
		for i := range held {
			held[i].Context = said
		}
	}
	a.tx.context, a.tx.said = said, true
}
