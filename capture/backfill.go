package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	watermarkPrefix = "backstory.watermark"
	waitPoll        = 200 * time.Millisecond
	lockRetryPause  = 200 * time.Millisecond
)

// Reader reads one table in chunks, in the order of its key. It holds one
// session, which it opens anew when it was lost. Its methods must not be called
// concurrently; chunks may be used by others until they are released.
type Reader struct {
	d       *Database
	info    TableInfo
	where   string         // SQL condition of the rows that chunks have; empty: all
	timeout time.Duration  // of a statement
	conn    *pgconn.PgConn // nil after an error

	facts *tableFacts // of the last chunk
	plan  *readPlan   // belongs to facts
	free  chunkPool
	row   int // bytes of a row, as seen of late; 0: not known
}

// ReadOptions say how a table is read.
type ReadOptions struct {
	// Where is an SQL condition of the rows that chunks have; empty is all. One that
	// the server does not understand is a *UsageError of OpenReader.
	Where string
	// StatementTimeout is how long the server may work on one chunk; 0 is the default,
	// 10 minutes.
	StatementTimeout time.Duration
}

// DefaultStatementTimeout is that of ReadOptions.
const DefaultStatementTimeout = 10 * time.Minute

// OpenReader makes a reader of a table that Prepare found. The caller closes it.
func (d *Database) OpenReader(ctx context.Context, table TableInfo, o ReadOptions) (*Reader, error) {
	r := &Reader{d: d, info: table, where: o.Where, timeout: cmp.Or(o.StatementTimeout, DefaultStatementTimeout)}
	err := r.dial(ctx)
	if err == nil && r.where != "" {
		err = r.checkWhere(ctx)
	}
	if err != nil {
		r.hangUp(ctx)
		return nil, fmt.Errorf("open reader of table %s: %w", table, err)
	}
	return r, nil
}

// checkWhere has the server parse the condition, alone in a statement of the
// extended protocol, which takes only one: what it accepts is an expression.
func (r *Reader) checkWhere(ctx context.Context) error {
	sql := "SELECT 1 FROM ONLY " + quoteTable(r.info.Schema, r.info.Name) + whereClause(r.where)
	_, err := r.conn.Prepare(ctx, "", sql, nil)
	switch {
	case err == nil:
		return nil
	case lost(err):
		return stepError(ctx, "check the condition", err)
	}
	return &UsageError{Key: "where", Problem: serverText(err)}
}

// whereClause keeps a comment at the end of the condition from what follows it.
func whereClause(where string) string { return " WHERE (" + where + "\n)" }

// Close ends the reader's session. Chunks stay valid. It may be called twice.
func (r *Reader) Close() error {
	r.hangUp(context.Background())
	return nil
}

func (r *Reader) dial(ctx context.Context) error {
	if r.conn != nil && !r.conn.IsClosed() {
		return nil
	}
	conn, err := r.d.dialReader(ctx, r.timeout)
	r.conn = conn
	return err
}

func (r *Reader) hangUp(ctx context.Context) {
	if r.conn != nil {
		closeConn(ctx, r.conn)
		r.conn = nil
	}
}

// Chunk reads up to limit rows whose key lies behind after, in key order; after
// has the values of the key columns as in Chunk.Last, nil means from the start.
// A chunk ends early, without being Done, at Config.BatchBytes.
//
// The chunk is read in a transaction of its own and its watermark is written
// after that, so every transaction that the chunk's snapshot sees has its
// commit record below the watermark. The chunk is valid until it is released;
// any number may be.
func (r *Reader) Chunk(ctx context.Context, after []string, limit int) (*Chunk, error) {
	if limit < 1 {
		return nil, fmt.Errorf("read table %s: limit %d is below 1", r.info, limit)
	}
	limit = r.fit(limit)
	chunk, err := r.read(ctx, r.d.cfg.BatchBytes, func(p *readPlan) (string, error) { return p.chunkSQL(r.where, after, limit) })
	if err != nil {
		return nil, fmt.Errorf("read chunk of table %s: %w", r.info, err)
	}
	chunk.Done = !chunk.buffer.full && len(chunk.Changes) < limit
	return chunk, nil
}

