package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// Bridge carries changes from the database to the sink. Make one with [New],
// then call Run once.
type Bridge struct {
	cfg      Config
	backfill BackfillConfig
	db       Database
	sink     Sink
	store    *state.Store
	memory   memory
	mapping  *transform.Mapping
	identity capture.Identity // of the database; known from the first Prepare on
	log      *slog.Logger
	metrics  *metrics
	status   *statusBoard
	requests chan request // to the session that streams
	repairs  bool         // see Repair
	repair   bool         // the next session does what Repair permits
	mending  mending      // see Mend
	slot     slotCache
	unasked  bool // the last look at the topics had no answer; of recheckTopics
}

// New puts the rooms together. The store is the bridge's alone until Run returns.
func New(cfg Config, backfill BackfillConfig, db Database, sink Sink, store *state.Store,
	m *transform.Mapping, log *slog.Logger, reg prometheus.Registerer,
) *Bridge {
	return &Bridge{
		cfg: cfg, backfill: backfill, db: db, sink: sink, store: store, memory: memory{store},
		mapping: m, log: log.With("stage", "bridge"), metrics: newMetrics(reg), status: newStatusBoard(m),
		requests: make(chan request),
	}
}

// Repair permits the first session of Run to make a lost slot anew, and to go on
// where slot and state do not fit: every table is then compared with the state, so
// that what the stream has lost becomes events. It is called before Run.
func (b *Bridge) Repair() { b.repairs, b.repair = true, true }

// Mend has the first session of Run begin the asked-for comparison by itself, before
// it takes anything from the slot: what WAL has of the tables up to then and cannot be
// mapped is passed over, since the comparison finds what it did; where the text of a
// table's keys may have changed, so is everything. A condition on the rows cannot find
// all of that, so a request that has one mends nothing. It is called before Run.
func (b *Bridge) Mend(r BackfillRequest) error {
	tables, err := b.tables(r.Tables)
	if err != nil || r.Where != "" {
		return err
	}
	b.mending = mending{request: r, tables: tables}
	return nil
}

// Run streams until ctx is done and then ends in order: what was taken is
// published, committed and confirmed, within StopTimeout; that returns nil. A
// lost connection, a taken slot or a fenced producer begins a new session; any
// other error ends Run with nothing confirmed that is not durable.
func (b *Bridge) Run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = 200 * time.Millisecond
	pause.MaxInterval = 15 * time.Second
	begun := time.Now()
	for streamed := false; ; {
		b.phase("starting", nil)
		err := b.session(ctx, func() { streamed = true; pause.Reset() })
		switch {
		case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled) || restarts(err)):
			b.phase("stopped", nil)
			b.log.Info("stopped", "lsn", b.Status().Confirmed)
			return nil
		case err == nil:
			return errors.New("the stream ended by itself")
		case !restarts(err):
			b.phase("failed", err)
			return err
		case !streamed && time.Since(begun) > b.cfg.StartupTimeout:
			b.phase("failed", err)
			return fmt.Errorf("gave up after startup_timeout (%s): %w; check that the server is up and that its address is right",
				b.cfg.StartupTimeout, unrestartable{err})
		}
		b.metrics.restarts.Inc()
		wait := pause.NextBackOff()
		b.phase("reconnecting", err)
		b.log.Warn("session over, starting the next one", "err", err, "pause", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// phase tells what the bridge does now, and why it does not stream.
func (b *Bridge) phase(name string, err error) {
	b.status.phase(name, err)
	streams := 0.0
	if name == streaming {
		streams = 1
	}
	b.metrics.streaming.Set(streams)
}

// unrestartable hides from callers that the error was one to retry.
type unrestartable struct{ error }

// session takes the slot, brings the state level with the topics and streams
// until ctx is done (nil) or something breaks.
func (b *Bridge) session(ctx context.Context, begun func()) (err error) {
	_, remembered, err := b.memory.lsn()
	if err != nil {
		return err
	}
	if err := b.memory.stayed(b.mapping.Elsewhere()); err != nil {
		return err // before Prepare puts the table into this slot's publication, or into the other's
	}
	prepared, err := b.db.Prepare(ctx, !remembered || b.repair)
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	was, err := b.bind(prepared)
	if err != nil {
		return err
	}
	start, err := b.start(was)
	if err != nil {
		return err
	}
	b.phase("waiting for the slot", nil)
	src, err := b.db.Open(ctx, start)
	if err != nil {
		return fmt.Errorf("open the slot: %w", err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	b.phase(recovering, nil)
	if err := b.recover(ctx); err != nil {
		return err
	}
	r, err := b.decide(ctx, was, prepared)
	if err != nil {
		return err
	}
	if err := b.announce(); err != nil {
		return err
	}
	b.repair, b.mending = false, mending{}
	b.adopts(false)
	b.sink.Rebase(r.base)
	begun()
	b.phase(streaming, nil)
	s := newStream(b, src, prepared, r)
	if s.past, err = b.memory.past(b.mapping.Tables); err != nil {
		return err
	}
	return b.diverges(prepared.Slot.Name, s.run(ctx))
}

// start is where the slot is to be streamed from, 0 for where it is: low enough that
// the newest commit that the state has comes again, which proves that the server's
// history is still the one that the state was made from. What the state has is passed
// over.
func (b *Bridge) start(was capture.Identity) (capture.LSN, error) {
	lsn, _, err := b.memory.lsn()
	if err != nil || b.repair || was != b.identity || b.memory.rebound() {
		return 0, err
	}
	n, err := b.memory.newest()
	return min(lsn, n.commit.lsn), err // without one that is known from where the slot is
}

// bind ties mapping, database and state together, and refuses what doesn't fit. It
// returns the identity that the state is tied to, which may be of an earlier timeline.
func (b *Bridge) bind(prepared *capture.Prepared) (was capture.Identity, err error) {
	if was, err = b.store.Bind(prepared.Identity); err != nil {
		return was, err
	}
	b.identity = prepared.Identity
	if err := b.mapping.Bind(prepared.Tables); err != nil {
		return was, err
	}
	changed, shapes, err := b.memory.register(b.mapping.Tables, prepared, b.mending)
	if err == nil {
		err = b.memory.samePartitions(b.mapping.Tables)
	}
	if err != nil {
		return was, fmt.Errorf("mapping against the state: %w", err)
	}
	if err := b.Recognize(prepared.Tables, prepared.Identity); err != nil {
		return was, err
	}
	b.db.Recall(shapes)
	for _, c := range changed {
		for _, text := range c.changes {
			b.log.Info("changed since the last run", "table", c.table.String(), "change", text)
		}
		b.log.Info("the table is compared with the state, and the differences are published", "table", c.table.String())
	}
	return was, nil
}

// announce shows for each table whether it is going to be read, before anybody
// can take the stream for complete.
func (b *Bridge) announce() error {
	b.status.known(b.mapping.Tables)
	for _, t := range b.mapping.Tables {
		run, _, err := b.memory.run(t.ID)
		if err != nil {
			return err
		}
		s := BackfillStatus{Phase: "waiting", Rows: run.Rows, Events: run.Events, Equal: run.Equal, Gone: run.Gone,
			Reconcile: run.Reconcile, Where: run.Where}
		switch {
		case run.Failed != "":
			s.Phase, s.Error = "failed", run.Failed
		case run.Done:
			s.Phase = "done"
		case !b.backfill.wants(run):
			s.Phase = "none"
		}
		b.status.backfill(t, s)
	}
	return nil
}
