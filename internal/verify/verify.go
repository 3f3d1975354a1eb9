package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"backstory/capture"
	"backstory/sink"
	"backstory/transform"
)

// Reader reads the table beside the stream; see capture.Reader.
type Reader interface {
	Horizon(ctx context.Context) (capture.LSN, uint64, error)
	Wait(ctx context.Context, xmax uint64) error
	Chunk(ctx context.Context, after []string, limit int) (*capture.Chunk, error)
	Lookup(ctx context.Context, keys [][]string) (*capture.Chunk, error)
}

// Topics reads both topics on from where the last call ended; see sink.Scanner.
type Topics interface {
	Advance(ctx context.Context, topic transform.Topic, fn func(*sink.Scanned) error) error
	Spans(topic transform.Topic) []sink.Span
}

// States asks for the state of the running bridge; see BridgeState.
type States interface {
	// Entries returns the committed entries of the keys, as of moments at which
	// everything below after is in the state.
	Entries(ctx context.Context, aggregate string, after capture.LSN, keys []string, images bool) ([]StateEntry, error)
	// Keys returns the keys of one of so many parts.
	Keys(ctx context.Context, aggregate string, part int) ([][]byte, error)
	// Former returns the sources that the topics had before.
	Former(ctx context.Context, aggregate string) ([]transform.Former, error)
}

// Config bounds a verification.
type Config struct {
	ChunkRows     int // rows of one look at the table
	RowsPerSecond int // 0: no limit
	StateParts    int // parts of the state that States knows
	// Patience is how long a key is looked at again, once all others are compared,
	// before it is given up as not compared.
	Patience time.Duration
	// Limit is how many differences are kept; the others are counted.
	Limit int
	// ScratchDir is where the scratch store is made; empty: that for temporary
	// files. It takes about as much room as the table has, twice.
	ScratchDir string
	// Progress is called now and then; nil: never.
	Progress func(Progress)
}

// Progress is how far a verification is.
type Progress struct {
	Step          string // "topics", "table", "keys"
	Rows          int64
	EstimatedRows int64 // by pg_class.reltuples, −1 if not known
	Keys          int64
	Events        int64
	LatestRecords int64
	Found         int
	Pending       int // keys to be looked at again
}

// Verifier compares one table. Make one with New, call Run once.
type Verifier struct {
	cfg      Config
	table    *transform.Table
	info     capture.TableInfo
	identity capture.Identity
	reader   Reader
	topics   Topics
	states   States

	tr      *transform.Transformer
	out     transform.Output
	scratch *scratch
	events  *events
	latest  *latest
	result  *Result

	horizon  capture.LSN // what committed below is visible to every snapshot; 0: not known yet
	mark     capture.LSN // the newest watermark: a place in WAL from before what comes
	pending  map[string]*look
	based    bool           // the bridge adds something to the positions of the WAL
	rowBytes int            // of a row's image, as seen of late
	ahead    *time.Duration // by which the database's clock is ahead of this machine's; nil: not asked yet
	step     string
}

// New prepares the verification of a table of a bound mapping.
func New(cfg Config, m *transform.Mapping, table *transform.Table, info capture.TableInfo, id capture.Identity,
	reader Reader, topics Topics, states States,
) *Verifier {
	return &Verifier{cfg: cfg, table: table, info: info, identity: id, reader: reader, topics: topics, states: states,
		tr: transform.New(m, id), pending: map[string]*look{},
		result: &Result{Table: table.String(), Aggregate: table.Aggregate, Differences: []Difference{}}}
}

