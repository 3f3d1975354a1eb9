package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// slotsMapping has both tables, each on its slot.
const slotsMapping = `
tables:
  - table: public.products
    aggregate: Product
    slot: %d
    topics: {events: %s, latest: %s, partitions: 6, replication: 1}
    events: &events
      - {type: PriceChanged, when: [price, updated_at]}
  - table: public.orders
    aggregate: Order
    slot: %d
    topics: {events: %s, latest: %s, partitions: 6, replication: 1}
    events: *events
`

// slotsRig is a bridge of both tables.
type slotsRig struct {
	*rig
	name   string
	slots  []string
	topics [4]string // events and latest of either table
}

// newSlotsRig makes a bridge that has imported both tables.
func (l *lab) newSlotsRig(name string, slot, second int) (*slotsRig, error) {
	r, err := l.newRig(name)
	if err != nil {
		return nil, err
	}
	s := &slotsRig{rig: r, name: strings.ReplaceAll(name, "_", " "), slots: []string{r.slot},
		topics: [4]string{r.events, r.latest, name + ".orders.events", name + ".orders.latest"}}
	if second != slot {
		s.slots = append(s.slots, fmt.Sprintf("%s_%d", r.slot, second))
	}
	r.publication = name
	if err := r.mapBy(fmt.Appendf(nil, slotsMapping, slot, s.topics[0], s.topics[1], second, s.topics[2], s.topics[3])); err != nil {
		return nil, err
	}
	return s, r.prime()
}

// walsenders returns the CPU time of the processes that stream the slots.
func (s *slotsRig) walsenders() ([]float64, error) {
	conn, err := pgx.Connect(s.l.ctx(), s.l.pg.DSN(database))
	if err != nil {
		return nil, err
	}
	defer conn.Close(s.l.ctx())
	var times []float64
	for _, slot := range s.slots {
		var pid int
		if err := conn.QueryRow(s.l.ctx(), "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&pid); err != nil {
			return nil, fmt.Errorf("walsender of slot %s: %w", slot, err)
		}
		t, err := cpuOf(pid)
		if err != nil {
			return nil, err
		}
		times = append(times, t)
	}
	return times, nil
}

// retained is the WAL that the server keeps for the slots, in MB.
func (s *slotsRig) retained() (mb float64, err error) {
	conn, err := pgx.Connect(s.l.ctx(), s.l.pg.DSN(database))
	if err != nil {
		return 0, err
	}
	defer conn.Close(s.l.ctx())
	err = conn.QueryRow(s.l.ctx(), "SELECT (max(pg_current_wal_lsn() - restart_lsn) / 1e6)::float8 FROM pg_replication_slots WHERE slot_name = ANY ($1)",
		s.slots).Scan(&mb)
	return mb, err
}

// measure lets the bridge empty the backlog.
func (s *slotsRig) measure(r *report, log backlog) (err error) {
	before, err := s.l.sums(s.topics[:]...)
	if err != nil {
		return err
	}
	kept, err := s.retained()
	if err != nil {
		return err
	}
	b, err := s.start(unixSocket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	status, err := b.await(startLimit, 5*time.Millisecond, func(s status) bool { return s.Phase == "streaming" })
	if err != nil {
		return err
	}
	since := status.Since
	for _, slot := range status.Slots {
		if slot.Since.Before(since) {
			since = slot.Since
		}
	}
	first, err := s.l.usage(b.proc.PID())
	if err != nil {
		return err
	}
	last, err := s.follow(b, before, int64(log.changes))
	if err != nil {
		return err
	}
	senders, err := s.walsenders()
	if err != nil {
		return err
	}
	memory, err := memoryOf(b.proc.PID())
	if err != nil {
		return err
	}
	if err := b.confirmed(log.end, time.Minute); err != nil {
		return err
	}
	after, err := s.retained()
	if err != nil {
		return err
	}
	used, n := last.since(first), float64(log.changes)
	row, seconds := r.row("bridge: "+s.name), last.at.Sub(since).Seconds()
	row.add("changes/s", n/seconds)
	row.add("bridge µs", used.bridge/n*1e6)
	row.add("postgres µs", used.postgres/n*1e6)
	row.add("kafka µs", used.kafka/n*1e6)
	for i, t := range senders {
		row.add(fmt.Sprintf("walsender %d µs", i+1), t/n*1e6)
	}
	row.add("WAL kept MB", kept)
	row.add("then MB", after)
	row.add("peak MB", memory.peak)
	row.add("foreign cores", used.foreign(last.at.Sub(first.at)))
	s.l.logf("%s: %.0f changes/s, bridge %.1f µs, Postgres %.1f µs, Kafka %.1f µs, foreign %.2f cores",
		row.Name, n/seconds, used.bridge/n*1e6, used.postgres/n*1e6, used.kafka/n*1e6, used.foreign(last.at.Sub(first.at)))
	return nil
}

// follow polls the ends until both events topics together have grown by want and
// the latest topics stand still.
func (s *slotsRig) follow(b *bridge, before map[string]int64, want int64) (last usage, err error) {
	const markers = 6 // of the fence, one a partition
	const quiet = 300 * time.Millisecond
	tick := time.NewTicker(pollEnds)
	defer tick.Stop()
	seen, grown := int64(-1), time.Now()
	for {
		sums, err := s.l.sums(s.topics[:]...)
		if err != nil {
			return last, err
		}
		var all, events int64
		for i, topic := range s.topics {
			n := sums[topic] - before[topic] - markers
			all += n
			if i%2 == 0 {
				events += n
			}
		}
		now := time.Now()
		if all != seen {
			seen, grown = all, now
			if last, err = s.l.usage(b.proc.PID()); err != nil {
				return last, errors.Join(err, b.ended())
			}
		}
		switch idle := now.Sub(grown); {
		case events > want:
			return last, fmt.Errorf("%d events of %d changes: the load is not what it should be", events, want)
		case events == want && (all == 2*want || idle > quiet):
			return last, nil
		case idle > stalled:
			return last, fmt.Errorf("%d events of %d changes, and no more since %s", events, want, stalled)
		}
		select {
		case <-tick.C:
		case <-b.proc.Done():
			return last, errors.Join(b.ended(), fmt.Errorf("the bridge ended after %d events of %d", events, want))
		}
	}
}
