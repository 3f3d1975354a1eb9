package bridge

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"backstory/capture"
	"backstory/internal/failpoint"
	"backstory/internal/state"
	"backstory/transform"
)

// job is a chunk on its way to the first stage, which applies it once the stream
// has reached its watermark.
type job struct {
	table   *transform.Table
	chunk   *capture.Chunk
	horizon capture.LSN   // transactions that committed below are visible to the chunk, whatever their xid
	run     *importRun    // progress that is committed with the chunk's rows; nil: rows by key, which is none
	seen    *state.Seen   // takes the keys of the rows; nil: nobody asks which aggregates had none
	keys    [][]byte      // of a look-up: all that were asked for; else nil
	dry     *DryRun       // counts instead of publishing; else nil
	durable bool          // applied waits until all that was taken so far is durable
	applied chan struct{} // closed when the rows are in a piece; the chunk's memory is free again
}

// wait returns when the job is applied.
func (j *job) wait(ctx context.Context) error {
	select {
	case <-j.applied:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hand gives a job to the first stage.
func (s *stream) hand(ctx context.Context, j *job) error {
	select {
	case s.jobs <- j:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// importer carries out one run over a table beside the stream.
type importer struct {
	looker
	info   capture.TableInfo
	run    importRun
	dry    *DryRun
	gate   gate
	under  []*job // handed over and not applied yet, at most readAhead when the next chunk is read
	pace   pace
	looked time.Time // when the standbys were last looked at
	seen   state.Seen
	tally  *tally
}

// tally counts what a run has done. The first stage counts, others read.
type tally struct{ rows, events, equal, gone, passed atomic.Int64 }

func (t *tally) start(run importRun) {
	t.rows.Store(run.Rows)
	t.events.Store(run.Events)
	t.equal.Store(run.Equal)
	t.gone.Store(run.Gone)
}

func (t *tally) fill(run *importRun) {
	run.Rows, run.Events, run.Equal, run.Gone = t.rows.Load(), t.events.Load(), t.equal.Load(), t.gone.Load()
}

func (s *stream) importer(ctx context.Context, table *transform.Table, run importRun, dry *DryRun) (*importer, error) {
	im, err := s.unopened(table, run, dry)
	if err != nil {
		return nil, err
	}
	if im.reader, err = s.b.db.OpenReader(ctx, im.info, run.Where); err != nil {
		return nil, fmt.Errorf("backfill %s.%s: %w", table.Schema, table.Name, err)
	}
	im.gate.set(!run.Paused)
	return im, nil
}

// unopened is an importer without a reader.
func (s *stream) unopened(table *transform.Table, run importRun, dry *DryRun) (*importer, error) {
	info, err := s.info(table)
	if err != nil {
		return nil, err
	}
	im := &importer{looker: looker{s: s, table: table}, info: info, run: run, dry: dry, tally: s.tallies[table.ID]}
	if dry != nil {
		im.tally = &dry.tally
	}
	im.tally.start(run)
	return im, nil
}

func (s *stream) info(table *transform.Table) (capture.TableInfo, error) {
	for _, info := range s.prepared.Tables {
		if info.Schema == table.Schema && info.Name == table.Name {
			return info, nil
		}
	}
	return capture.TableInfo{}, fmt.Errorf("backfill: the catalog has no table %s.%s", table.Schema, table.Name)
}

// importTable goes on with the run where it stopped.
func (im *importer) importTable(ctx context.Context) error {
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
	if im.run.sweeps() {
		im.progress("checking")
		if err := im.sweep(ctx); err != nil {
			return err
		}
	}
	im.run.Done = true
	if err := im.tell(ctx); err != nil { // so that it is not done before its events are in the topics
		return err
	}
	im.progress("done")
	im.tally.fill(&im.run)
	im.s.b.log.Info("backfill done", "table", im.table.Schema+"."+im.table.Name, "dry_run", im.dry != nil,
		"rows", im.run.Rows, "events", im.run.Events, "equal", im.run.Equal, "gone", im.run.Gone, "passed_over", im.tally.passed.Load())
	return nil
}

// fail ends a run that was asked for and that the server does not carry out, for
// instance because its condition divides by zero. The stream goes on: a request
// must not be able to end the bridge, at this start and at each that follows.
func (im *importer) fail(ctx context.Context, cause error) error {
	im.s.b.log.Error("backfill failed", "table", im.table.Schema+"."+im.table.Name, "err", cause)
	im.run.Done, im.run.Failed = true, cause.Error()
	if err := im.tell(ctx); err != nil {
		return err
	}
	im.progress("failed")
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
	im.s.horizons[im.table.ID].Store(uint64(lsn))
	if im.run.Began == 0 {
		im.run.Began = time.Now().Unix()
	}
	return nil
}

// readAhead is how many chunks wait for their watermark, or are being applied, while
// the next one is read. They are applied in the order in which they were read, so
// only their memory bounds them: the server goes on reading while the first stage
// is held up by Kafka for the time of a chunk or two.
const readAhead = 2

// scan reads the table in chunks, ahead of the ones being applied.
func (im *importer) scan(ctx context.Context) error {
	for !im.run.Scanned {
		if err := im.hold(ctx); err != nil {
			return err
		}
		begun := time.Now()
		chunk, err := im.exclusively(func() (*capture.Chunk, error) { return im.reader.Chunk(ctx, im.run.Cursor, im.chunkRows()) })
		if err != nil {
			return err
		}
		failpoint.Hit("chunk-read")
		rows := len(chunk.Changes)
		im.run.Scanned = chunk.Done
		if chunk.Last != nil {
			im.run.Cursor = chunk.Last
		}
		if err := im.hand(ctx, chunk); err != nil {
			return err
		}
		if err := im.settle(ctx, readAhead); err != nil {
			return err
		}
		im.progress("running")
		if err := im.throttle(ctx, rows, time.Since(begun)); err != nil {
			return err
		}
	}
	return im.settle(ctx, 0)
}

func (im *importer) chunkRows() int {
	if im.run.ChunkRows > 0 {
		return im.run.ChunkRows
	}
	return im.s.b.backfill.ChunkRows
}

// hold waits while the run is paused, and while standbys lag behind.
func (im *importer) hold(ctx context.Context) error {
	if im.gate.shut() == nil && !im.run.Paused {
		return im.yield(ctx)
	}
	if err := im.settle(ctx, 0); err != nil {
		return err
	}
	im.run.Paused = true
	if err := im.tell(ctx); err != nil {
		return err
	}
	im.progress("paused")
	if err := im.gate.wait(ctx); err != nil {
		return err
	}
	im.run.Paused = false
	im.pace = pace{}
	return im.yield(ctx)
}

// sweep looks up every aggregate that the state has and no chunk has brought: a
// row that is gone is an aggregate to delete. Which ones were brought is not
// durable: after a restart in the middle more are looked up than need be.
func (im *importer) sweep(ctx context.Context) error {
	var batch [][]byte
	look := func() error {
		if err := im.hold(ctx); err != nil {
			return err
		}
		if err := im.lookup(ctx, batch, im.dry); err != nil {
			return err
		}
		im.progress("checking")
		batch = nil
		return nil
	}
	err := im.s.b.store.EachUnseen(ctx, im.table.ID, &im.seen, func(key []byte) error {
		batch = append(batch, append([]byte(nil), key...))
		if len(batch) < lookupKeys {
			return nil
		}
		return look()
	})
	if err != nil || len(batch) == 0 {
		return err
	}
	return look()
}

// tell has the state of the run committed, without rows, and returns when it and
// all before it is durable.
func (im *importer) tell(ctx context.Context) error {
	if err := im.give(ctx, &capture.Chunk{}, im.dry == nil); err != nil {
		return err
	}
	return im.settle(ctx, 0)
}

// hand gives a chunk of the run to the first stage.
func (im *importer) hand(ctx context.Context, chunk *capture.Chunk) error {
	return im.give(ctx, chunk, false)
}

func (im *importer) give(ctx context.Context, chunk *capture.Chunk, durable bool) error {
	run := im.run
	j := &job{durable: durable, table: im.table, chunk: chunk, horizon: run.Horizon, run: &run, dry: im.dry, applied: make(chan struct{})}
	if run.sweeps() {
		j.seen = &im.seen
	}
	if err := im.s.hand(ctx, j); err != nil {
		return err
	}
	im.under = append(im.under, j)
	return nil
}

// settle waits until at most n chunks are not applied yet, and gives back the
// memory of the others.
func (im *importer) settle(ctx context.Context, n int) error {
	for len(im.under) > n {
		if err := im.under[0].wait(ctx); err != nil {
			return err
		}
		im.under[0].chunk.Release()
		im.under = im.under[1:]
	}
	return nil
}

// throttle keeps the reading below rows_per_second.
func (im *importer) throttle(ctx context.Context, rows int, took time.Duration) error {
	limit := im.run.RowsPerSecond
	if limit == 0 {
		limit = im.s.b.backfill.RowsPerSecond
	}
	if limit == 0 {
		return nil
	}
	return sleep(ctx, time.Duration(float64(rows)/float64(limit)*float64(time.Second))-took)
}

// standbyPoll is how often a run looks at the standbys' lag at most.
const standbyPoll = time.Second

// yield waits while a standby lags further behind than is permitted: it may be
// replaying on the disks that the run reads from, or be short of network. That the
// bridge itself falls behind needs no look: a chunk is read only when all but
// readAhead of those before it are applied.
func (im *importer) yield(ctx context.Context) error {
	limit := im.s.b.backfill.MaxStandbyLag
	if limit == 0 || time.Since(im.looked) < standbyPoll {
		return nil
	}
	for told := false; ; {
		lag, err := im.reader.StandbyLag(ctx)
		if err != nil {
			return err
		}
		im.looked = time.Now()
		if lag <= limit {
			return nil
		}
		if !told {
			told = true
			im.progress("waiting for a standby")
			im.s.b.log.Info("backfill waits for a standby to catch up", "table", im.table.Schema+"."+im.table.Name, "lag_bytes", lag)
		}
		if err := sleep(ctx, standbyPoll); err != nil {
			return err
		}
	}
}

// sleep waits for a time that may be over already.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// progress shows how far the run is.
func (im *importer) progress(phase string) {
	s := BackfillStatus{Phase: phase, Error: im.run.Failed, Rows: im.tally.rows.Load(), Events: im.tally.events.Load(), Equal: im.tally.equal.Load(),
		Gone: im.tally.gone.Load(), Reconcile: im.run.Reconcile, Where: im.run.Where, DryRun: im.dry}
	if im.run.Where == "" {
		s.EstimatedRows = max(int64(im.info.Rows), s.Rows)
	}
	if im.run.Scanned {
		s.EstimatedRows = s.Rows
	}
	if im.run.Began > 0 {
		began := time.Unix(im.run.Began, 0).UTC()
		s.Began = &began
	}
	s.RowsPerSecond = im.pace.observe(time.Now(), s.Rows)
	if phase == "running" && s.RowsPerSecond > 0 && s.EstimatedRows > s.Rows {
		s.SecondsLeft = float64(s.EstimatedRows-s.Rows) / s.RowsPerSecond
	}
	im.s.b.status.backfill(im.table, s)
	im.s.b.metrics.backfill(im.table, s)
}
