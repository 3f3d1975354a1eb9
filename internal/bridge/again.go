package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"backstory/capture"
	"backstory/transform"
)

// lookupKeys is how many rows are read again at a time.
const lookupKeys = 1000

// againInterval is how often the keys that ask to be read again are looked up.
const againInterval = 250 * time.Millisecond

// readAgain looks up the rows that the stream could not complete, and those that
// a repair has passed over, whether a run is under way or not, until ctx is done.
func (s *stream) readAgain(ctx context.Context) (err error) {
	lookers := map[*transform.Table]*looker{}
	defer func() {
		for _, l := range lookers {
			err = errors.Join(err, l.reader.Close())
		}
	}()
	tick := time.NewTicker(againInterval)
	defer tick.Stop()
	for {
		for _, t := range s.b.mapping.Tables {
			keys := s.b.store.AgainKeys(t.ID)
			if len(keys) == 0 {
				continue
			}
			if lookers[t] == nil {
				l, err := s.looker(ctx, t)
				if err != nil {
					return err
				}
				lookers[t] = l
			}
			if err := lookers[t].all(ctx, keys); err != nil {
				return fmt.Errorf("read rows of %s.%s again: %w", t.Schema, t.Name, err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// looker reads rows of one table by their keys.
type looker struct {
	s      *stream
	table  *transform.Table
	reader Reader
}

func (s *stream) looker(ctx context.Context, t *transform.Table) (*looker, error) {
	info, err := s.info(t)
	if err != nil {
		return nil, err
	}
	reader, err := s.b.db.OpenReader(ctx, info, "")
	if err != nil {
		return nil, fmt.Errorf("read rows of %s.%s again: %w", t.Schema, t.Name, err)
	}
	return &looker{s: s, table: t, reader: reader}, nil
}

func (l *looker) all(ctx context.Context, keys [][]byte) error {
	for len(keys) > 0 {
		n := min(len(keys), lookupKeys)
		if err := l.lookup(ctx, keys[:n], nil); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// lookup reads the rows of keys and waits until they are applied.
func (l *looker) lookup(ctx context.Context, keys [][]byte, dry *DryRun) error {
	values := make([][]string, len(keys))
	for i, key := range keys {
		v, err := transform.SplitKey(key, len(l.table.Key))
		if err != nil {
			return err
		}
		values[i] = v
	}
	// The horizon is that of before the snapshot: a run that begins meanwhile waits
	// for transactions that this snapshot may have missed.
	horizon := capture.LSN(l.s.horizons[l.table.ID].Load())
	chunk, err := l.exclusively(func() (*capture.Chunk, error) { return l.reader.Lookup(ctx, values) })
	if err != nil {
		return err
	}
	defer chunk.Release()
	j := &job{table: l.table, chunk: chunk, horizon: horizon, keys: keys, dry: dry, applied: make(chan struct{})}
	if err := l.s.hand(ctx, j); err != nil {
		return err
	}
	return j.wait(ctx)
}

// exclusively reads a chunk while nobody else reads of its table: of two chunks
// the one with the older snapshot then also has the lower watermark, so what it
// tells never stands above what the other has told.
func (l *looker) exclusively(read func() (*capture.Chunk, error)) (*capture.Chunk, error) {
	mu := l.s.reading[l.table.ID]
	mu.Lock()
	defer mu.Unlock()
	return read()
}
