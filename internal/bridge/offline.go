package bridge

import (
	"context"
	"math"

	"golang.org/x/sync/errgroup"

	"backstory/capture"
	"backstory/transform"
)

// DryRun compares tables with the state as the last run has left it, without a
// slot and without Kafka, and publishes nothing: what a repair would do. Status
// tells how far it is. Not to be called beside Run, or after it.
func (b *Bridge) DryRun(ctx context.Context, found []capture.TableInfo, id capture.Identity, r BackfillRequest) error {
	tables, err := b.tables(r.Tables)
	if err != nil {
		return err
	}
	if err := b.mapping.Bind(found); err != nil {
		return err
	}
	if err := b.memory.recall(b.mapping.Tables); err != nil {
		return err
	}
	top, err := b.top(ctx)
	if err != nil {
		return err
	}
	// Nothing streams: a chunk is newer than all that the state has.
	s := newStream(b, nil, &capture.Prepared{Identity: id, Tables: found}, resume{base: top})
	s.reached = math.MaxUint64
	defer b.store.DropAll()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.readDry(ctx, tables, r) }) // ends with the last table
	for j := range s.jobs {
		s.due = append(s.due, j)
		if err := s.applyDue(ctx); err != nil {
			g.Go(func() error { return err })
			break
		}
	}
	return g.Wait()
}

// readDry reads the tables, one after another, and closes the jobs.
func (s *stream) readDry(ctx context.Context, tables []*transform.Table, r BackfillRequest) error {
	defer close(s.jobs)
	for _, t := range tables {
		run := importRun{Reconcile: true, Where: r.Where, ChunkRows: r.ChunkRows, RowsPerSecond: r.RowsPerSecond}
		im, err := s.importer(ctx, t, run, newDryRun())
		if err != nil {
			return err
		}
		if err := im.importTable(ctx); err != nil {
			_ = im.reader.Close() // the run has failed already
			return err
		}
		if err := im.reader.Close(); err != nil {
			return err
		}
	}
	return nil
}
