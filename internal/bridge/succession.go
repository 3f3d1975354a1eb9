package bridge

import (
	"context"
	"fmt"

	"backstory/capture"
	"backstory/internal/failpoint"
	"backstory/internal/state"
	"backstory/transform"
)

// resume says how a session goes on from where the state stands.
type resume struct {
	from    capture.LSN // everything below is in the state, or is left to the comparison
	base    capture.LSN // is added to positions; the server's own do not have it
	compare bool        // every table is compared with the state
	anew    bool        // what is known of positions so far is of another history, or lost to the stream
	proof   proof       // of the stream's history
	newest  newest      // what the state has; zero: as it stands
}

// standing is how slot, state and topics stand to each other once the topics are
// folded into the state.
type standing struct {
	was        capture.Identity // that the state is tied to
	now        capture.Identity // of the server
	slot       capture.SlotStatus
	created    bool        // the slot was made by this session
	seen       capture.LSN // capture.Prepared.Seen
	remembered bool        // the state has streamed before
	from       capture.LSN // it has everything below; brought back to the fork where the server's timeline is a later one
	base       capture.LSN
	newest     newest      // what state and topics have
	began      capture.LSN // where the server's timeline began
	fork       capture.LSN // where an earlier timeline ended on the way to the server's; 0: it is the same, or that is not known
	floor      capture.LSN // below it nothing counts under the base, which another instance has given the topics
	superseded bool        // by that instance's repair
	rebound    bool        // the state's position is of another history
	diverged   *Refusal    // the server does not have all that was published, or that can't be known; nil: it has
}

// decide says how the session goes on, or refuses to stream where slot, state and
// topics don't fit. It comes after the fold: only then is it known how far the topics
// go. A slot ahead of the state is right if another instance confirmed what it had
// published; it has left more in the topics than the state remembered, and a
// comparison follows, because only that one knew which rows were to be read again.
func (b *Bridge) decide(ctx context.Context, was capture.Identity, prepared *capture.Prepared) (resume, error) {
	s, err := b.stand(ctx, was, prepared)
	if err != nil {
		return resume{}, err
	}
	r, err := b.judge(ctx, s)
	if err != nil {
		if s.was != s.now {
			b.metrics.switches.WithLabelValues("refused").Inc()
		}
		return resume{}, err
	}
	if err := b.resume(ctx, &r, s); err != nil {
		return resume{}, err
	}
	switch {
	case s.was == s.now:
	case r.anew:
		b.metrics.switches.WithLabelValues("repaired").Inc()
	default:
		failpoint.Hit("timeline-followed")
		b.metrics.switches.WithLabelValues("followed").Inc()
		b.log.Info("timeline followed", "from", s.was.String(), "to", s.now.String(), "branched", s.fork, "published", s.newest.top, "lsn", r.from)
	}
	return r, nil
}

// stand asks for everything that decides.
func (b *Bridge) stand(ctx context.Context, was capture.Identity, prepared *capture.Prepared) (*standing, error) {
	s := &standing{was: was, now: b.identity, created: prepared.Slot.Created, seen: prepared.Seen}
	var err error
	if s.from, s.remembered, err = b.memory.lsn(); err != nil {
		return nil, err
	}
	if s.base, err = b.memory.base(); err != nil {
		return nil, err
	}
	if s.newest, err = b.memory.newest(); err != nil {
		return nil, err
	}
	s.floor, s.superseded = b.memory.floor()
	s.rebound = b.memory.rebound() && !s.superseded
	if s.slot, err = b.db.SlotStatus(ctx); err != nil {
		return nil, fmt.Errorf("look at the slot: %w", err)
	}
	return s, b.succeed(ctx, s)
}

// succeed finds out how the server's history follows that of state and topics.
func (b *Bridge) succeed(ctx context.Context, s *standing) error {
	if s.now.Timeline > 1 {
		own, err := b.history(ctx, s, s.now.Timeline, s.from)
		if err != nil {
			return err
		}
		s.began = own.Began
	}
	if s.remembered && !s.superseded {
		if err := b.followState(ctx, s); err != nil {
			return err
		}
	}
	if n := s.newest; n.timeline == 0 || n.timeline == s.now.Timeline || s.diverged != nil {
		return nil
	}
	return b.followTopics(ctx, s)
}

