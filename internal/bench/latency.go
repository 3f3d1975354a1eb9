package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

func latencyCommand(c *common) *cobra.Command {
	var perSec int
	var warm, long time.Duration
	cmd := &cobra.Command{
		Use:   "latency",
		Short: "From the commit to both records at a consumer, at a fixed rate",
		Long: `Commit one-row transactions at a fixed rate and see when a consumer has both
records of each. The rate is an open loop: what is late is committed at once, and
waits in the figures.`,
		Example: "  go run ./internal/bench latency --tps 1000 --for 30s --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.latency(r, c.runs, perSec, warm, long) })
		},
	}
	cmd.Flags().IntVar(&perSec, "tps", 1000, "transactions a second")
	cmd.Flags().DurationVar(&warm, "warm", 5*time.Second, "time at the begin that does not count")
	cmd.Flags().DurationVar(&long, "for", 15*time.Second, "time that counts")
	return cmd
}

func (l *lab) latency(r *report, runs, perSec int, warm, long time.Duration) error {
	total := int(float64(perSec) * (warm + long).Seconds())
	rig, err := l.primed("latency", total)
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
	for range runs {
		if err := b.latencies(r, perSec, total, int(float64(perSec)*warm.Seconds())); err != nil {
			return err
		}
	}
	r.note("%d transactions of one row a second for %s, after %s that do not count; milliseconds.", perSec, long, warm)
	return b.stop()
}

// journey is when something happened to each row, by its id, in nanoseconds
// since 1970; 0: not yet.
type journey struct{ stamp, known, events, latest []atomic.Int64 }

func newJourney(rows int) *journey {
	list := func() []atomic.Int64 { return make([]atomic.Int64, rows+1) }
	return &journey{list(), list(), list(), list()}
}

func (b *bridge) latencies(r *report, perSec, total, warm int) error {
	j := newJourney(total)
	ctx, cancel := context.WithTimeout(b.r.l.ctx(), time.Minute+2*time.Duration(total/perSec)*time.Second)
	defer cancel()
	before, err := b.r.l.usage(b.proc.PID())
	if err != nil {
		return err
	}
	p := &pacer{l: b.r.l, perSec: perSec, size: 1, total: total, writers: 8, span: total}
	p.committed = func(i int, stamp, known time.Time) {
		id := p.rowOf(i)
		j.stamp[id].Store(stamp.UnixNano())
		j.known[id].Store(known.UnixNano())
	}
	g, ctx := errgroup.WithContext(ctx)
	ready := make(chan struct{}, 2)
	g.Go(func() error { return b.consume(ctx, b.r.events, j.events, ready) }) // end with the last record
	g.Go(func() error { return b.consume(ctx, b.r.latest, j.latest, ready) })
	g.Go(func() error { // ends with the last transaction
		for range cap(ready) {
			select {
			case <-ready:
			case <-ctx.Done():
				return nil
			}
		}
		return p.run(ctx)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	after, err := b.r.l.usage(b.proc.PID())
	if err != nil {
		return err
	}
	u := after.since(before)
	j.report(r, p, warm)
	row := r.row("cost")
	row.add("late", float64(p.late.Load()))
	row.add("bridge µs a change", u.bridge/float64(total)*1e6)
	row.add("foreign cores", u.foreign(after.at.Sub(before.at)))
	b.r.l.logf("latency: %d late, foreign %.2f cores", p.late.Load(), u.foreign(after.at.Sub(before.at)))
	return nil
}

// consume reads a topic from its end on, as any consumer would, and notes when
// the record of each row arrives, until that of every row has.
func (b *bridge) consume(ctx context.Context, topic string, arrived []atomic.Int64, ready chan<- struct{}) error {
	ends, err := b.r.l.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(b.r.l.kafka.Brokers()...), kgo.ConsumePartitions(ends.KOffsets()),
		kgo.FetchMinBytes(1), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer client.Close()
	ready <- struct{}{}
	for left := len(arrived) - 1; left > 0; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("consume %s, %d records left: %w", topic, left, err)
		}
		now := time.Now().UnixNano()
		for _, record := range fetches.Records() {
			id, err := strconv.Atoi(string(record.Key))
			if err != nil || id < 1 || id >= len(arrived) {
				return errors.Join(fmt.Errorf("record of %s with key %q", topic, record.Key), err)
			}
			if arrived[id].CompareAndSwap(0, now) {
				left--
			}
		}
	}
	return nil
}

// report adds the quantiles of one run, without its first transactions.
func (j *journey) report(r *report, p *pacer, warm int) {
	parts := map[string][]float64{}
	names := []string{"commit → both records", "commit → event", "commit → latest", "stamp → commit"}
	for i := warm; i < p.total; i++ {
		id := p.rowOf(i)
		stamp, known := j.stamp[id].Load(), j.known[id].Load()
		events, latest := j.events[id].Load(), j.latest[id].Load()
		for k, d := range []int64{max(events, latest) - known, events - known, latest - known, known - stamp} {
			parts[names[k]] = append(parts[names[k]], float64(d)/1e6)
		}
	}
	for _, name := range names {
		row := r.row(name)
		for _, q := range []struct {
			name string
			q    float64
		}{{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1}} {
			row.add(q.name, quantile(parts[name], q.q))
		}
	}
}
