package bridge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// pieces is how many pieces the pipeline has: one being filled, one waiting, one
// being published.
const pieces = 3

// piece is a run of whole changes on its way through the pipeline.
type piece struct {
	out   transform.Output
	batch *state.Batch
	view  states      // of batch, for the transformer
	top   capture.LSN // the highest position that was put through view
	pub   Publication // nil if there are no events
	end   capture.LSN // the slot may be confirmed to here once the piece is durable; 0: nothing new
	time  int64       // commit time of the newest change, microseconds since 1970; 0: none
	// settled is closed when the piece is durable; nil unless somebody waits.
	settled chan struct{}
}

// stream is one session's pipeline of two stages. The first takes changes and
// chunks, maps them against the state and encodes the events; the second owns
// the durable steps. So the network is waited for beside the work, and the
// order stays in one place: [stream.settle].
type stream struct {
	b        *Bridge
	src      Source
	prepared *capture.Prepared
	base     capture.LSN // added to the positions of the WAL; LSNs outside of positions are the server's
	tr       *transform.Transformer
	proof    proof
	newest   newest // what the state will have once all that was taken is committed
	told     newest // of it, what pieces have

	batches chan capture.Batch // from feed
	jobs    chan *job          // chunks whose watermark is in WAL; with room, so that a reader need not wait for the first stage

	cur     *piece
	free    chan *piece
	filled  chan *piece
	room    chan struct{} // holds a token while filled is empty
	due     []*job
	reached capture.LSN
	end     capture.LSN
	repairs map[uint16]*repair // tables under a reconciling run
	emptied map[uint16]truncation
	// By table; fixed at the start. horizons are those of its run, or of the last
	// one; reading is held from a snapshot to its watermark: see DESIGN.md.
	horizons map[uint16]*atomic.Uint64
	reading  map[uint16]*sync.Mutex
	tallies  map[uint16]*tally
	key      []byte // scratch
	past     map[uint16]passing
	reshaped chan struct{} // holds a signal after a table's columns have changed

	committed committedLSN
}

func newStream(b *Bridge, src Source, prepared *capture.Prepared, r resume) *stream {
	s := &stream{
		b: b, src: src, prepared: prepared, base: r.base, proof: r.proof, newest: r.newest, told: r.newest, tr: transform.New(b.mapping, prepared.Identity),
		batches: make(chan capture.Batch), jobs: make(chan *job, readAhead),
		free: make(chan *piece, pieces), filled: make(chan *piece, 1), room: make(chan struct{}, 1),
		repairs: map[uint16]*repair{}, emptied: map[uint16]truncation{}, horizons: map[uint16]*atomic.Uint64{},
		reading: map[uint16]*sync.Mutex{}, tallies: map[uint16]*tally{}, committed: committedLSN{closed: make(chan struct{})},
	}
	for range pieces {
		s.free <- &piece{}
	}
	s.room <- struct{}{}
	s.reshaped = make(chan struct{}, 1)
	s.tr.Rebase(r.base)
	for _, t := range b.mapping.Tables {
		s.tallies[t.ID], s.horizons[t.ID], s.reading[t.ID] = &tally{}, &atomic.Uint64{}, &sync.Mutex{}
	}
	return s
}

// run streams until stop is done, then publishes and confirms what was taken.
func (s *stream) run(stop context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(stop))
	defer cancel()
	defer context.AfterFunc(stop, func() { time.AfterFunc(s.b.cfg.StopTimeout, cancel) })()
	g, ctx := errgroup.WithContext(work)
	taking, stopTaking := context.WithCancel(ctx) // ends with stop or with the first error
	defer stopTaking()
	defer context.AfterFunc(stop, stopTaking)()

	g.Go(func() error { return s.feed(taking) })          // ends with taking, or when the source breaks
	g.Go(func() error { return s.b.watchTopics(taking) }) // ends with taking, or when a topic is wrong
	g.Go(func() error { return s.backfill(taking) })      // ends with taking
	g.Go(func() error {                                   // ends with taking, one batch later
		defer close(s.filled)
		return s.take(ctx, taking)
	})
	g.Go(func() error { // ends when take has, all published
		defer s.committed.close()
		return s.settle(ctx)
	})
	g.Go(func() error { return s.confirm(ctx) }) // ends when settle has, all confirmed
	err := g.Wait()
	s.b.store.DropAll() // what was taken and not committed comes again
	if stop.Err() != nil && work.Err() != nil {
		s.b.log.Warn("stopped after stop_timeout with events unpublished; they come again at the next start", "err", err)
		return nil
	}
	return err
}

