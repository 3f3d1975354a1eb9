package capture

import (
	"context"
	"errors"
	"time"
)

const (
	statusEvery  = 10 * time.Second       // a status is sent at least so often
	statusPause  = 100 * time.Millisecond // and after a Confirm at most so often
	writeTimeout = 10 * time.Second       // of one status
	silence      = time.Minute            // without a sign of life before the slot is looked at
	probeTimeout = 10 * time.Second       // of that look
)

// errSilent says that the server neither sends nor answers.
var errSilent = errors.New("no sign of life from the server")

// statusInterval is a third of what the server waits for, so that two in a row
// may be late.
func statusInterval(senderTimeout time.Duration) time.Duration {
	if senderTimeout <= 0 {
		return statusEvery
	}
	return max(min(statusEvery, senderTimeout/3), time.Millisecond)
}

// keepStatus tells the server what is confirmed: on a clock of its own, so that
// the slot is kept while nobody calls Next, at once when the server asks, and
// soon after a Confirm. It is the only writer of the connection, and ends with ctx.
func (s *Stream) keepStatus(ctx context.Context) {
	timer := time.NewTimer(s.statusEvery)
	defer timer.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.asked:
		case <-timer.C:
		case <-s.advanced:
			if rest := statusPause - time.Since(last); rest > 0 {
				timer.Reset(rest)
				continue
			}
		}
		last = time.Now()
		if err := s.sendStatus(last); err != nil {
			s.fail(transportError("send status of slot "+s.slot, err))
			return
		}
		timer.Reset(s.statusEvery)
	}
}

// sendStatus sends the confirmed position, and asks for a sign of life if the
// server has been silent although somebody listens.
func (s *Stream) sendStatus(now time.Time) error {
	if err := s.wire.conn.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
		return err
	}
	confirmed := LSN(s.confirmed.Load())
	s.status = appendStatus(s.status[:0], confirmed, now, s.silentFor(now) >= s.statusEvery)
	if _, err := s.wire.conn.Write(s.status); err != nil {
		return err
	}
	s.metrics.confirmed.Set(float64(confirmed))
	return nil
}

// silentFor is how long Next has been waiting in vain; 0 if nobody waits.
func (s *Stream) silentFor(now time.Time) time.Duration {
	since := s.waiting.Load()
	if since == 0 {
		return 0
	}
	return now.Sub(time.UnixMicro(since))
}

// guard ends a stream whose server is gone without a word. Silence alone proves
// nothing: a walsender that works through a large transaction of other tables does
// not answer either. The slot's being active tells them apart. It ends with ctx.
func (s *Stream) guard(ctx context.Context, slotActive func(context.Context) bool) {
	for {
		if pause(ctx, s.silence/4) != nil {
			return
		}
		if s.silentFor(time.Now()) < s.silence {
			continue
		}
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		active := slotActive(probe)
		cancel()
		if ctx.Err() == nil && !active && s.silentFor(time.Now()) >= s.silence {
			s.fail(&ConnError{Step: "stream slot " + s.slot, Err: errSilent})
			return
		}
	}
}

// slotActive reports whether some session streams from the slot.
func (d *Database) slotActive(ctx context.Context) bool {
	status, err := d.SlotStatus(ctx)
	return err == nil && status.ActivePID != 0
}