// followState brings the state's position back to where its timeline ended on the way
// to the server's: nothing was published behind it, or that is found next.
func (b *Bridge) followState(ctx context.Context, s *standing) error {
	began, known := b.memory.began()
	if s.was.Timeline == s.now.Timeline {
		if known && s.began != 0 && began != s.began {
			s.unrelated(s.was.Timeline, fmt.Sprintf("there timeline %d began at %s, and the one of the state at %s", s.was.Timeline, s.began, began))
		}
		return nil
	}
	if err := s.complete(ctx, b); err != nil {
		return err
	}
	found, err := b.history(ctx, s, s.was.Timeline, s.from)
	switch {
	case err != nil:
		return err
	case found.Kind == capture.Unrelated:
		s.unrelated(s.was.Timeline, fmt.Sprintf("its history does not have timeline %d, that of the state", s.was.Timeline))
	case known && found.Began != 0 && began != found.Began:
		s.unrelated(s.was.Timeline, fmt.Sprintf("in its history timeline %d began at %s, and the one of the state at %s", s.was.Timeline, found.Began, began))
	default:
		s.fork, s.from = found.Branched, min(s.from, found.Branched)
	}
	return nil
}

// followTopics sees whether the server has all that was published on an earlier
// timeline.
func (b *Bridge) followTopics(ctx context.Context, s *standing) error {
	n := &s.newest
	found, err := b.history(ctx, s, n.timeline, n.top)
	if err != nil {
		return err
	}
	switch found.Kind {
	case capture.Unrelated:
		s.unrelated(n.timeline, fmt.Sprintf("its history does not have timeline %d, that of the topics", n.timeline))
		return nil
	case capture.Diverged:
		s.fork = max(s.fork, found.Branched)
		s.diverged = &Refusal{Thing: "server of slot " + s.slot.Name,
			Problem: fmt.Sprintf("the bridge has published changes of timeline %d up to %s, but timeline %d branched off at %s: "+
				"%d bytes of WAL were lost in the fail-over, and the topics have events of changes in them",
				n.timeline, n.top, s.now.Timeline, found.Branched, n.top-found.Branched),
			Cure: repairCure}
		return nil
	}
	s.fork = found.Branched
	return nil
}

// unrelated notes that the server's history is not known to lead on from that of a
// timeline.
func (s *standing) unrelated(timeline int32, why string) {
	s.fork = 0
	s.diverged = &Refusal{Thing: "server of slot " + s.slot.Name,
		Problem: fmt.Sprintf("it is on timeline %d, which does not lead on from timeline %d: %s; the database was restored to a point before that, or is another copy",
			s.now.Timeline, timeline, why),
		Cure: repairCure}
}

// history asks how the server's follows a timeline of which something is known up to a
// position.
func (b *Bridge) history(ctx context.Context, s *standing, timeline int32, at capture.LSN) (capture.Succession, error) {
	from := s.now
	from.Timeline = timeline
	found, err := b.db.Succession(ctx, from, at)
	if err != nil {
		return found, fmt.Errorf("look at the history of the server: %w", err)
	}
	if found.To != s.now {
		return found, &changedServer{from: s.now, to: found.To}
	}
	return found, nil
}

// complete works out how far a state goes that an earlier version has written.
func (s *standing) complete(ctx context.Context, b *Bridge) error {
	if s.newest.timeline != 0 {
		return nil
	}
	top, err := b.top(ctx)
	if err != nil {
		return err
	}
	s.newest = newest{timeline: s.was.Timeline, top: top - min(top, s.base)}
	return nil
}

// repairCure is the way out where slot, state and topics do not fit.
const repairCure = "run `backstory backfill --reconcile`: it compares the tables with the state and publishes the differences"