// feed reads and decodes a batch while take maps the one before. take receives a
// batch only when it is done with the one before, so two are in use at a time.
func (s *stream) feed(ctx context.Context) error {
	for {
		batch, err := s.src.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read the stream: %w", err)
		}
		select {
		case s.batches <- *batch: // never from a buffer: see above
		case <-ctx.Done():
			return nil
		}
	}
}

// take is the first stage. It passes a piece on as soon as the second stage has
// room; while there is none the piece grows up to its bound. So pieces are small
// while little happens, and the slower Kafka is, the more goes into one request.
func (s *stream) take(ctx, taking context.Context) error {
	renew := time.NewTicker(s.b.cfg.RenewInterval)
	defer renew.Stop()
	for {
		room, renewal, jobs := s.room, renew.C, s.jobs
		if s.cur == nil {
			room = nil
		}
		if s.proof.pending() { // nothing is passed on, except what stands before a TRUNCATE
			room, renewal, jobs = nil, nil, nil
		}
		select {
		case <-taking.Done():
			if s.proof.pending() {
				return nil // it comes again
			}
			return s.send(ctx)
		case <-room:
			if err := s.pass(); err != nil {
				return err
			}
		case batch := <-s.batches:
			if err := s.takeBatch(ctx, &batch); err != nil {
				return err
			}
		case j := <-jobs:
			s.due = append(s.due, j)
			if err := s.applyDue(ctx); err != nil {
				return err
			}
		case <-renewal:
			if err := s.renew(ctx); err != nil {
				return err
			}
		}
	}
}

// takeBatch maps a batch of changes, then the chunks that its progress makes due.
func (s *stream) takeBatch(ctx context.Context, batch *capture.Batch) error {
	if err := s.takeShapes(ctx, batch.Shapes); err != nil {
		return err
	}
	for i := range batch.Changes {
		if err := s.takeChange(ctx, &batch.Changes[i]); err != nil {
			return err
		}
	}
	if err := s.proof.reach(batch.Reached); err != nil {
		return err
	}
	s.reached = max(s.reached, batch.Reached)
	if err := s.applyDue(ctx); err != nil {
		return err
	}
	if batch.End > s.end && batch.End >= s.proof.to {
		p, err := s.open(ctx)
		if err != nil {
			return err
		}
		s.end, p.end = batch.End, batch.End
	}
	return nil
}

// takeChange maps a change of the stream. One that the state has is passed over.
func (s *stream) takeChange(ctx context.Context, c *capture.Change) error {
	known, err := s.proof.change(c)
	if err != nil || known {
		return err
	}
	s.note(c)
	c.Pos.LSN += s.base
	if s.passes(c, nil) {
		return nil
	}
	if c.Op == capture.OpTruncate {
		return s.truncate(ctx, c)
	}
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	filled := len(p.out.Filled)
	if err := s.tr.Apply(&p.out, c, &p.view); err != nil {
		if s.passes(c, err) {
			return nil
		}
		return fmt.Errorf("map the change: %w", err)
	}
	p.time = c.Time
	if err := s.doubt(p, filled); err != nil {
		return err
	}
	return s.sendFull(ctx)
}

// note takes in the commit that a change is of.
func (s *stream) note(c *capture.Change) {
	if c.Pos.LSN <= s.newest.commit.lsn {
		return
	}
	if t := s.tr.Table(c.Relation); t != nil {
		s.newest.timeline = s.prepared.Identity.Timeline
		s.newest.commit = commit{lsn: c.Pos.LSN, xid: c.XID, time: c.Time, table: t.ID}
	}
}

