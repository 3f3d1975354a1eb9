package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/spf13/cobra"

	"backstory/capture"
	"backstory/internal/bridge"
)

// backfillOptions are the flags of backfill.
type backfillOptions struct {
	request   bridge.BackfillRequest
	once      bool
	reconcile bool
	adopt     bool
	pause     bool
	resume    bool
	detach    bool
	asJSON    bool
}

func backfillCommand() *cobra.Command {
	o := &backfillOptions{}
	cmd := &cobra.Command{
		Use:   "backfill --config FILE [TABLE…]",
		Short: "Read tables and publish what differs",
		Long: `Read the tables, all of the mapping or those that are named, compare each row with
the state, and publish the differences as events with the cause reconciliation: rows
that the state does not know, other values, and deletes of rows that are gone. A row
that is equal makes no event, so a backfill can be repeated at any time.

The running bridge does it beside the stream, and goes on with it after a restart;
this command asks it, shows the progress and returns when it is done. With --once no
bridge is needed: the command catches up with the stream, reads the tables and ends.

--reconcile also works without a running bridge, and mends what ` + "`run`" + ` refuses: a slot
that is gone, lost or ahead of the state is made anew or taken as it is, and what
the stream has lost is found by comparing the tables.

--adopt-topics, together with it and without a running bridge, is for the same rows on
another server: after an upgrade by pg_upgrade or dump and restore, or a move to a
logical copy. State and topics of the former server are taken over, versions go on, and
what differs is published.`,
		Example: `  backstory backfill -c backstory.yaml                           # all tables, by the running bridge
  backstory backfill -c backstory.yaml products --where 'id BETWEEN 1 AND 1000'
  backstory backfill -c backstory.yaml --pause                   # and --resume
  backstory backfill -c backstory.yaml --once --json             # for pipelines and cron
  backstory backfill -c backstory.yaml --reconcile --dry-run     # after a lost slot: what would be published?
  backstory backfill -c backstory.yaml --reconcile               # publish it
  backstory backfill -c backstory.yaml --reconcile --adopt-topics   # after an upgrade to a new server`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := configOf(cmd)
			if err != nil {
				return err
			}
			o.request.Tables = args
			if o.adopt && !o.reconcile {
				return usageError{errors.New("--adopt-topics: goes with --reconcile, which compares the tables with what was published of them")}
			}
			return o.run(cmd.Context(), cfg, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.request.Where, "where", "", "SQL `condition` of the rows to read, of one table; rows that are gone are then not looked for")
	flags.BoolVar(&o.request.DryRun, "dry-run", false, "count the differences, show some, and publish nothing")
	flags.BoolVar(&o.once, "once", false, "without a running bridge: catch up, read the tables, end")
	flags.BoolVar(&o.reconcile, "reconcile", false, "go on where slot and state do not fit; makes a lost slot anew")
	flags.BoolVar(&o.adopt, "adopt-topics", false, "with --reconcile: take over state and topics of the server that the database was moved from")
	flags.IntVar(&o.request.Parallel, "parallel", 0, "read so many `tables` at a time (default: backfill.parallel)")
	flags.IntVar(&o.request.ChunkRows, "chunk-rows", 0, "read so many `rows` at a time (default: backfill.chunk_rows)")
	flags.IntVar(&o.request.RowsPerSecond, "rows-per-second", 0, "read at most so many `rows` a second of each table (default: backfill.rows_per_second)")
	flags.BoolVar(&o.pause, "pause", false, "pause the backfills that run, or those of the named tables")
	flags.BoolVar(&o.resume, "resume", false, "go on with them")
	flags.BoolVar(&o.detach, "detach", false, "return when the running bridge has begun")
	flags.BoolVar(&o.asJSON, "json", false, "print progress and result as JSON, an object a line")
	cmd.MarkFlagsMutuallyExclusive("pause", "resume")
	for _, with := range []string{"once", "reconcile", "adopt-topics"} {
		cmd.MarkFlagsMutuallyExclusive(with, "pause")
		cmd.MarkFlagsMutuallyExclusive(with, "resume")
		cmd.MarkFlagsMutuallyExclusive(with, "detach")
	}
	configFlags(cmd)
	return cmd
}

func (o *backfillOptions) run(ctx context.Context, cfg *Config, out io.Writer) error {
	show := newProgress(out, os.Stderr, o.asJSON)
	if o.once || o.adopt {
		return o.alone(ctx, cfg, show)
	}
	c, err := newClient(cfg.HTTP.Listen)
	if err != nil {
		return err
	}
	switch {
	case o.pause:
		_, err = c.do(ctx, http.MethodPost, "/backfill/pause", pauseRequest{o.request.Tables}, requestTimeout)
		return err
	case o.resume:
		_, err = c.do(ctx, http.MethodPost, "/backfill/resume", pauseRequest{o.request.Tables}, requestTimeout)
		return err
	}
	_, err = c.do(ctx, http.MethodPost, "/backfill", o.request, requestTimeout)
	if gone := new(noBridge); o.reconcile && errors.As(err, &gone) {
		return o.alone(ctx, cfg, show)
	}
	if err != nil || o.detach {
		return err
	}
	return o.follow(ctx, c, show)
}

// followPoll is how often the progress is looked at.
const followPoll = 250 * time.Millisecond

// follow shows how far the running bridge is, until it is done.
func (o *backfillOptions) follow(ctx context.Context, c *client, show *progress) error {
	for {
		s, _, err := c.status(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("no longer watched: the bridge goes on with the backfill (backstory status): %w", context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("the backfill goes on when the bridge runs again: %w", err)
		}
		tables := o.chosen(s.Status)
		show.update(tables)
		if done(tables) {
			return show.finish(tables)
		}
		select {
		case <-time.After(followPoll):
		case <-ctx.Done():
		}
	}
}

// chosen are the tables of the status that are asked for.
func (o *backfillOptions) chosen(s bridge.Status) []bridge.TableStatus {
	if len(o.request.Tables) == 0 {
		return s.Tables
	}
	var chosen []bridge.TableStatus
	for _, t := range s.Tables {
		for _, name := range o.request.Tables {
			if t.Is(name) {
				chosen = append(chosen, t)
				break
			}
		}
	}
	return chosen
}

func done(tables []bridge.TableStatus) bool {
	for _, t := range tables {
		settled := t.Backfill.Phase == "done" && (t.Again == 0 || t.Backfill.DryRun != nil)
		if !settled && t.Backfill.Phase != "failed" {
			return false
		}
	}
	return true
}

// alone does the backfill in this process.
func (o *backfillOptions) alone(ctx context.Context, cfg *Config, show *progress) error {
	return withProcess(ctx, cfg, cfg.Log.logger(), func(p *process) error {
		requests, err := p.requests(o.request)
		if err != nil {
			return err
		}
		for _, part := range p.parts {
			if err := part.idle(ctx); err != nil {
				return err
			}
			if o.reconcile && !o.request.DryRun {
				part.db.repair = true
				part.bridge.Repair()
				if its, asked := requests[part]; asked {
					if err := part.bridge.Mend(its); err != nil {
						return p.of(part, err)
					}
				}
			}
			if o.adopt && !o.request.DryRun {
				part.db.adopt = true
				part.bridge.Adopt()
			}
		}
		if o.reconcile && o.request.DryRun {
			return o.compare(ctx, p, requests, show)
		}
		return o.session(ctx, p, requests, show)
	})
}

// idle refuses a slot that a bridge streams from.
func (p *part) idle(ctx context.Context) error {
	slot, err := p.db.SlotStatus(ctx)
	if err != nil || slot.ActivePID == 0 {
		return err
	}
	return &capture.Refusal{Thing: "slot " + slot.Name,
		Problem: fmt.Sprintf("session %d streams from it: a bridge runs", slot.ActivePID),
		Cure:    "leave --once away and let that one do it, or stop it"}
}

// compare is a dry run of a repair: without slot and without Kafka.
func (o *backfillOptions) compare(ctx context.Context, p *process, requests map[*part]bridge.BackfillRequest, show *progress) error {
	ended := make(chan error, 1)
	go func() { ended <- p.dryRun(ctx, requests) }() // ends by itself or with ctx
	for {
		select {
		case err := <-ended:
			if err != nil {
				return err
			}
			tables := o.chosen(p.status(false).Status)
			show.update(tables)
			return show.finish(tables)
		case <-time.After(followPoll):
			show.update(o.chosen(p.status(false).Status))
		}
	}
}

// dryRun compares the tables of one slot after the other.
func (p *process) dryRun(ctx context.Context, requests map[*part]bridge.BackfillRequest) error {
	for _, part := range p.parts {
		its, ok := requests[part]
		if !ok {
			continue
		}
		report, err := part.db.Doctor(ctx)
		if err == nil {
			part.db.Bind(report.Identity)
			err = part.bridge.DryRun(ctx, report.Tables, report.Identity, its)
		}
		if err != nil {
			return p.of(part, err)
		}
	}
	return nil
}

// session runs the bridges until the tables are read and each stream has come to
// where the server's WAL ended then.
func (o *backfillOptions) session(ctx context.Context, p *process, requests map[*part]bridge.BackfillRequest, show *progress) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- p.run(running) }() // ends with running, or by an error
	worked := make(chan error, 1)
	go func() { worked <- o.work(running, p, requests, show) }()
	select {
	case err := <-ended:
		stop()
		late := <-worked
		if err == nil {
			err = late // the end that was asked for
		}
		return err
	case err := <-worked:
		stop()
		if err := errors.Join(err, <-ended); err != nil {
			return err
		}
		return show.finish(o.chosen(p.status(false).Status))
	}
}

