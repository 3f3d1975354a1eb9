package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// lookupKeys is how many rows are read again at a time.
const lookupKeys = 1000

// againInterval is how often the keys that ask to be read again are looked up.
const againInterval = 250 * time.Millisecond

// job is a chunk on its way to the first stage, which applies it once the stream
// has reached its watermark.
type job struct {
	table     *transform.Table
	chunk     *capture.Chunk
	run       importRun
	keys      [][]byte      // of a lookup: all that were asked for; else nil
	applied   chan struct{} // closed when the rows are in a piece; the chunk's memory is free again
	published int           // events that the chunk made
}

// importer reads one table beside the stream.
type importer struct {
	s      *stream
	table  *transform.Table
	info   capture.TableInfo
	reader Reader
	run    importRun
	under  []*job // handed over and not applied yet, at most one when the next chunk is read
}

// backfill imports the tables that the state does not have yet, repairs those
// whose state can't be trusted, and reads again what the stream could not
// complete, until ctx is done. One table after another.
func (s *stream) backfill(ctx context.Context) error {
	err := s.backfillTables(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *stream) backfillTables(ctx context.Context) (err error) {
	var importers []*importer
	defer func() {
		for _, im := range importers {
			err = errors.Join(err, im.reader.Close())
		}
	}()
	for _, table := range s.b.mapping.Tables {
		im, err := s.importer(ctx, table)
		if err != nil {
			return err
		}
		importers = append(importers, im)
		if err := im.importTable(ctx); err != nil {
			return fmt.Errorf("backfill %s.%s: %w", table.Schema, table.Name, err)
		}
	}
	tick := time.NewTicker(againInterval)
	defer tick.Stop()
	for {
		for _, im := range importers {
			if err := im.readAgain(ctx); err != nil {
				return fmt.Errorf("read rows of %s.%s again: %w", im.table.Schema, im.table.Name, err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *stream) importer(ctx context.Context, table *transform.Table) (*importer, error) {
	info, err := s.info(table)
	if err != nil {
		return nil, err
	}
	run, _, err := s.b.memory.run(table.ID)
	if err != nil {
		return nil, err
	}
	reader, err := s.b.db.OpenReader(ctx, info)
	if err != nil {
		return nil, fmt.Errorf("backfill %s.%s: %w", table.Schema, table.Name, err)
	}
	return &importer{s: s, table: table, info: info, reader: reader, run: run}, nil
}

func (s *stream) info(table *transform.Table) (capture.TableInfo, error) {
	for _, info := range s.prepared.Tables {
		if info.Schema == table.Schema && info.Name == table.Name {
			return info, nil
		}
	}
	return capture.TableInfo{}, fmt.Errorf("backfill: the catalog has no table %s.%s", table.Schema, table.Name)
}

// importTable goes on with the table's import where it stopped.
func (im *importer) importTable(ctx context.Context) error {
	if !im.s.b.backfill.wants(im.run) {
		return nil
	}
	im.progress("running")
	if im.run.Horizon == 0 {
		if err := im.begin(ctx); err != nil {
			return err
		}
	}
	// The first stage must know of the run before the first snapshot is taken.
	if err := im.tell(ctx); err != nil {
		return err
	}
	if err := im.scan(ctx); err != nil {
		return err
	}
	if im.run.Reconcile {
		if err := im.sweep(ctx); err != nil {
			return err
		}
	}
	im.run.Done = true
	if err := im.tell(ctx); err != nil {
		return err
	}
	im.progress("done")
	im.s.b.log.Info("backfill done", "table", im.table.Schema+"."+im.table.Name, "rows", im.run.Rows)
	return nil
}

// begin fixes the run's horizon: every transaction that could have written the
// table before it was published, or whose notes the state may lack, is over and
// visible to every chunk.
func (im *importer) begin(ctx context.Context) error {
	lsn, xmax, err := im.reader.Horizon(ctx)
	if err != nil {
		return err
	}
	im.s.b.log.Info("backfill begins", "table", im.table.Schema+"."+im.table.Name, "lsn", lsn, "reconcile", im.run.Reconcile)
	if err := im.reader.Wait(ctx, xmax); err != nil {
		return err
	}
	im.run.Horizon = lsn
	return nil
}

// scan reads the table in chunks, one ahead of the one being applied.
func (im *importer) scan(ctx context.Context) error {
	for !im.run.Scanned {
		begun := time.Now()
		chunk, err := im.reader.Chunk(ctx, im.run.Cursor, im.s.b.backfill.ChunkRows)
		if err != nil {
			return err
		}
		im.run.Rows += int64(len(chunk.Changes))
		im.run.Scanned = chunk.Done
		if chunk.Last != nil {
			im.run.Cursor = chunk.Last
		}
		if err := im.hand(ctx, chunk, nil); err != nil {
			return err
		}
		if err := im.settle(ctx, 1); err != nil {
			return err
		}
		im.progress("running")
		if err := im.throttle(ctx, len(chunk.Changes), time.Since(begun)); err != nil {
			return err
		}
	}
	return im.settle(ctx, 0)
}

// sweep looks up every aggregate that the state has from before the run: a row
// that is gone is an aggregate to delete.
func (im *importer) sweep(ctx context.Context) error {
	keys, err := im.s.b.store.Keys(ctx, im.table.ID, state.Existing)
	if err != nil {
		return err
	}
	defer keys.Close()
	var batch [][]byte
	for more := true; more; {
		if more = keys.Next(); more {
			batch = append(batch, append([]byte(nil), keys.Key()...))
		}
		if len(batch) == 0 || (more && len(batch) < lookupKeys) {
			continue
		}
		if err := im.lookup(ctx, batch); err != nil {
			return err
		}
		batch = nil
	}
	return keys.Err()
}

// readAgain looks up the keys whose last change could not be completed.
func (im *importer) readAgain(ctx context.Context) error {
	keys := im.s.b.store.AgainKeys(im.table.ID)
	for len(keys) > 0 {
		n := min(len(keys), lookupKeys)
		if err := im.lookup(ctx, keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// lookup reads the rows of keys and waits until they are applied.
func (im *importer) lookup(ctx context.Context, keys [][]byte) error {
	values := make([][]string, len(keys))
	for i, key := range keys {
		v, err := transform.SplitKey(key, len(im.table.Key))
		if err != nil {
			return err
		}
		values[i] = v
	}
	chunk, err := im.reader.Lookup(ctx, values)
	if err != nil {
		return err
	}
	if err := im.hand(ctx, chunk, keys); err != nil {
		return err
	}
	return im.settle(ctx, 0)
}

// tell hands the state of the run to the first stage, without rows.
func (im *importer) tell(ctx context.Context) error {
	if err := im.hand(ctx, &capture.Chunk{}, nil); err != nil {
		return err
	}
	return im.settle(ctx, 0)
}

// hand gives a chunk to the first stage.
func (im *importer) hand(ctx context.Context, chunk *capture.Chunk, keys [][]byte) error {
	j := &job{table: im.table, chunk: chunk, run: im.run, keys: keys, applied: make(chan struct{})}
	select {
	case im.s.jobs <- j:
		im.under = append(im.under, j)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// settle waits until at most n chunks are not applied yet.
func (im *importer) settle(ctx context.Context, n int) error {
	for len(im.under) > n {
		select {
		case <-im.under[0].applied:
			im.under = im.under[1:]
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// throttle keeps the reading below rows_per_second.
func (im *importer) throttle(ctx context.Context, rows int, took time.Duration) error {
	limit := im.s.b.backfill.RowsPerSecond
	if limit == 0 {
		return nil
	}
	rest := time.Duration(float64(rows)/float64(limit)*float64(time.Second)) - took
	if rest <= 0 {
		return nil
	}
	select {
	case <-time.After(rest):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (im *importer) progress(phase string) {
	im.s.b.status.backfill(im.table, BackfillStatus{
		Phase: phase, Rows: im.run.Rows, EstimatedRows: int64(max(im.info.Rows, 0)), Reconcile: im.run.Reconcile,
	})
}