// open returns the piece being filled, a fresh one if there is none. It waits
// while all are under way: so capture is held back when Kafka is slow.
func (s *stream) open(ctx context.Context) (*piece, error) {
	if s.cur != nil {
		return s.cur, nil
	}
	select {
	case s.cur = <-s.free:
		s.cur.batch = s.b.store.Begin()
		s.cur.view = states{s.cur.batch, &s.cur.top}
		return s.cur, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// sendFull sends the piece if it has reached its bound.
func (s *stream) sendFull(ctx context.Context) error {
	if s.proof.pending() {
		return nil // it is of what was under way when the bridge ended, so it is bounded too
	}
	if p := s.cur; p.out.Bytes() >= s.b.cfg.PieceBytes || len(p.out.Events) >= s.b.cfg.PieceEvents {
		return s.send(ctx)
	}
	return nil
}

// send passes the piece on, if there is one, once there is room.
func (s *stream) send(ctx context.Context) error {
	if s.cur == nil {
		return nil
	}
	select {
	case <-s.room:
		return s.pass()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pass encodes the piece's events and passes it on; the token of room is taken.
// The marks and the position go into its state batch here: the ends are known
// before the acknowledgement, since the bridge is the topics' only writer, and the
// sink checks each one.
func (s *stream) pass() error {
	p := s.cur
	s.cur = nil
	s.reportMismatches(&p.out)
	if len(p.out.Events) > 0 {
		pub, err := s.b.sink.Encode(p.out.Events)
		if err != nil {
			return fmt.Errorf("encode events: %w", err)
		}
		p.pub = pub
		for _, m := range pub.Marks() {
			s.b.memory.setMark(p.batch, markName(m.Table.ID, m.Topic, m.Partition), m)
		}
	}
	if p.end != 0 {
		setLSN(p.batch, p.end)
	}
	s.newest.reach(p.top, s.base, s.prepared.Identity.Timeline)
	if s.newest != s.told {
		setNewest(p.batch, s.newest)
		s.told = s.newest
	}
	s.filled <- p // never blocks: there was room
	return nil
}

// reportMismatches tells of old rows in WAL that are not what the state has.
func (s *stream) reportMismatches(out *transform.Output) {
	if out.Mismatches == 0 {
		return
	}
	s.b.metrics.mismatches.Add(float64(out.Mismatches))
	m := out.Mismatch
	s.b.log.Warn("old rows in WAL differ from the state: changes were missed, or the state was altered; compare with `backstory backfill --reconcile`",
		"table", m.Table.Schema+"."+m.Table.Name, "column", m.Column, "lsn", m.Pos.LSN, "count", out.Mismatches)
}

// drain returns when everything taken so far is durable.
func (s *stream) drain(ctx context.Context) error {
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	settled := make(chan struct{})
	p.settled = settled
	if err := s.send(ctx); err != nil {
		return err
	}
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// renew fences the session anew at a drained point.
func (s *stream) renew(ctx context.Context) error {
	if err := s.drain(ctx); err != nil {
		return err
	}
	if err := s.b.sink.Renew(ctx); err != nil {
		return fmt.Errorf("renew the Kafka session: %w", err)
	}
	if err := s.b.memory.renewed(s.b.mapping.Tables); err != nil {
		return fmt.Errorf("remember the renewed session: %w", err)
	}
	return nil
}

// truncation is the newest TRUNCATE of a table that the session has met. It is a
// change of every key, also of those that the state does not know and can't note:
// a chunk that was read before it must not import the dead. A chunk read later sees
// it, because TRUNCATE holds its lock until it is visible; so memory is enough.
type truncation struct {
	pos capture.Position
	xid uint32
}

// truncate deletes each aggregate of the table in key order. The keys are those
// of a drained state; an aggregate that a redelivered truncate finds at or above
// its place is passed over like any other.
func (s *stream) truncate(ctx context.Context, c *capture.Change) (err error) {
	table := s.tr.Table(c.Relation)
	if table == nil {
		return nil
	}
	s.emptied[table.ID] = truncation{c.Pos, c.XID}
	if err := s.drain(ctx); err != nil {
		return err
	}
	keys, err := s.b.store.Keys(ctx, table.ID, state.Existing)
	if err != nil {
		return fmt.Errorf("truncate %s: %w", table.Aggregate, err)
	}
	defer func() { err = errors.Join(err, keys.Close()) }()
	for keys.Next() {
		p, err := s.open(ctx)
		if err != nil {
			return err
		}
		if err := s.tr.Remove(&p.out, table, keys.Key(), *c, transform.Truncated, &p.view); err != nil {
			return fmt.Errorf("truncate %s: %w", table.Aggregate, err)
		}
		p.time = c.Time
		if err := s.sendFull(ctx); err != nil {
			return err
		}
	}
	return keys.Err()
}
