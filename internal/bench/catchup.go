package main

import (
	"fmt"
	"slices"

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

// catchupOptions are the flags of catchup.
type catchupOptions struct {
	rows, changes int
	shape         int    // index into shapes; −1: all
	transport     string // empty: both
	against       string // path of another build
}

func catchupCommand(c *common) *cobra.Command {
	var o catchupOptions
	cmd := &cobra.Command{
		Use:   "catchup",
		Short: "Changes a second out of a backlog, beside pg_recvlogical",
		Long: `Let the bridge empty a backlog of price updates, in three shapes and over a Unix
socket and TCP. Before each run pg_recvlogical reads the same WAL to /dev/null.
The table is imported beforehand, so every old value is known.

--against measures another build of the bridge in turn with this one.`,
		Example: "  go run ./internal/bench catchup --rows 1000000 --changes 1000000 --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.catchup(r, c.runs, o) })
		},
	}
	cmd.Flags().IntVar(&o.rows, "rows", 200_000, "rows of the table")
	cmd.Flags().IntVar(&o.changes, "changes", 200_000, "updates of one backlog, at most rows")
	cmd.Flags().IntVar(&o.shape, "shape", -1, "only this one: 0 is 100 a transaction, 1 is 1 a transaction, 2 is one transaction")
	cmd.Flags().StringVar(&o.transport, "transport", "", "only this one: unix or tcp")
	cmd.Flags().StringVar(&o.against, "against", "", "another build of the bridge, to be measured too")
	return cmd
}

// builds are the programs to be measured: a suffix of the row's name, and a path.
func (o catchupOptions) builds(l *lab) [][2]string {
	if o.against == "" {
		return [][2]string{{"", l.binary}}
	}
	return [][2]string{{", other", o.against}, {"", l.binary}}
}

func (l *lab) catchup(r *report, runs int, o catchupOptions) error {
	if o.changes > o.rows {
		return fmt.Errorf("--changes %d: at most --rows (%d), so that no key is changed twice in a backlog", o.changes, o.rows)
	}
	rig, err := l.primed("catchup", o.rows)
	if err != nil {
		return err
	}
	skip := 0
	builds := o.builds(l)
	for range runs {
		for i, s := range shapes {
			if o.shape >= 0 && o.shape != i {
				continue
			}
			for _, t := range []transport{unixSocket, tcp} {
				if o.transport != "" && o.transport != string(t) {
					continue
				}
				for _, build := range builds {
					rig.binary = build[1]
					row := r.row(s.name + ", " + string(t) + build[0])
					if err := rig.pair(row, t, s.sizeOf(o.changes), o.changes, o.rows, skip); err != nil {
						return fmt.Errorf("%s over %s: %w", s.name, t, err)
					}
					skip += o.changes
				}
			}
		}
		slices.Reverse(builds)
	}
	r.note("%d changes a run, table of %d rows, %s; foreign cores are those of the bridge's run.", o.changes, o.rows, plural(runs, "run"))
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
	row.add("reads", d.reads/n)
	row.add("peak MB", d.memory.peak)
	row.add("foreign cores", d.foreign)
	r.l.logf("%s: %.0f changes/s, pg_recvlogical %.0f/s, ratio %.2f, bridge %.1f µs, %.0f MB, foreign %.2f cores; latest %d",
		row.Name, n/d.seconds, n/limit.seconds, limit.seconds/d.seconds, d.usage.bridge/n*1e6, d.memory.peak, d.foreign, d.latest)
	return nil
}
