package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"backstory/capture"
	"backstory/sink"
)

// clockKeeper is a Reader whose server may know when transactions were committed;
// see capture.Reader.
type clockKeeper interface {
	CommitTimes(ctx context.Context, xids []uint32) (map[uint32]int64, error)
}

// sampledCommits bounds the transactions whose times the server is asked for.
const sampledCommits = 4096

// sampleReach is how far below the last position the sample reaches, in bytes of WAL.
// The server knows a transaction by 32 bits; 2³² commits take more than that.
const sampleReach capture.LSN = 64 << 30

// sample is a part of the commits that the events tell of, the same whichever
// partition comes first: those of which the hash of the position ends in zeros, as
// many as make it fit.
type sample struct {
	mask uint64
	of   map[uint32]sampled // by xid
}

type sampled struct {
	lsn  capture.LSN
	time int64
	d    Difference
}

// take takes an event of this cluster and timeline in, if its commit is in the sample.
func (m *sample) take(s *sink.Scanned, d Difference) {
	pos := s.Place.Pos
	if s.XID == 0 || pos.Kind != capture.KindChange || s.Base != 0 || scattered(pos.LSN)&m.mask != 0 {
		return
	}
	if m.of == nil {
		m.of = make(map[uint32]sampled)
	}
	if old, ok := m.of[s.XID]; ok && old.lsn > pos.LSN {
		return // of the xid's former life
	}
	m.of[s.XID] = sampled{lsn: pos.LSN, time: s.Time, d: d}
	for len(m.of) > sampledCommits {
		m.mask = m.mask<<1 | 1
		maps.DeleteFunc(m.of, func(_ uint32, c sampled) bool { return scattered(c.lsn)&m.mask != 0 })
	}
}

// scattered is a position whose bits are those of a hash.
func scattered(lsn capture.LSN) uint64 {
	x := uint64(lsn) * 0x9E3779B97F4A7C15
	return x ^ x>>32
}

// compareCommits asks the server when the sampled transactions were committed.
func (v *Verifier) compareCommits(ctx context.Context) error {
	server, ok := v.reader.(clockKeeper)
	if !ok || v.based {
		return nil // positions of before a restore are those of other commits
	}
	m := &v.events.commits
	maps.DeleteFunc(m.of, func(_ uint32, c sampled) bool { return c.lsn+sampleReach < v.mark })
	if len(m.of) == 0 {
		return nil
	}
	known, err := server.CommitTimes(ctx, slices.Sorted(maps.Keys(m.of)))
	if err != nil {
		return err
	}
	for _, xid := range slices.Sorted(maps.Keys(known)) {
		c := m.of[xid]
		v.result.Compared.CommitTimes++
		// Of a replayed transaction without a time of its own WAL says the epoch.
		if c.time == known[xid] || c.time == earliest {
			continue
		}
		c.d.Problem, c.d.Field = WrongTime, "time"
		c.d.Values = []Value{{Events, clock(c.time)}, {Table, clock(known[xid])}}
		c.d.Detail = fmt.Sprintf("the second is when the server says that transaction %d was committed", xid)
		v.report(c.d)
	}
	return nil
}
