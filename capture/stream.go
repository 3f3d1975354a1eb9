package capture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// progressEvery is how often progress without changes makes a batch: it lets
	// the server release WAL. Before Postgres 14, where no message marks the place
	// of a backfill's chunk, such progress is all that a chunk can wait for.
	progressEvery    = time.Second
	progressEveryPre = 100 * time.Millisecond

	// A stream that lags behind the commits by lagging fills its batches: it waits
	// lingerRead for each further piece, for lingerTotal at most.
	lagging     = time.Second
	lingerRead  = 2 * time.Millisecond
	lingerTotal = 100 * time.Millisecond

	closeTimeout = 2 * time.Second
)

// Stream is the session that has the slot. Next is for one goroutine; Confirm
// may be called at any time from any.
type Stream struct {
	slot        string
	publication string
	metrics     *streamMetrics
	major       int // of the server's version

	// Of Next.
	wire          *wire
	asm           *assembler
	given         bool      // the batch in asm was returned
	reached, end  LSN       // of the last batch
	at            time.Time // when it was returned
	lingering     time.Time // since when the batch in asm could be returned
	sent          int64     // server's clock at the last message, microseconds since 1970
	transactions  int       // counted in metrics so far
	progressEvery time.Duration

	// Between Next and the goroutines.
	confirmed atomic.Uint64
	limit     atomic.Uint64         // what may be confirmed: start, then End of the last batch
	waiting   atomic.Int64          // since when Next waits for bytes, microseconds since 1970; 0: it does not
	failure   atomic.Pointer[error] // why the session is over
	found     atomic.Pointer[look]  // the newest of the watch, until Next takes it in
	asked     chan struct{}         // the server wants a status
	advanced  chan struct{}         // there is more to confirm

	// Of keepStatus; after its end of Close.
	status      []byte
	statusEvery time.Duration
	silence     time.Duration

	cancel    context.CancelFunc
	writer    sync.WaitGroup // keepStatus
	watchers  sync.WaitGroup
	closeOnce sync.Once
}

// Open takes the slot and streams from start, or from where the slot is if start
// is 0. Everything below start must be durable: it does not come again. While
// another session has the slot, Open waits until ctx is done.
//
// The error is a *Refusal if the slot is gone or the server is another one, and a
// *ConnError if the connection was lost.
func (d *Database) Open(ctx context.Context, start LSN) (*Stream, error) {
	metrics, err := newStreamMetrics(d.reg)
	if err != nil {
		return nil, err
	}
	session, err := d.openSession(ctx, start)
	if err != nil {
		return nil, err
	}
	rels := d.relations()
	rels.charset = session.charset
	s := newStream(d.cfg, session, rels, start, metrics)
	s.asm.texts = newTexts(session.charset, d.tables, d.preparedTables())
	d.log.Info("slot taken", "lsn", start)
	s.run(context.WithoutCancel(ctx), d)
	return s, nil
}

func newStream(cfg Config, session *session, rels *relations, start LSN, metrics *streamMetrics) *Stream {
	s := &Stream{
		slot: cfg.Slot, publication: cfg.Publication, metrics: metrics, major: session.major,
		wire: session.wire, asm: newAssembler(rels, cfg.BatchBytes, start),
		given: true, reached: start, end: start, progressEvery: progressEvery,
		asked: make(chan struct{}, 1), advanced: make(chan struct{}, 1),
		statusEvery: statusInterval(session.senderTimeout), silence: silence,
	}
	if session.major < 14 {
		s.progressEvery = progressEveryPre
	}
	s.limit.Store(uint64(start))
	return s
}

// run starts the goroutines, which end at Close.
func (s *Stream) run(ctx context.Context, d *Database) {
	ctx, s.cancel = context.WithCancel(ctx)
	s.writer.Go(func() { s.keepStatus(ctx) })
	s.watchers.Go(func() { s.guard(ctx, d.slotActive) })
	s.watchers.Go(func() {
		err := d.watch(ctx, func(l *look) {
			s.found.Store(l)
			s.wake()
		})
		if err != nil && ctx.Err() == nil {
			s.fail(err)
		}
	})
}

// relations knows the tables as Prepare and the newest Recall have them.
func (d *Database) relations() *relations {
	rels := newRelations(d.tables, d.preparedCatalog(), d.lookUpTypes)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.baseline != nil {
		rels.begin(d.lookAgain, d.baseline.span, slices.Clone(d.baseline.shapes))
	}
	return rels
}

// Recall has the next Open begin with the shapes of tables that Prepare found, each
// as it follows what is remembered of the table: see [Shape.Follow].
func (d *Database) Recall(shapes []Shape) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.baseline == nil {
		return
	}
	base := *d.baseline // others may be looking at it
	base.shapes = slices.Clone(base.shapes)
	for i := range base.shapes {
		if at := slices.IndexFunc(shapes, func(s Shape) bool { return s.Table == base.shapes[i].Table }); at >= 0 {
			base.shapes[i] = shapes[at]
		}
	}
	d.baseline = &base
}