// work asks the bridges of this process and waits until all is done and durable.
func (o *backfillOptions) work(ctx context.Context, p *process, requests map[*part]bridge.BackfillRequest, show *progress) error {
	for part, its := range requests {
		if err := begin(ctx, part.bridge, its); err != nil {
			return p.of(part, err)
		}
	}
	for {
		tables := o.chosen(p.status(false).Status)
		show.update(tables)
		if done(tables) {
			break
		}
		if err := wait(ctx, followPoll); err != nil {
			return err
		}
	}
	for _, part := range p.parts {
		if err := part.caughtUp(ctx); err != nil {
			return p.of(part, err)
		}
	}
	return nil
}

// caughtUp returns when everything is confirmed that is in WAL now.
func (p *part) caughtUp(ctx context.Context) error {
	slot, err := p.db.SlotStatus(ctx)
	if err != nil {
		return err
	}
	for {
		confirmed, err := pglogrepl.ParseLSN(p.bridge.Status().Confirmed)
		if err == nil && confirmed >= slot.Current {
			return nil
		}
		if err := wait(ctx, followPoll); err != nil {
			return err
		}
	}
}

// begin hands the request to the bridge as soon as it streams. A table that the
// bridge reads by itself, because its state is new or in doubt, is being read as
// well as asked for.
func begin(ctx context.Context, b *bridge.Bridge, r bridge.BackfillRequest) error {
	for {
		err := b.Backfill(ctx, r)
		var notYet *bridge.ErrNotStreaming
		var conflict *bridge.RequestError
		switch {
		case errors.As(err, &notYet) && ctx.Err() == nil:
			continue
		case errors.As(err, &conflict) && conflict.Conflict && r.Where == "" && !r.DryRun:
			return nil
		}
		return err
	}
}

// wait waits for a while; the error is the context's.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