// Run compares everything once. An error means that there is no result.
func (v *Verifier) Run(ctx context.Context) (result *Result, err error) {
	v.result.Began = time.Now().UTC()
	if v.scratch, err = openScratch(ctx, v.cfg.ScratchDir); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.scratch.close()) }()
	former, err := v.states.Former(ctx, v.table.Aggregate)
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", v.table, err)
	}
	origin := &origin{own: transform.SourceOf(v.identity, v.table.Schema, v.table.Name), table: &transform.Table{Former: former}, report: v.report}
	times := newTimes(v.report, func() time.Time { return v.askClock(ctx) })
	v.events = &events{scratch: v.scratch, identity: v.identity, table: v.table, report: v.report, times: times, origin: origin,
		start: v.eventsFrom, known: map[int32]bool{}}
	v.latest = &latest{scratch: v.scratch, table: v.table, report: v.report, times: times, origin: origin}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"topics", v.readTopics}, {"table", v.compareRows}, {"keys", v.compareOthers}, {"again", v.settleAll}, {"times", v.compareCommits},
	} {
		v.step = step.name
		v.progress()
		if err := step.run(ctx); err != nil {
			return nil, fmt.Errorf("verify %s: %w", v.table, err)
		}
	}
	v.conclude()
	return v.result, nil
}

func (v *Verifier) report(d Difference) { v.result.add(v.cfg.Limit, d) }

// eventsFrom is where the log of a partition of the events topic begins, if the
// mapping has retention: then the events below may be missing. Without it they
// must be there, and it is 0.
func (v *Verifier) eventsFrom(partition int32) int64 {
	if v.table.Topics.Retention == 0 {
		return 0
	}
	for _, span := range v.topics.Spans(transform.Events) {
		if span.Partition == partition {
			return span.Start
		}
	}
	return 0
}

// mayLackEvents reports whether retention may have taken events of a key.
func (v *Verifier) mayLackEvents(l *look) bool {
	if l.latest.number > 0 {
		return v.eventsFrom(l.latest.partition) > 0
	}
	return slices.ContainsFunc(v.topics.Spans(transform.Events), func(s sink.Span) bool { return v.eventsFrom(s.Partition) > 0 })
}

// askClock is the later of the clocks of this machine and of the database, which is
// asked once how far it is ahead.
func (v *Verifier) askClock(ctx context.Context) time.Time {
	if v.ahead == nil {
		v.ahead = new(time.Duration)
		if chunk, err := v.reader.Chunk(ctx, nil, 1); err == nil { // an error is that of the next chunk, too
			*v.ahead = max(0, time.Until(time.UnixMicro(chunk.Time)))
			chunk.Release()
		}
	}
	return time.Now().Add(*v.ahead)
}

// horizonWait is how long the start waits for the transactions that run. Those
// that run longer are waited for at the end, if a key needs it.
const horizonWait = 5 * time.Second

// seeHorizon takes the horizon and waits until it is one. Without it only versions
// that are 2³¹ transactions old can't be told from younger ones.
func (v *Verifier) seeHorizon(ctx context.Context, limit time.Duration) error {
	lsn, xmax, err := v.reader.Horizon(ctx)
	if err != nil {
		return err
	}
	v.mark = max(v.mark, lsn)
	bound, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = v.reader.Wait(bound, xmax)
	switch {
	case err == nil:
		v.horizon = lsn
	case bound.Err() == nil || ctx.Err() != nil:
		return err
	}
	return nil
}

// readTopics takes the horizon and reads both topics for the first time.
func (v *Verifier) readTopics(ctx context.Context) error {
	if err := v.seeHorizon(ctx, horizonWait); err != nil {
		return err
	}
	if err := v.advanceLatest(ctx); err != nil {
		return err
	}
	if err := v.advanceEvents(ctx, func([]byte, *version) {}); err != nil {
		return err
	}
	for _, span := range v.topics.Spans(transform.Events) {
		if span.Start > 0 && v.table.Topics.Retention == 0 {
			v.report(Difference{Problem: EventsRemoved, Where: fmt.Sprintf("topic %s, partition %d", v.table.Topics.Events, span.Partition),
				Detail: fmt.Sprintf("the log begins at offset %d: the events below are gone and can't be compared", span.Start)})
		}
	}
	return nil
}

// advanceLatest reads the latest topic on to its end.
func (v *Verifier) advanceLatest(ctx context.Context) error {
	err := v.topics.Advance(ctx, transform.Latest, func(s *sink.Scanned) error {
		if err := v.latest.take(s); err != nil {
			return err
		}
		return v.settle(v.latest.read)
	})
	if err != nil {
		return fmt.Errorf("read topic %s: %w", v.table.Topics.Latest, err)
	}
	return nil
}