// preparedCatalog says where Prepare found the mapped tables.
func (d *Database) preparedCatalog() catalog {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.baseline == nil {
		return catalog{}
	}
	found := catalog{at: d.baseline.before, tables: make(map[uint32]tableName, len(d.baseline.tables))}
	for _, t := range d.baseline.tables {
		found.tables[t.Relation.ID] = tableName{t.Schema, t.Name}
	}
	return found
}

// preparedTables are the tables that Prepare found; nil before.
func (d *Database) preparedTables() []TableInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.baseline == nil {
		return nil
	}
	return d.baseline.tables
}

// lookUpTypes is resolveTypes on a connection of its own, which a stream needs
// once for each type that a user made.
func (d *Database) lookUpTypes(ctx context.Context, oids []uint32) (map[uint32]ColumnType, error) {
	conn, err := d.connect(ctx, false)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn)
	return resolveTypes(ctx, conn, oids)
}

// Next blocks until changes, or progress without changes, are there, and returns
// them with all that is at hand, up to the bounds of a batch. What the batch points
// to stays valid during the following call. After an error other than that of ctx the session
// is over, and the error stays: a *ConnError if another one can go on, a *Refusal
// if slot, publication or tables are not what they were, else what could not be
// decoded.
func (s *Stream) Next(ctx context.Context) (*Batch, error) {
	if err := s.interrupted(ctx); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, s.wake)()
	defer s.waiting.Store(0)
	if s.given {
		s.asm.next()
		s.given, s.lingering = false, time.Time{}
	}
	for {
		err := s.takeLook()
		if err == nil {
			err = s.consume(ctx)
		}
		if err != nil {
			if ctx.Err() == nil {
				s.fail(err)
			}
			return nil, err
		}
		until, ready := s.ready()
		if ready {
			return s.pass(), nil
		}
		got, err := s.read(ctx, until)
		if err != nil {
			return nil, err
		}
		if !got && s.asm.passed() > 0 {
			return s.pass(), nil
		}
	}
}

// takeLook takes in what the watch saw: the columns of a table may have changed and no
// row of it since.
func (s *Stream) takeLook() error {
	l := s.found.Swap(nil)
	if l == nil {
		return nil
	}
	return s.asm.rels.adopt(l)
}

// consume takes the messages that the buffer holds into the batch.
func (s *Stream) consume(ctx context.Context) error {
	for !s.asm.full() {
		kind, body, ok, err := s.wire.peek()
		if err != nil {
			return fmt.Errorf("stream slot %s: %w", s.slot, err)
		}
		if !ok {
			return nil
		}
		if err := s.message(ctx, kind, body); err != nil {
			return err
		}
		s.wire.skip(body)
	}
	return nil
}

// message takes in one message of the protocol.
func (s *Stream) message(ctx context.Context, kind byte, body []byte) error {
	switch kind {
	case wireCopyData:
		return s.copyData(ctx, body)
	case wireError:
		return streamError(s.slot, s.publication, s.asm.rels.charset.explain(serverError(body)))
	case wireCopyDone, wireCommandComplete, wireReady:
		return &ConnError{Step: "stream slot " + s.slot, Err: errors.New("the server ended the stream")}
	case wireNotice, wireParameter:
		return nil
	}
	return fmt.Errorf("stream slot %s: %w: kind %q", s.slot, errWire, kind)
}

func (s *Stream) copyData(ctx context.Context, body []byte) error {
	if len(body) == 0 {
		return fmt.Errorf("stream slot %s: %w: empty data", s.slot, errWire)
	}
	switch body[0] {
	case streamData:
		m, err := decodeXLogData(body[1:])
		if err != nil {
			return fmt.Errorf("stream slot %s: %w", s.slot, err)
		}
		s.sent = m.sent
		if err := s.asm.message(ctx, m.start, m.data); !errors.Is(err, errTwoPhase) {
			return err
		}
		return twoPhaseRefusal(s.slot, s.major)
	case streamKeepalive:
		m, err := decodeKeepalive(body[1:])
		if err != nil {
			return fmt.Errorf("stream slot %s: %w", s.slot, err)
		}
		s.asm.keepalive(m.walEnd)
		if m.reply {
			s.asm.prompt = true // the server may be waiting to shut down
			signal(s.asked)
		}
		return nil
	}
	return fmt.Errorf("stream slot %s: %w: data of kind %q", s.slot, errWire, body[0])
}

// ready reports whether the batch is to be returned now. If not, it says until
// when it may wait for more; the zero time is for ever.
func (s *Stream) ready() (until time.Time, ready bool) {
	if s.asm.full() {
		return time.Time{}, true
	}
	if s.asm.passed() > 0 {
		return s.linger()
	}
	if len(s.asm.rels.changed) > 0 {
		return time.Time{}, true
	}
	if s.asm.out.Reached == s.reached && s.asm.out.End == s.end {
		return time.Time{}, false
	}
	due := s.at.Add(s.progressEvery)
	return due, s.asm.prompt || !time.Now().Before(due)
}