// Lookup reads the rows with the given keys, each the text of the key columns in
// the order of the mapping's key. A key without a row is not in the chunk; the
// column type's equality decides, so a row's key may print differently. Where a key
// is no value of the type, because that was another one once, the texts decide, at the
// cost of reading the whole table. The chunk holds them all, whatever their size, in no order; Done and Last mean
// nothing.
func (r *Reader) Lookup(ctx context.Context, keys [][]string) (*Chunk, error) {
	chunk, err := r.lookup(ctx, keys)
	if strings.HasPrefix(sqlState(err), classData) {
		var values [][]string
		if values, err = r.values(ctx, keys); err == nil {
			chunk, err = r.lookup(ctx, values)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look up %d rows of table %s: %w", len(keys), r.info, err)
	}
	return chunk, nil
}

func (r *Reader) lookup(ctx context.Context, keys [][]string) (*Chunk, error) {
	return r.read(ctx, 0, func(p *readPlan) (string, error) { return p.lookupSQL(keys) })
}

// values returns those of the keys that are values of the columns' types, as the table
// was read last. The type may have changed since a key was written: what it does not
// accept is the key of no row.
func (r *Reader) values(ctx context.Context, keys [][]string) ([][]string, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	if err := r.dial(ctx); err != nil {
		return nil, err
	}
	_, err := query(ctx, r.conn, "check keys", r.plan.castSQL(keys))
	switch {
	case err == nil:
		return keys, nil
	case !strings.HasPrefix(sqlState(err), classData):
		return nil, err
	case len(keys) == 1:
		return nil, nil
	}
	left, err := r.values(ctx, keys[:len(keys)/2])
	if err != nil {
		return nil, err
	}
	right, err := r.values(ctx, keys[len(keys)/2:])
	return append(slices.Clip(left), right...), err
}

// fit lowers limit to what is likely to fit into a chunk, so that the server
// does not send what would be dropped.
func (r *Reader) fit(limit int) int {
	if r.row == 0 {
		return limit
	}
	return min(limit, r.d.cfg.BatchBytes/r.row+1)
}

// read reads one chunk: again from the start with a new session if the old one
// was lost before, and for as long as somebody's lock on the table lasts.
func (r *Reader) read(ctx context.Context, bytes int, sql func(*readPlan) (string, error)) (*Chunk, error) {
	lostOnce, waited := false, false
	for {
		chunk, err := r.tryRead(ctx, bytes, sql)
		if err == nil {
			return chunk, nil
		}
		r.hangUp(ctx)
		var gone *ConnError
		switch {
		case ctx.Err() != nil:
			return nil, err
		case sqlState(err) == codeLockNotAvailable:
			if !waited {
				r.d.log.Warn("backfill waits for a lock on the table", "table", r.info.String())
				waited = true
			}
			if err := pause(ctx, lockRetryPause); err != nil {
				return nil, err
			}
		case errors.As(err, &gone) && !lostOnce:
			lostOnce = true
		default:
			return nil, err
		}
	}
}

// tryRead reads one chunk of about the given bytes, 0 for any number.
func (r *Reader) tryRead(ctx context.Context, bytes int, sql func(*readPlan) (string, error)) (*Chunk, error) {
	if err := r.dial(ctx); err != nil {
		return nil, err
	}
	chunk := r.free.take()
	chunk.buffer.limit = bytes
	if err := r.inSnapshot(ctx, chunk, sql); err != nil {
		chunk.Release()
		return nil, err
	}
	lsn, err := r.watermark(ctx)
	if err != nil {
		chunk.Release()
		return nil, err
	}
	chunk.place(lsn)
	return chunk, nil
}

// inSnapshot fills the chunk in one transaction. The table lock comes first: the
// snapshot, the catalog as of that snapshot and the rows then belong together,
// whatever ALTER TABLE or TRUNCATE is waiting.
func (r *Reader) inSnapshot(ctx context.Context, chunk *Chunk, sql func(*readPlan) (string, error)) error {
	if err := exec(ctx, r.conn, "begin", r.beginSQL()); err != nil {
		if sqlState(err) == codeUndefinedTable {
			return r.replaced()
		}
		return err
	}
	row, err := queryRow(ctx, r.conn, "take snapshot", "SELECT "+snapshotFunction(serverMajor(r.conn))+
		"::text, (extract(epoch FROM clock_timestamp()) * 1000000)::int8::text")
	if err != nil {
		return err
	}
	if chunk.Snapshot, err = parseSnapshot(row[0]); err != nil {
		return err
	}
	if chunk.Time, err = strconv.ParseInt(row[1], 10, 64); err != nil {
		return fmt.Errorf("read time: %w", err)
	}
	if err := r.refresh(ctx); err != nil {
		return err
	}
	statement, err := sql(r.plan)
	if err != nil {
		return err
	}
	if err := r.copy(ctx, chunk, statement); err != nil {
		return err
	}
	return exec(ctx, r.conn, "commit", "COMMIT")
}

// beginSQL opens the transaction of a chunk. A page of rows in key order must
// come from the key's index, however attractive a sort may look to the planner:
// a sort reads the whole table, and there are many pages.
func (r *Reader) beginSQL() string {
	var sql strings.Builder
	sql.WriteString("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE ONLY ")
	sql.WriteString(quoteTable(r.info.Schema, r.info.Name))
	sql.WriteString(" IN ACCESS SHARE MODE; SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; ")
	sql.WriteString("SET LOCAL enable_bitmapscan = off; SET LOCAL max_parallel_workers_per_gather = 0")
	if serverMajor(r.conn) >= 11 {
		sql.WriteString("; SET LOCAL jit = off")
	}
	return sql.String()
}

// refresh reads the table's catalog as the snapshot sees it, and makes a new
// relation and plan if the table is no longer what it was.
func (r *Reader) refresh(ctx context.Context) error {
	facts, err := readTable(ctx, r.conn, r.info.TableRef)
	if err != nil {
		return err
	}
	if facts.oid == 0 || r.info.Relation != nil && facts.oid != r.info.Relation.ID {
		return r.replaced()
	}
	if r.plan == nil || !facts.sameShape(r.facts) {
		plan, err := newReadPlan(ctx, r.conn, facts)
		if err != nil {
			return err
		}
		r.facts, r.plan, r.row = facts, plan, 0
	}
	return nil
}

func (r *Reader) replaced() error {
	return &Refusal{Thing: "table " + r.info.String(), Problem: "it was dropped, or dropped and made anew",
		Cure: "start again, with a backfill, when the table is as it should be"}
}

// copy runs the statement and decodes its rows into the chunk.
func (r *Reader) copy(ctx context.Context, chunk *Chunk, statement string) error {
	buffer, begun := chunk.buffer, time.Now()
	if _, err := r.conn.CopyTo(ctx, buffer, statement); err != nil {
		err = stepError(ctx, "copy rows", err)
		if sqlState(err) == codeQueryCanceled && time.Since(begun) >= r.timeout { // else somebody has cancelled it
			err = fmt.Errorf("%w; the chunk was not read within backfill.statement_timeout (%s): raise that, or lower backfill.chunk_rows", err, r.timeout)
		}
		return err
	}
	if buffer.rows > 0 {
		r.row = max(1, len(buffer.data)/buffer.rows)
	}
	chunk.Relation = r.plan.relation
	if err := chunk.decode(r.plan); err != nil {
		return fmt.Errorf("decode rows: %w", err)
	}
	return nil
}

// watermark writes a message into WAL and returns its LSN. The message is
// transactional and stands alone in its transaction: the commit flushes it at
// once, and the stream delivers at least BEGIN and COMMIT of it, also on servers
// that have no option to send messages.
func (r *Reader) watermark(ctx context.Context) (LSN, error) {
	row, err := queryRow(ctx, r.conn, "write watermark",
		"SELECT pg_logical_emit_message(true, '"+watermarkPrefix+"', $1)::text", r.info.String())
	if err != nil {
		return 0, err
	}
	lsns, err := parseLSNs(row[0])
	if err != nil {
		return 0, fmt.Errorf("write watermark: %w", err)
	}
	return lsns[0], nil
}

// Horizon returns a position of WAL, and an xid such that every transaction with
// a record below that position has a smaller one.
func (r *Reader) Horizon(ctx context.Context) (lsn LSN, xmax uint64, err error) {
	if err := r.dial(ctx); err != nil {
		return 0, 0, err
	}
	if lsn, err = r.watermark(ctx); err != nil {
		return 0, 0, fmt.Errorf("read horizon: %w", err)
	}
	snapshot, err := r.snapshot(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("read horizon: %w", err)
	}
	return lsn, snapshot.Xmax, nil
}

// Wait returns when every transaction below xmax has ended and every later
// snapshot sees it. It says in the log, once, what it waits for.
func (r *Reader) Wait(ctx context.Context, xmax uint64) error {
	told := false
	for {
		if err := r.dial(ctx); err != nil {
			return fmt.Errorf("wait for transactions below %d: %w", xmax, err)
		}
		snapshot, err := r.snapshot(ctx)
		if err != nil {
			return fmt.Errorf("wait for transactions below %d: %w", xmax, err)
		}
		if snapshot.Xmin >= xmax {
			return nil
		}
		if !told {
			told = true
			r.d.log.Info("backfill waits for running transactions", "table", r.info.String(), "xid", snapshot.Xmin)
		}
		if err := pause(ctx, waitPoll); err != nil {
			return fmt.Errorf("wait for transactions below %d: %w", xmax, err)
		}
	}
}

// CommitTimes returns when transactions were committed, in microseconds since 1970,
// as far as the server knows: nothing where track_commit_timestamp is off, and not
// those of long ago. An xid is that of 32 bits, and of the newest transaction that
// has it.
func (r *Reader) CommitTimes(ctx context.Context, xids []uint32) (map[uint32]int64, error) {
	if err := r.dial(ctx); err != nil {
		return nil, err
	}
	list := make([]string, len(xids))
	for i, xid := range xids {
		list[i] = strconv.FormatUint(uint64(xid), 10)
	}
	const step = "read commit times"
	on, err := queryRow(ctx, r.conn, step, "SELECT current_setting('track_commit_timestamp')")
	if err != nil || on[0] != "on" {
		return nil, err
	}
	rows, err := query(ctx, r.conn, step, `
SELECT x, (extract(epoch FROM at) * 1000000)::int8::text
  FROM unnest($1::text[]) x, pg_xact_commit_timestamp(x::xid) at WHERE at IS NOT NULL`, "{"+strings.Join(list, ",")+"}")
	if err != nil {
		return nil, err
	}
	times := make(map[uint32]int64, len(rows))
	for _, row := range rows {
		micros, err := strconv.ParseInt(row[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", step, err)
		}
		times[parseOID(row[0])] = micros // an xid has the form of an OID
	}
	return times, nil
}

// snapshot takes a snapshot of its own.
func (r *Reader) snapshot(ctx context.Context) (Snapshot, error) {
	row, err := queryRow(ctx, r.conn, "take snapshot", "SELECT "+snapshotFunction(serverMajor(r.conn))+"::text")
	if err != nil {
		return Snapshot{}, err
	}
	return parseSnapshot(row[0])
}

// sameShape reports whether two looks at a table lead to the same statements
// and the same relation.
func (t *tableFacts) sameShape(u *tableFacts) bool {
	return t.kind == u.kind && t.identity == u.identity && slices.Equal(t.columns, u.columns) &&
		slices.EqualFunc(t.indexes, u.indexes, func(a, b indexFacts) bool {
			return a.name == b.name && a.primary == b.primary && a.immediate == b.immediate && a.replident == b.replident &&
				a.notNull == b.notNull && a.ordered == b.ordered && a.distinct == b.distinct && slices.Equal(a.columns, b.columns) &&
				slices.Equal(a.operators, b.operators)
		})
}
