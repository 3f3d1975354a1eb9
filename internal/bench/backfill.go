package main

import (
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
)

func backfillCommand(c *common) *cobra.Command {
	var rows int
	cmd := &cobra.Command{
		Use:   "backfill",
		Short: "The first import of a table, beside COPY",
		Long: `Let a new bridge import a table, with a new slot, a new state and new topics
each time. Before it COPY reads the same table to nowhere.`,
		Example: "  go run ./internal/bench backfill --rows 2000000 --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.backfill(r, c.runs, rows) })
		},
	}
	cmd.Flags().IntVar(&rows, "rows", 200_000, "rows of the table")
	return cmd
}

func (l *lab) backfill(r *report, runs, rows int) error {
	if err := l.products(rows); err != nil {
		return err
	}
	for i := range runs {
		rig, err := l.newRig(fmt.Sprintf("import%d", i))
		if err != nil {
			return err
		}
		if err := rig.importOnce(r.row("import"), rows); err != nil {
			return err
		}
		if err := rig.remove(); err != nil {
			return err
		}
	}
	r.note("table of %d rows; foreign cores are those of the bridge's run.", rows)
	return nil
}

func (r *rig) importOnce(row *row, rows int) error {
	limit, err := r.l.copyOut()
	if err != nil {
		return err
	}
	b, err := r.start(unixSocket)
	if err != nil {
		return err
	}
	since, err := b.streaming()
	if err != nil {
		return err
	}
	before, err := r.l.usage(b.proc.PID())
	if err != nil {
		return err
	}
	after, _, err := b.follow(map[string]int64{}, int64(rows)) // the topics are new
	if err != nil {
		return err
	}
	m, err := memoryOf(b.proc.PID())
	if err != nil {
		return err
	}
	if err := b.stop(); err != nil {
		return err
	}
	n, seconds, u := float64(rows), after.at.Sub(since).Seconds(), after.since(before)
	row.add("rows/s", n/seconds)
	row.add("COPY rows/s", n/limit.Seconds())
	row.add("ratio", limit.Seconds()/seconds)
	row.add("bridge µs", u.bridge/n*1e6)
	row.add("postgres µs", u.postgres/n*1e6)
	row.add("kafka µs", u.kafka/n*1e6)
	row.add("peak MB", m.peak)
	row.add("foreign cores", u.foreign(after.at.Sub(before.at)))
	r.l.logf("import: %.0f rows/s, COPY %.0f/s", n/seconds, n/limit.Seconds())
	return nil
}

// copyOut is how long COPY takes to send the whole table.
func (l *lab) copyOut() (time.Duration, error) {
	dsn, err := l.dsn(unixSocket)
	if err != nil {
		return 0, err
	}
	conn, err := pgx.Connect(l.ctx(), dsn)
	if err != nil {
		return 0, err
	}
	defer conn.Close(l.ctx())
	began := time.Now()
	_, err = conn.PgConn().CopyTo(l.ctx(), io.Discard, "COPY products TO STDOUT")
	return time.Since(began), err
}
