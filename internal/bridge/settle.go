package bridge

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"backstory/capture"
	"backstory/internal/failpoint"
)

// settle is the second stage and owns the order: events, latest, state. Only
// what it has committed is ever offered for confirmation. It returns when take
// has ended and everything is durable, or at the first error.
func (s *stream) settle(ctx context.Context) error {
	for p := range s.filled {
		s.room <- struct{}{} // never blocks: take took the token for p
		if err := s.settlePiece(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) settlePiece(ctx context.Context, p *piece) error {
	if p.pub != nil {
		failpoint.Hit("encoded")
		if err := p.pub.Events(ctx); err != nil { // 1
			return fmt.Errorf("publish events: %w", err)
		}
		failpoint.Hit("events-published")
		if err := p.pub.Latest(ctx); err != nil { // 2
			return fmt.Errorf("publish latest: %w", err)
		}
		failpoint.Hit("latest-published")
		s.b.metrics.published(p)
	}
	if err := s.b.store.Commit(p.batch); err != nil { // 3
		return fmt.Errorf("commit the state: %w", err)
	}
	failpoint.Hit("state-committed")
	s.committed.set(p.end) // 4 is confirm's
	s.b.status.settled(p)
	s.recycle(p)
	return nil
}

// recycle gives a durable piece back to the first stage.
func (s *stream) recycle(p *piece) {
	if p.pub != nil {
		p.pub.Release()
	}
	if p.settled != nil {
		close(p.settled)
	}
	p.out.Reset()
	p.batch, p.view, p.top, p.pub, p.end, p.time, p.settled = nil, states{}, 0, nil, 0, 0, nil
	s.free <- p // never blocks: it has room for all
}

// confirm is the last step, off the path: it flushes the state to disk and then
// lets Postgres discard what lies below the position committed before the flush.
func (s *stream) confirm(ctx context.Context) error {
	tick := time.NewTicker(s.b.cfg.SyncInterval)
	defer tick.Stop()
	var confirmed capture.LSN
	for open := true; open; {
		select {
		case <-tick.C:
		case <-s.committed.closed:
			open = false
		case <-ctx.Done():
			return nil
		}
		lsn := s.committed.get()
		if lsn <= confirmed {
			continue
		}
		if err := s.b.store.Sync(ctx); err != nil {
			return fmt.Errorf("flush the state: %w", err)
		}
		failpoint.Hit("state-flushed")
		s.src.Confirm(lsn)
		failpoint.Soon("confirmed")
		confirmed = lsn
		s.b.status.confirmed(lsn)
	}
	return nil
}

// committedLSN passes the newest committed position from settle to confirm.
type committedLSN struct {
	lsn    atomic.Uint64
	closed chan struct{} // settle is over
}

func (c *committedLSN) set(lsn capture.LSN) { c.lsn.Store(max(c.lsn.Load(), uint64(lsn))) } // settle is the only writer
func (c *committedLSN) get() capture.LSN    { return capture.LSN(c.lsn.Load()) }
func (c *committedLSN) close()              { close(c.closed) }
