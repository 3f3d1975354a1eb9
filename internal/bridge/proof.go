package bridge

import (
	"errors"
	"fmt"

	"backstory/capture"
)

// proof holds the stream against what the state knows of the server's history. A
// data directory that was put back to an earlier copy is on the same timeline, and
// once its WAL has grown beyond the state's position nothing but the commits
// themselves tells that it is another history.
//
//   - The newest commit that state or topics have comes again if the slot lies at or
//     below it. Where the stream crosses its place without that very transaction, the
//     history is another one. Until it has come nothing is published.
//   - Between the commits that the state knows of and its position there is no other.
type proof struct {
	met   commit      // still to come; zero: nothing
	known commit      // the newest that the state has; all of its window are at or below it
	from  capture.LSN // of the window
	to    capture.LSN // the state's position
}

// divergence says that the server's history is not the one that the state was made
// from.
type divergence struct{ problem string }

func (d *divergence) Error() string { return d.problem }

// pending reports whether nothing may be published yet.
func (p *proof) pending() bool { return p.met.xid != 0 }

// change takes in a change of a mapped table, and reports whether it lies below what
// the state has: then it is passed over.
func (p *proof) change(c *capture.Change) (known bool, err error) {
	lsn := c.Pos.LSN
	switch {
	case !p.pending():
	case lsn > p.met.lsn:
		return false, p.missing()
	case lsn == p.met.lsn:
		if c.XID != p.met.xid || p.met.time != 0 && c.Time != p.met.time {
			return false, &divergence{fmt.Sprintf("at %s, where transaction %d committed when its changes were published, the server has transaction %d",
				lsn, p.met.xid, c.XID)}
		}
		p.met = commit{}
	}
	if lsn >= p.to {
		return false, nil
	}
	if lsn >= p.from && lsn > p.known.lsn {
		return false, &divergence{fmt.Sprintf("the server has transaction %d at %s, and the state, which has everything up to %s, has never met it",
			c.XID, lsn, p.to)}
	}
	return true, nil
}

// reach takes in that every transaction below a position has come.
func (p *proof) reach(lsn capture.LSN) error {
	if p.pending() && lsn > p.met.lsn {
		return p.missing()
	}
	return nil
}

func (p *proof) missing() error {
	return &divergence{fmt.Sprintf("transaction %d, which committed at %s and whose changes were published, is not in the server's WAL", p.met.xid, p.met.lsn)}
}

// diverges turns a divergence that ended a session into the refusal, and remembers
// it: the position of the state means nothing in the server's history. A process that
// repairs goes on with the next session.
func (b *Bridge) diverges(slot string, err error) error {
	var d *divergence
	if !errors.As(err, &d) {
		return err
	}
	batch := b.store.Begin()
	setRebound(batch)
	if err := b.store.Commit(batch); err != nil {
		return fmt.Errorf("remember that the history is another one: %w", err)
	}
	if b.repairs {
		b.repair = true
		return &anotherHistory{d}
	}
	return &Refusal{Thing: "server of slot " + slot, Problem: d.problem + ": its data directory went back to an earlier copy", Cure: repairCure}
}

// anotherHistory ends the session of a repair, whose next one compares.
type anotherHistory struct{ *divergence }

// Restart makes it the end of the session only.
func (*anotherHistory) Restart() bool { return true }
