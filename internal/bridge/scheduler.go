package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"backstory/transform"
)

// scheduler decides which tables are read when, for one session. It lives in the
// goroutine of [stream.backfill]; the runs have one each.
type scheduler struct {
	s        *stream
	parallel int
	runs     map[*transform.Table]*importer // waiting or under way
	queue    []*importer                    // waiting, in order
	finished chan *importer
	running  int
}

// backfill reads the tables that the state does not have yet, repairs those whose
// state can't be trusted, and reads what somebody asks for, until ctx is done.
func (s *stream) backfill(ctx context.Context) error {
	err := s.schedule(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *stream) schedule(ctx context.Context) (err error) {
	g, ctx := errgroup.WithContext(ctx)
	defer func() { err = errors.Join(g.Wait(), err) }()
	sch := &scheduler{s: s, parallel: s.b.backfill.Parallel, runs: map[*transform.Table]*importer{},
		finished: make(chan *importer)}
	for _, t := range s.b.mapping.Tables {
		run, _, err := s.b.memory.run(t.ID)
		if err != nil {
			return err
		}
		s.horizons[t.ID].Store(uint64(run.Horizon))
		if !s.b.backfill.wants(run) {
			continue
		}
		im, err := s.importer(ctx, t, run, nil)
		if run.Asked && err != nil && ctx.Err() == nil && !restarts(err) {
			if err := s.abandon(ctx, t, run, err); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		sch.enqueue(im)
	}
	g.Go(func() error { return s.readAgain(ctx) }) // ends with ctx
	if err := sch.reshape(ctx); err != nil {
		return errors.Join(err, sch.closeWaiting())
	}
	for {
		for sch.running < sch.parallel && len(sch.queue) > 0 {
			im := sch.queue[0]
			sch.queue = sch.queue[1:]
			sch.running++
			g.Go(func() error { // ends with the run, or with ctx
				err := im.importTable(ctx)
				if err != nil && im.run.Asked && ctx.Err() == nil && !restarts(err) && !refuses(err) {
					err = im.fail(ctx, err)
				}
				if err != nil {
					return errors.Join(fmt.Errorf("backfill %s.%s: %w", im.table.Schema, im.table.Name, err), im.reader.Close())
				}
				select {
				case sch.finished <- im:
				case <-ctx.Done():
				}
				return im.reader.Close()
			})
		}
		select {
		case <-ctx.Done():
			return sch.closeWaiting()
		case im := <-sch.finished:
			sch.running--
			delete(sch.runs, im.table)
			if err := sch.reshape(ctx); err != nil {
				return errors.Join(err, sch.closeWaiting())
			}
		case <-s.reshaped:
			if err := s.settled(ctx); err != nil {
				return errors.Join(err, sch.closeWaiting())
			}
			if err := sch.reshape(ctx); err != nil {
				return errors.Join(err, sch.closeWaiting())
			}
		case r := <-s.b.requests:
			r.reply <- r.do(ctx, sch)
		}
	}
}

// abandon ends a run that was asked for and can't even be begun again.
func (s *stream) abandon(ctx context.Context, t *transform.Table, run importRun, cause error) error {
	im, err := s.unopened(t, run, nil)
	if err != nil {
		return err
	}
	return im.fail(ctx, cause)
}

func (sch *scheduler) enqueue(im *importer) {
	sch.runs[im.table] = im
	sch.queue = append(sch.queue, im)
	im.progress("waiting")
}

func (sch *scheduler) closeWaiting() error {
	var errs []error
	for _, im := range sch.queue {
		errs = append(errs, im.reader.Close())
	}
	return errors.Join(errs...)
}

// accept begins a run of each table that was asked for: all of them or none.
func (sch *scheduler) accept(ctx context.Context, tables []*transform.Table, r BackfillRequest) (err error) {
	for _, t := range tables {
		if sch.runs[t] != nil {
			return &RequestError{Conflict: true,
				Problem: fmt.Sprintf("table %s.%s is being read already: see `backstory status`", t.Schema, t.Name)}
		}
	}
	var ims []*importer
	defer func() {
		if err != nil {
			for _, im := range ims {
				err = errors.Join(err, im.reader.Close())
			}
		}
	}()
	for _, t := range tables {
		run, err := sch.s.b.memory.owed(t.ID)
		if err != nil {
			return err
		}
		run.Asked, run.Where, run.ChunkRows, run.RowsPerSecond, run.Began = true, r.Where, r.ChunkRows, r.RowsPerSecond, time.Now().Unix()
		var dry *DryRun
		if r.DryRun {
			dry = newDryRun()
		}
		im, err := sch.s.importer(ctx, t, run, dry)
		if err != nil {
			return err
		}
		ims = append(ims, im)
	}
	for _, im := range ims {
		if err := im.tell(ctx); err != nil {
			return err
		}
	}
	if r.Parallel > 0 {
		sch.parallel = r.Parallel
	}
	for _, im := range ims {
		sch.enqueue(im)
	}
	return nil
}

// pause closes or opens the gates of tables. A named table that is not being
// read is an error.
func (sch *scheduler) pause(tables []*transform.Table, named, paused bool) error {
	var met bool
	for _, t := range tables {
		im := sch.runs[t]
		if im == nil {
			if named {
				return &RequestError{Conflict: true, Problem: fmt.Sprintf("table %s.%s is not being read", t.Schema, t.Name)}
			}
			continue
		}
		met = true
		im.gate.set(!paused)
	}
	if !met {
		return &RequestError{Conflict: true, Problem: "no table is being read"}
	}
	return nil
}
