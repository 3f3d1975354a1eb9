package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// shape is how a backlog is cut into transactions.
type shape struct {
	name string
	size int // changes of a transaction; 0: all in one
}

var shapes = []shape{{"100 a transaction", 100}, {"1 a transaction", 1}, {"one transaction", 0}}

func (s shape) sizeOf(changes int) int {
	if s.size == 0 {
		return changes
	}
	return s.size
}

func catchupCommand(c *common) *cobra.Command {
	var rows, changes int
	cmd := &cobra.Command{
		Use:   "catchup",
		Short: "Changes a second out of a backlog, beside pg_recvlogical",
		Long: `Let the bridge empty a backlog of price updates, in three shapes and over a Unix
socket and TCP. Before each run pg_recvlogical reads the same WAL to /dev/null.
The table is imported beforehand, so every old value is known.`,
		Example: "  go run ./internal/bench catchup --rows 1000000 --changes 1000000 --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.catchup(r, c.runs, rows, changes) })
		},
	}
	cmd.Flags().IntVar(&rows, "rows", 200_000, "rows of the table")
	cmd.Flags().IntVar(&changes, "changes", 200_000, "updates of one backlog, at most rows")
	return cmd
}

func (l *lab) catchup(r *report, runs, rows, changes int) error {
	if changes > rows {
		return fmt.Errorf("--changes %d: at most --rows (%d), so that no key is changed twice in a backlog", changes, rows)
	}
	rig, err := l.primed("catchup", rows)
	if err != nil {
		return err
	}
	skip := 0
	for range runs {
		for _, s := range shapes {
			for _, t := range []transport{unixSocket, tcp} {
				if err := rig.pair(r.row(s.name+", "+string(t)), t, s.sizeOf(changes), changes, rows, skip); err != nil {
					return fmt.Errorf("%s over %s: %w", s.name, t, err)
				}
				skip += changes
			}
		}
	}
	r.note("%d changes a run, table of %d rows, %s; foreign cores are those of the bridge's run.", changes, rows, plural(runs, "run"))
	return nil
}

// primed makes the table and a bridge that has imported it.
func (l *lab) primed(name string, rows int) (*rig, error) {
	if err := l.products(rows); err != nil {
		return nil, err
	}
	rig, err := l.newRig(name)
	if err != nil {
		return nil, err
	}
	return rig, rig.prime()
}

// pair measures the limit and the bridge with one backlog.
func (r *rig) pair(row *row, t transport, size, changes, rows, skip int) error {
	log, err := r.l.writeBacklog(changes, size, rows, skip)
	if err != nil {
		return err
	}
	limit, err := r.limit(t, log.end)
	if err != nil {
		return err
	}
	d, err := r.drain(t, log)
	if err != nil {
		return err
	}
	n := float64(changes)
	row.add("changes/s", n/d.seconds)
	row.add("pg_recvlogical/s", n/limit.seconds)
	row.add("ratio", limit.seconds/d.seconds)
	row.add("bridge µs", d.usage.bridge/n*1e6)
	row.add("postgres µs", d.usage.postgres/n*1e6)
	row.add("kafka µs", d.usage.kafka/n*1e6)
	row.add("peak MB", d.memory.peak)
	row.add("foreign cores", d.foreign)
	r.l.logf("%s: %.0f changes/s, pg_recvlogical %.0f/s, ratio %.2f, bridge %.1f µs, %.0f MB, foreign %.2f cores; latest %d",
		row.Name, n/d.seconds, n/limit.seconds, limit.seconds/d.seconds, d.usage.bridge/n*1e6, d.memory.peak, d.foreign, d.latest)
	return nil
}
