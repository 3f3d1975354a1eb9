package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// Bounds of one lookup: keys, and about the bytes of the rows.
const (
	lookupKeys  = 2000
	lookupBytes = 16 << 20
)

func (v *Verifier) lookupSize() int {
	return max(1, min(lookupKeys, lookupBytes/max(1, v.rowBytes)))
}

// againPause is the time between two looks at a key that can't be decided yet.
const againPause = 100 * time.Millisecond

// lookAgain looks once more at each key that is pending.
func (v *Verifier) lookAgain(ctx context.Context) error {
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(v.pending)), v.lookupSize()) {
		v.result.Compared.LookedAgain += int64(len(keys))
		if err := v.lookup(ctx, keys, true); err != nil {
			return err
		}
	}
	return nil
}

// settleAll looks at the pending keys until all are decided or the patience is over.
func (v *Verifier) settleAll(ctx context.Context) error {
	begun := time.Now()
	if len(v.pending) > 0 && v.horizon == 0 {
		if err := v.seeHorizon(ctx, v.cfg.Patience); err != nil {
			return err
		}
	}
	for len(v.pending) > 0 && time.Since(begun) < v.cfg.Patience {
		if err := sleep(ctx, againPause); err != nil {
			return err
		}
		if err := v.lookAgain(ctx); err != nil {
			return err
		}
		v.progress()
	}
	for _, key := range slices.Sorted(maps.Keys(v.pending)) {
		if v.result.NotCompared++; len(v.result.Unsettled) < v.cfg.Limit {
			v.result.Unsettled = append(v.result.Unsettled, key)
		}
	}
	return nil
}

// compareOthers compares the keys that the table did not show: those of the
// events, then of the latest topic, then of the state.
func (v *Verifier) compareOthers(ctx context.Context) error {
	for _, table := range []uint16{foldOfEvents, newestLatest} {
		if err := v.compareKept(ctx, table); err != nil {
			return err
		}
	}
	for part := range v.cfg.StateParts {
		keys, err := v.states.Keys(ctx, v.table.Aggregate, part)
		if err != nil {
			return err
		}
		v.result.Compared.StateKeys += int64(len(keys))
		others := v.collector()
		for _, key := range keys {
			if err := others.add(ctx, key); err != nil {
				return err
			}
		}
		if err := others.flush(ctx); err != nil {
			return err
		}
	}
	return v.lookAgain(ctx)
}

func (v *Verifier) compareKept(ctx context.Context, table uint16) (err error) {
	keys, err := v.scratch.keys(ctx, table)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, keys.Close()) }()
	return v.compareEach(ctx, keys)
}

func (v *Verifier) compareEach(ctx context.Context, keys *state.Keys) error {
	others := v.collector()
	for keys.Next() {
		if err := others.add(ctx, keys.Key()); err != nil {
			return err
		}
	}
	if err := keys.Err(); err != nil {
		return err
	}
	return others.flush(ctx)
}

// others collects keys that were not looked at.
type others struct {
	v    *Verifier
	keys []string
}

func (v *Verifier) collector() *others { return &others{v: v} }

func (o *others) add(ctx context.Context, key []byte) error {
	known, err := o.v.scratch.has(looked, key)
	if err != nil || known {
		return errors.Join(err, o.v.scratch.settle())
	}
	if o.keys = append(o.keys, string(key)); len(o.keys) < o.v.lookupSize() {
		return o.v.scratch.settle()
	}
	return o.flush(ctx)
}

func (o *others) flush(ctx context.Context) error {
	if len(o.keys) == 0 {
		return nil
	}
	err := o.v.lookup(ctx, o.keys, false)
	o.keys = o.keys[:0]
	o.v.progress()
	return err
}

// lookup compares the given keys.
func (v *Verifier) lookup(ctx context.Context, keys []string, images bool) error {
	before := v.mark
	chunk, err := v.rowsOf(ctx, keys)
	if err != nil {
		return err
	}
	defer chunk.Release()
	looks := make(map[string]*look, len(keys))
	for _, key := range keys {
		looks[key] = &look{key: key}
		if old := v.pending[key]; old != nil {
			looks[key].trail = old.trail
		}
	}
	v.out.Reset()
	for i := range chunk.Changes {
		key, image, err := v.imageOf(&chunk.Changes[i])
		if err != nil {
			return err
		}
		// A row may print its key otherwise than it was asked for; then it is not
		// the row of that key.
		if l := looks[string(key)]; l != nil {
			l.row = image
		}
	}
	return v.compare(ctx, looks, chunk, before, images)
}

// rowsOf reads the rows of keys. A key that the table can't have, because its
// columns can't hold it, has no row.
func (v *Verifier) rowsOf(ctx context.Context, keys []string) (*capture.Chunk, error) {
	parts := make([][]string, 0, len(keys))
	for _, key := range keys {
		split, err := transform.SplitKey([]byte(key), len(v.table.Key))
		if err != nil || slices.ContainsFunc(split, func(s string) bool { return strings.IndexByte(s, 0) >= 0 }) {
			continue
		}
		parts = append(parts, split)
	}
	chunk, err := v.reader.Lookup(ctx, parts)
	if !isData(err) {
		return chunk, err
	}
	possible, err := v.possible(ctx, parts)
	if err != nil {
		return nil, err
	}
	return v.reader.Lookup(ctx, possible)
}

// possible leaves out the keys that make a lookup fail.
func (v *Verifier) possible(ctx context.Context, keys [][]string) ([][]string, error) {
	chunk, err := v.reader.Lookup(ctx, keys)
	if err == nil {
		chunk.Release()
		return keys, nil
	}
	if !isData(err) {
		return nil, err
	}
	if len(keys) <= 1 {
		return nil, nil
	}
	left, err := v.possible(ctx, keys[:len(keys)/2])
	if err != nil {
		return nil, err
	}
	right, err := v.possible(ctx, keys[len(keys)/2:])
	if err != nil {
		return nil, err
	}
	return slices.Concat(left, right), nil
}

// isData reports whether Postgres could not make sense of a value (class 22).
func isData(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && strings.HasPrefix(pg.Code, "22")
}

// String is what a result says in one line.
func (r *Result) String() string {
	c := &r.Compared
	what := fmt.Sprintf("%s: %d rows, %d keys, %d events and %d latest records compared between %s and %s",
		r.Table, c.Rows, c.Keys, c.Events, c.LatestRecords, c.FirstPosition, c.LastPosition)
	if r.Former > 0 {
		what += fmt.Sprintf("; %d rows still have the columns of before the table was altered", r.Former)
	}
	switch {
	case r.Equal:
		return what + ": equal"
	case r.NotCompared > 0:
		return fmt.Sprintf("%s: %d differences, %d keys could not be compared", what, r.Found, r.NotCompared)
	}
	return fmt.Sprintf("%s: %d differences", what, r.Found)
}