// advanceEvents reads the events topic on to its end and shows each step of an
// aggregate to watch.
func (v *Verifier) advanceEvents(ctx context.Context, watch func(key []byte, now *version)) error {
	err := v.topics.Advance(ctx, transform.Events, func(s *sink.Scanned) error {
		now, moved, err := v.events.take(s)
		if err != nil {
			return err
		}
		if moved {
			watch(s.Key, &now)
		}
		return v.settle(v.events.read)
	})
	if err != nil {
		return fmt.Errorf("read topic %s: %w", v.table.Topics.Events, err)
	}
	return nil
}

// settle keeps the scratch batch small, and tells of progress.
func (v *Verifier) settle(n int64) error {
	if n%progressEvery == 0 {
		v.progress()
	}
	return v.scratch.settle()
}

const progressEvery = 20_000

// compareRows goes through the table in chunks.
func (v *Verifier) compareRows(ctx context.Context) error {
	var after []string
	for {
		begun := time.Now()
		before := v.mark
		chunk, err := v.reader.Chunk(ctx, after, v.cfg.ChunkRows)
		if err != nil {
			return err
		}
		rows, done := len(chunk.Changes), chunk.Done
		after = chunk.Last
		err = v.compareChunk(ctx, chunk, before)
		chunk.Release()
		if err != nil {
			return err
		}
		if err := v.lookAgain(ctx); err != nil {
			return err
		}
		v.progress()
		if done {
			return nil
		}
		if err := v.throttle(ctx, rows, time.Since(begun)); err != nil {
			return err
		}
	}
}

func (v *Verifier) throttle(ctx context.Context, rows int, took time.Duration) error {
	if v.cfg.RowsPerSecond == 0 {
		return nil
	}
	return sleep(ctx, time.Duration(rows)*time.Second/time.Duration(v.cfg.RowsPerSecond)-took)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *Verifier) compareChunk(ctx context.Context, chunk *capture.Chunk, before capture.LSN) error {
	looks := make(map[string]*look, len(chunk.Changes))
	v.out.Reset()
	size := 0
	for i := range chunk.Changes {
		key, image, err := v.imageOf(&chunk.Changes[i])
		if err != nil {
			return err
		}
		looks[string(key)] = &look{key: string(key), row: image}
		size += len(image)
	}
	v.rowBytes = size / max(1, len(looks))
	v.result.Compared.Rows += int64(len(looks))
	return v.compare(ctx, looks, chunk, before, false)
}

// imageOf makes the image of a row as a backfill would that finds it first.
func (v *Verifier) imageOf(c *capture.Change) (key, image []byte, err error) {
	n := len(v.out.Events)
	if err := v.tr.Row(&v.out, c, nothing{}, false); err != nil {
		return nil, nil, err
	}
	if len(v.out.Events) != n+1 {
		return nil, nil, fmt.Errorf("%s: the row makes %d events instead of one", c.Pos, len(v.out.Events)-n)
	}
	e := &v.out.Events[n]
	return e.Key, e.State, nil
}

// nothing is a state that knows no aggregate.
type nothing struct{}

func (nothing) Get(uint16, []byte) (transform.Entry, bool, error) {
	return transform.Entry{}, false, nil
}
func (nothing) Put(uint16, []byte, transform.Entry) error { return nil }
func (nothing) Again(uint16, []byte) error                { return nil }
func (nothing) OldImage(capture.Position) []byte          { return nil }
func (nothing) SetOldImage(capture.Position, []byte)      {}

