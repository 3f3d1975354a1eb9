package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jackc/pglogrepl"
)

// pollEnds is how often the ends of the topics are asked for while a bridge
// drains a backlog: no record is read, which costs next to nothing.
const pollEnds = 20 * time.Millisecond

// drained is what a bridge, or pg_recvlogical, did with a backlog.
type drained struct {
	seconds float64 // from when it streamed to its last record
	usage   usage   // in that time
	memory  memory
	latest  int64 // records in the latest topic
	foreign float64
	reads   float64 // system calls that read: of the socket, and of the state
}

// limit lets pg_recvlogical write a backlog to /dev/null, from a copy of the
// slot, so that the bridge gets the same WAL after it.
func (r *rig) limit(t transport, end pglogrepl.LSN) (d drained, err error) {
	const probe = "limit"
	program := filepath.Join(r.l.pg.Server(r.l.tb).Installation().Bin, "pg_recvlogical")
	host, port, err := r.l.host(t)
	if err != nil {
		return d, err
	}
	if err := r.l.exec(fmt.Sprintf("SELECT pg_copy_logical_replication_slot('%s', '%s')", r.slot, probe)); err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, r.l.exec("SELECT pg_drop_replication_slot('"+probe+"')")) }()
	before, err := r.l.usage(0)
	if err != nil {
		return d, err
	}
	cmd := exec.CommandContext(r.l.ctx(), program, "-h", host, "-p", port, "-U", "postgres", "-d", database, "-S", probe,
		"--start", "-n", "-o", "proto_version=1", "-o", "publication_names="+publication, "--endpos="+end.String(), "-f", "/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil {
		return d, fmt.Errorf("%s (of Postgres's client programs): %w: %s", program, err, out)
	}
	after, err := r.l.usage(0)
	if err != nil {
		return d, err
	}
	d.usage = after.since(before)
	d.seconds = after.at.Sub(before.at).Seconds()
	d.foreign = d.usage.foreign(after.at.Sub(before.at))
	return d, nil
}

// drain starts the bridge and lets it empty a backlog, from when it says that it
// streams to its last record, and stops it.
func (r *rig) drain(t transport, log backlog) (d drained, err error) {
	before, err := r.l.sums(r.events, r.latest)
	if err != nil {
		return d, err
	}
	b, err := r.start(t)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	since, err := b.streaming()
	if err != nil {
		return d, err
	}
	first, err := r.l.usage(b.proc.PID())
	if err != nil {
		return d, err
	}
	readsBefore, err := readCalls(b.proc.PID())
	if err != nil {
		return d, err
	}
	// The fence has left a marker in every partition; nothing else has come before
	// the first batch is acknowledged.
	last, latest, err := b.follow(before, int64(log.changes))
	if err != nil {
		return d, err
	}
	d.latest, d.usage = latest, last.since(first)
	d.seconds = last.at.Sub(since).Seconds()
	d.foreign = d.usage.foreign(last.at.Sub(first.at))
	if d.memory, err = memoryOf(b.proc.PID()); err != nil {
		return d, err
	}
	if d.reads, err = readCalls(b.proc.PID()); err != nil {
		return d, err
	}
	d.reads -= readsBefore
	return d, b.confirmed(log.end, time.Minute)
}

// stalled is how long a drain may stand still.
const stalled = time.Minute

// follow polls the ends until events has grown by want and latest stands still.
// It returns what was used up to the last growth, and by how much latest grew.
func (b *bridge) follow(before map[string]int64, want int64) (last usage, latest int64, err error) {
	const markers = 6 // of the fence, one a partition
	tick := time.NewTicker(pollEnds)
	defer tick.Stop()
	const quiet = 300 * time.Millisecond
	seen, grown := int64(-1), time.Now()
	for {
		sums, err := b.r.l.sums(b.r.events, b.r.latest)
		if err != nil {
			return last, 0, err
		}
		now := time.Now()
		events := sums[b.r.events] - before[b.r.events] - markers
		latest = sums[b.r.latest] - before[b.r.latest] - markers
		if events+latest != seen {
			seen, grown = events+latest, now
			// Only the last growth counts: to look at all processes takes CPU time
			// from those that are measured.
			if events >= want {
				if last, err = b.r.l.usage(b.proc.PID()); err != nil {
					return last, 0, errors.Join(err, b.ended())
				}
			}
		}
		switch idle := now.Sub(grown); {
		case events > want:
			return last, latest, fmt.Errorf("%d events of %d changes: the load is not what it should be", events, want)
		case events == want && (latest == want || idle > quiet):
			return last, latest, nil
		case idle > stalled:
			return last, latest, fmt.Errorf("%d events of %d changes, and no more since %s", events, want, stalled)
		}
		select {
		case <-tick.C:
		case <-b.proc.Done():
			return last, latest, errors.Join(b.ended(), fmt.Errorf("the bridge ended after %d events of %d", events, want))
		}
	}
}