// changedServer ends a session in which the server has become another one.
type changedServer struct{ from, to capture.Identity }

func (e *changedServer) Error() string {
	return fmt.Sprintf("the session began with %s and now meets %s", e.from, e.to)
}

// Restart makes it the end of the session only.
func (e *changedServer) Restart() bool { return true }

// judge decides.
func (b *Bridge) judge(ctx context.Context, s *standing) (resume, error) {
	if b.repair && s.unfit() {
		return b.mend(ctx, s)
	}
	thing := "slot " + s.slot.Name
	switch {
	case s.rebound:
		return resume{}, &Refusal{Thing: thing,
			Problem: fmt.Sprintf("the state's position %s is of another history than the server's, and the tables have not been compared since that was found", s.from),
			Cure:    repairCure}
	case s.diverged != nil:
		return resume{}, s.diverged
	case s.beyond():
		return resume{}, &Refusal{Thing: thing,
			Problem: fmt.Sprintf("state and topics have changes up to %s, but the server's WAL ends at %s: its data directory went back to an earlier copy",
				max(s.from, s.newest.top), s.slot.Current),
			Cure: repairCure}
	case !s.remembered || s.superseded:
		compare := s.superseded && (s.remembered || s.floor > s.slot.Confirmed)
		return resume{from: max(s.slot.Confirmed, s.floor), base: s.base, compare: compare}, nil
	case s.slot.Confirmed <= s.from:
		return resume{from: s.from, base: s.base}, nil
	case !b.memory.moved():
		return resume{}, &Refusal{Thing: thing,
			Problem: fmt.Sprintf("it was moved to %s while the state ends at %s: the changes between are lost to the stream", s.slot.Confirmed, s.from),
			Cure:    repairCure}
	}
	b.log.Warn("another instance has confirmed beyond the state, the tables are compared with it", "lsn", s.slot.Confirmed, "state_lsn", s.from)
	return resume{from: s.slot.Confirmed, base: s.base, compare: true}, nil
}

// unfit reports whether a repair has more to mend than what it was asked to compare:
// what the state or the topics have does not lead to the slot.
func (s *standing) unfit() bool {
	return s.created || s.rebound || s.diverged != nil || s.beyond() || s.remembered && !s.superseded && s.slot.Confirmed > s.from
}

// beyond reports whether state or topics have more than the server's WAL: every record
// that something was published of begins below its end.
func (s *standing) beyond() bool {
	return s.from > s.slot.Current && !s.superseded || s.newest.timeline != 0 && s.newest.top >= s.slot.Current
}

// mend goes on where slot, state and topics do not fit, with every table to be
// compared with the state. What lies below the place from which the stream counts was
// published, or is left to the comparison; what comes behind it is new.
//
// Where the history of the server is known, that place is where it branched off. Where
// it is not, because the timeline is the same or has nothing in common with the one
// before, it is the end of WAL: from no place below can it be told what the topics
// have of it.
func (b *Bridge) mend(ctx context.Context, s *standing) (resume, error) {
	from := s.slot.Confirmed
	switch {
	case s.created:
	case s.rebound || s.beyond() && s.diverged == nil || s.diverged != nil && s.fork == 0:
		from = max(from, s.slot.Current)
	case s.diverged != nil:
		from = max(from, s.fork)
	}
	b.log.Warn("slot, state and topics do not fit, the tables are compared with the state", "lsn", from, "state_lsn", s.from)
	r, err := b.rebase(ctx, from, s.base, s.remembered)
	// The tables are compared as they are from there on: a fork below goes back behind that.
	r.newest = newest{timeline: s.now.Timeline, top: from - min(from, 1)}
	switch {
	case err != nil || !r.compare:
	case !s.rebound && s.diverged == nil && !s.beyond():
		r.anew, r.newest = false, s.newest.join(r.newest) // the slot alone has changed: what is known of the history holds
	case r.base == s.base:
		r.base++ // an instance with an older state sees by it that what it knows of positions is of before
	}
	return r, err
}

