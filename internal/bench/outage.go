package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func outageCommand(c *common) *cobra.Command {
	var perSec int
	var out time.Duration
	cmd := &cobra.Command{
		Use:   "outage",
		Short: "Memory while Kafka is away, and the time to catch up",
		Long: `Change rows at a fixed rate while Kafka is frozen (its connections stay open and
nobody answers), and again while it is killed. Memory is the bridge's.`,
		Example: "  go run ./internal/bench outage --rate 5000 --out 60s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.outages(r, c.runs, perSec, out) })
		},
	}
	cmd.Flags().IntVar(&perSec, "rate", 5000, "changes a second, ten to a transaction")
	cmd.Flags().DurationVar(&out, "out", 20*time.Second, "how long Kafka is away")
	return cmd
}

const (
	outageSize = 10               // changes of a transaction
	outageCalm = 10 * time.Second // before
)

func (l *lab) outages(r *report, runs, perSec int, out time.Duration) error {
	const rows = 200_000
	rig, err := l.primed("outage", rows)
	if err != nil {
		return err
	}
	b, err := rig.start(unixSocket)
	if err != nil {
		return err
	}
	if _, err := b.streaming(); err != nil {
		return err
	}
	ways := []struct {
		name       string
		away, back func()
	}{
		{"frozen", func() { l.kafka.Stop(l.tb, 0) }, func() { l.kafka.Cont(l.tb, 0) }},
		{"killed", func() { l.kafka.Kill9(l.tb, 0) }, func() { l.kafka.Restart(l.tb, 0) }},
	}
	for range runs {
		for _, w := range ways {
			if err := b.outage(r.row("Kafka "+w.name), perSec, rows, out, w.away, w.back); err != nil {
				return fmt.Errorf("kafka %s: %w", w.name, err)
			}
		}
	}
	r.note("%d changes a second in transactions of %d; Kafka is away for %s after %s. Behind is the time from when it is back to when the bridge has what was committed by then.",
		perSec, outageSize, out, outageCalm)
	return b.stop()
}

// outage writes at the given rate all the time. It measures the peak of the
// bridge's memory before, while Kafka is away and after.
func (b *bridge) outage(row *row, perSec, rows int, out time.Duration, away, back func()) error {
	ctx, stop := context.WithCancel(b.r.l.ctx())
	defer stop()
	p := &pacer{l: b.r.l, perSec: perSec / outageSize, size: outageSize, total: 1 << 30, writers: 4, span: rows}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.run(ctx) }) // ends with stop
	err := b.phases(ctx, row, out, away, back)
	stop()
	err = errors.Join(err, g.Wait())
	row.add("late", float64(p.late.Load()))
	return err
}

func (b *bridge) phases(ctx context.Context, row *row, out time.Duration, away, back func()) error {
	before, err := b.peakDuring(ctx, outageCalm)
	if err != nil {
		return err
	}
	away()
	during, err := b.peakDuring(ctx, out)
	if err != nil {
		return err
	}
	back()
	returned := time.Now()
	conn, err := b.r.l.connect()
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	end, err := walEnd(ctx, conn)
	if err != nil {
		return err
	}
	if err := b.confirmed(end, startLimit); err != nil {
		return err
	}
	behind := time.Since(returned)
	after, err := memoryOf(b.proc.PID())
	if err != nil {
		return err
	}
	row.add("MB before", before)
	row.add("MB during", during)
	row.add("MB after", after.peak)
	row.add("behind s", behind.Seconds())
	b.r.l.logf("%s: %.0f, %.0f, %.0f MB; behind for %.1f s", row.Name, before, during, after.peak, behind.Seconds())
	return nil
}

// peakDuring lets time pass and returns the peak of the memory in it, in MB. What
// comes after counts anew.
func (b *bridge) peakDuring(ctx context.Context, d time.Duration) (float64, error) {
	if err := resetPeak(b.proc.PID()); err != nil {
		return 0, err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	m, err := memoryOf(b.proc.PID())
	return m.peak, errors.Join(err, resetPeak(b.proc.PID()))
}