// linger is ready for a batch with changes: it is returned as soon as the
// connection has nothing more at hand, except when that is long ago what the
// database does, and large batches help to catch up.
func (s *Stream) linger() (until time.Time, ready bool) {
	behind := time.Duration(s.sent-s.asm.committed) * time.Microsecond
	if s.wire.drained && behind < lagging {
		return time.Time{}, true
	}
	now := time.Now()
	if s.lingering.IsZero() {
		s.lingering = now
	}
	return now.Add(lingerRead), now.Sub(s.lingering) >= lingerTotal
}

// pass returns the batch.
func (s *Stream) pass() *Batch {
	batch := s.asm.batch()
	batch.Shapes, s.asm.rels.changed = s.asm.rels.changed, nil
	s.given, s.at = true, time.Now()
	s.reached, s.end = batch.Reached, batch.End
	s.limit.Store(uint64(batch.End))
	s.metrics.changes.Add(float64(len(batch.Changes)))
	s.metrics.transactions.Add(float64(s.asm.transactions - s.transactions))
	s.metrics.received.Set(float64(batch.Reached))
	s.transactions = s.asm.transactions
	return batch
}

// read waits for bytes, until the given time or for ever. got is false if the
// time is over, or may be.
func (s *Stream) read(ctx context.Context, until time.Time) (got bool, err error) {
	// The deadline comes first: wake sets it after what interrupted looks at, so
	// that one of the two is always seen.
	if err := s.wire.conn.SetReadDeadline(until); err != nil {
		return false, s.lost(err)
	}
	if err := s.interrupted(ctx); err != nil {
		return false, err
	}
	s.waiting.CompareAndSwap(0, time.Now().UnixMicro())
	err = s.wire.read()
	switch {
	case err == nil:
		s.waiting.Store(0)
		return true, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, s.interrupted(ctx)
	}
	return false, s.lost(err)
}

// lost ends the session because of the connection.
func (s *Stream) lost(err error) error {
	s.fail(transportError("stream slot "+s.slot, err))
	return *s.failure.Load()
}

// interrupted returns why Next must not go on.
func (s *Stream) interrupted(ctx context.Context) error {
	if failure := s.failure.Load(); failure != nil {
		return *failure
	}
	if ctx.Err() != nil {
		return fmt.Errorf("wait for changes: %w", context.Cause(ctx))
	}
	return nil
}

// fail ends the session; the first reason stays.
func (s *Stream) fail(err error) {
	s.failure.CompareAndSwap(nil, &err)
	s.wake()
}

// wake ends the wait in read.
func (s *Stream) wake() { _ = s.wire.conn.SetReadDeadline(time.Unix(1, 0)) }

// Confirm lets the server discard the WAL below lsn, soon: it does not block.
// Everything below lsn must be durable by then. A position below the last one is
// ignored, and one above the End of the last batch is cut to that: what was
// not passed on cannot be durable.
func (s *Stream) Confirm(lsn LSN) {
	lsn = min(lsn, LSN(s.limit.Load()))
	for {
		confirmed := s.confirmed.Load()
		if uint64(lsn) <= confirmed {
			return
		}
		if s.confirmed.CompareAndSwap(confirmed, uint64(lsn)) {
			signal(s.advanced)
			return
		}
	}
}

// signal leaves a signal that is not there yet.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close reports what is confirmed, ends the stream in good order, so that
// another session can have the slot at once, and closes the connection. It must
// not be called during Next, and takes some seconds at most. That the server could
// not be told is no error: what it does not know is sent again.
func (s *Stream) Close() error {
	s.closeOnce.Do(func() {
		s.cancel()
		s.writer.Wait()
		if s.failure.Load() == nil {
			s.farewell()
		}
		_ = s.wire.conn.Close()
		s.watchers.Wait()
		err := error(&ConnError{Step: "stream slot " + s.slot, Err: os.ErrClosed})
		s.failure.CompareAndSwap(nil, &err)
	})
	return nil
}

// farewell exchanges the last messages, in bounded time.
func (s *Stream) farewell() {
	now := time.Now()
	if s.wire.conn.SetDeadline(now.Add(closeTimeout)) != nil {
		return
	}
	bye := appendCopyDone(appendStatus(s.status[:0], LSN(s.confirmed.Load()), now, false))
	if _, err := s.wire.conn.Write(bye); err != nil {
		return
	}
	for {
		kind, body, err := s.wire.receive()
		if err != nil || kind == wireError {
			return
		}
		s.wire.skip(body)
		if kind == wireCommandComplete { // the slot is released
			_, _ = s.wire.conn.Write(appendTerminate(nil))
			return
		}
	}
}