// top is the highest position that the state has, with its base.
func (b *Bridge) top(ctx context.Context) (top capture.LSN, err error) {
	err = b.store.Each(ctx, func(_ uint16, _ []byte, e transform.Entry) error {
		top = max(top, e.Place.Pos.LSN)
		return nil
	})
	return top, err
}

// rebase begins anew at a position of the server, with every table to be compared
// with the state. In a database whose history is another one the positions of the WAL
// start again below those that the topics have, and every change would be passed over
// as one that is known. Then a base is added to all positions from now on, which keeps
// them above. Records carry it, so that a state that is lost later finds the same
// one: with another one, changes that come again would not be recognised.
func (b *Bridge) rebase(ctx context.Context, from, base capture.LSN, remembered bool) (resume, error) {
	top, err := b.top(ctx)
	if err != nil {
		return resume{}, err
	}
	r := resume{from: from, base: base, compare: remembered || top > 0, anew: true} // else it is new, and imports
	if top >= from+base {
		r.base = top + 1 - from
	}
	return r, nil
}

// comesAgain is the newest commit, if the slot has still to bring it again: if the
// stream crosses its place without it, the server's history is another one.
func (s *standing) comesAgain(b *Bridge, c commit) commit {
	if c.xid == 0 || c.lsn < s.slot.Confirmed || !b.maps(c.table) {
		return commit{}
	}
	return c
}

// maps reports whether the mapping has the table with a number.
func (b *Bridge) maps(table uint16) bool {
	for _, t := range b.mapping.Tables {
		if t.ID == table {
			return true
		}
	}
	return false
}

// resume commits how the session goes on, in one batch: an identity without the
// position that belongs to it would be another history. It is on disk before anything
// is taken from the stream.
func (b *Bridge) resume(ctx context.Context, r *resume, s *standing) error {
	window, ok := b.memory.window(b.mapping.Tables)
	if s.fork != 0 && s.newest.timeline != s.now.Timeline && s.newest.commit.lsn >= s.fork { // it made no event, and the server does not have it
		s.newest.commit, ok = commit{}, false
	}
	if !ok || r.compare {
		window = r.from
	}
	if r.newest.timeline == 0 {
		r.newest = s.newest
	}
	r.proof = proof{met: s.comesAgain(b, r.newest.commit), known: r.newest.commit, from: window, to: r.from}
	batch := b.store.Begin()
	setLSN(batch, r.from)
	setBase(batch, r.base)
	setMoved(batch, false)
	batch.SetMeta(state.MetaRebound, nil)
	batch.SetMeta(metaFloor, nil)
	batch.Bind(b.identity)
	if s.began != 0 || s.now.Timeline == 1 { // else it is not known
		setBegan(batch, s.began)
	}
	setNewest(batch, r.newest)
	setWindow(batch, window, b.mapping.Tables)
	if err := b.resumeRuns(batch, r, s); err != nil {
		b.store.Drop(batch)
		return err
	}
	if err := b.store.Commit(batch); err != nil {
		return err
	}
	if err := b.store.Sync(ctx); err != nil {
		return fmt.Errorf("flush the state: %w", err)
	}
	return nil
}

// resumeRuns has every table compared, where that is to be, and takes what runs know of
// positions back to where the server's history left the former one's: behind it other
// transactions have committed.
func (b *Bridge) resumeRuns(batch *state.Batch, r *resume, s *standing) error {
	fork := s.fork
	if r.anew {
		fork = r.from
	}
	for _, t := range b.mapping.Tables {
		run, ok, err := b.memory.run(t.ID)
		if err != nil {
			return err
		}
		if r.compare {
			run, ok = importRun{Reconcile: true, Passing: run.Passing}, true
		}
		if fork != 0 {
			run.Horizon, run.Passing = min(run.Horizon, fork), run.Passing.below(fork, s.seen)
		}
		if !ok || fork == 0 && !r.compare {
			continue
		}
		if err := setRun(batch, t.ID, run); err != nil {
			return err
		}
	}
	return nil
}