// compare looks at keys that a chunk, or a lookup, told of. The order of the steps
// is what the rules in DESIGN.md rest on: fold, rows, state, latest, events.
func (v *Verifier) compare(ctx context.Context, looks map[string]*look, chunk *capture.Chunk, before capture.LSN, images bool) error {
	s := &sight{snapshot: &chunk.Snapshot, horizon: v.horizon, before: before}
	v.positions(chunk.Watermark)
	added, err := v.askState(ctx, looks, chunk.Watermark, images)
	if err != nil {
		return err
	}
	s.horizon, s.before = s.horizon+added, s.before+added
	v.based = v.based || added != 0
	bases := make(map[string]version, len(looks))
	for key, l := range looks {
		base, err := v.scratch.get(foldOfEvents, []byte(key))
		if err != nil {
			return err
		}
		bases[key] = base.own()
		newest, err := v.scratch.get(newestLatest, []byte(key))
		if err != nil {
			return err
		}
		l.latestBefore, l.images = newest.number, images
	}
	if err := v.advanceLatest(ctx); err != nil {
		return err
	}
	for key, l := range looks {
		newest, err := v.scratch.get(newestLatest, []byte(key))
		if err != nil {
			return err
		}
		l.latest = newest.own()
		base := bases[key]
		l.begin(&base, s)
	}
	if err := v.scratch.commit(); err != nil {
		return err
	}
	err = v.advanceEvents(ctx, func(key []byte, now *version) {
		if l := looks[string(key)]; l != nil {
			l.meet(now, s)
		} else if l := v.pending[string(key)]; l != nil && l.truth == nil {
			l.trail = append(l.trail, now.own())
		}
	})
	if err != nil {
		return err
	}
	return v.judge(looks)
}

func (v *Verifier) positions(watermark capture.LSN) {
	if v.result.Compared.FirstPosition == "" {
		v.result.Compared.FirstPosition = watermark.String()
	}
	v.result.Compared.LastPosition = watermark.String()
	v.mark = watermark
}

// askState asks for the entries of all looks once the state has everything below
// the watermark. It returns what the bridge adds to the positions of the WAL, which
// lies above all that was before (see ce_sequencebase).
func (v *Verifier) askState(ctx context.Context, looks map[string]*look, watermark capture.LSN, images bool) (base capture.LSN, err error) {
	keys := make([]string, 0, len(looks))
	for key := range looks {
		keys = append(keys, key)
	}
	entries, err := v.states.Entries(ctx, v.table.Aggregate, watermark, keys, images)
	if err != nil {
		return 0, err
	}
	if len(entries) != len(keys) {
		return 0, fmt.Errorf("the state has answered for %d of %d keys", len(entries), len(keys))
	}
	var form *form
	for i, key := range keys {
		if base = entries[i].Base; form == nil && entries[i].Shape != nil {
			form = v.formOf(entries[i].Shape, base)
		}
		looks[key].state, looks[key].form = entries[i], form
	}
	return base, nil
}

// judge tells what was found, and keeps what has to be looked at again.
func (v *Verifier) judge(looks map[string]*look) error {
	for key, l := range looks {
		known, err := v.scratch.has(looked, []byte(key))
		if err != nil {
			return err
		}
		if !known {
			v.result.Compared.Keys++
			if err := v.scratch.mark(looked, []byte(key)); err != nil {
				return err
			}
		}
		delete(v.pending, key)
		l.removed = v.mayLackEvents(l)
		if l.judge() {
			if l.former {
				v.result.Former++
			}
			if l.removed && l.withoutEvents() {
				v.result.Compared.EventsGone++
			}
			for _, d := range l.found {
				v.report(d)
			}
			continue
		}
		l.row = nil // it lies in the memory of the chunk
		v.pending[key] = l
	}
	return v.scratch.commit()
}

// conclude fills in the result.
func (v *Verifier) conclude() {
	r := v.result
	r.Ended = time.Now().UTC()
	r.Compared.Events, r.Compared.LatestRecords, r.Compared.EventsCut = v.events.read, v.latest.read, v.events.cut
	r.Compared.EventsRead = v.topics.Spans(transform.Events)
	r.Compared.LatestRead = v.topics.Spans(transform.Latest)
	r.Equal = r.Found == 0 && r.NotCompared == 0
}

func (v *Verifier) progress() {
	if v.cfg.Progress == nil {
		return
	}
	v.cfg.Progress(Progress{Step: v.step, Rows: v.result.Compared.Rows, EstimatedRows: int64(v.info.Rows), Keys: v.result.Compared.Keys,
		Events: v.events.read, LatestRecords: v.latest.read, Found: v.result.Found, Pending: len(v.pending)})
}
