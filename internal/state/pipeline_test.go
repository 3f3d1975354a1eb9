package state_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"backstory/internal/state"
	"backstory/transform"
)

// pipeline uses a store as the bridge does: one goroutine fills batches that see
// those before them, one commits, one syncs, others look; compaction goes on.
type pipeline struct {
	s        *state.Store
	versions map[at]uint64 // as the newest batch has them; only for fill
	mu       sync.Mutex
	done     map[at]uint64 // as the committed batches have them
}

const (
	pipelineBatches = 300
	pipelineWrites  = 400 // a batch
	pipelineKeys    = 3000
)

type filled struct {
	batch  *state.Batch
	writes map[at]uint64
}

func (p *pipeline) fill(ctx context.Context, out chan<- filled) error {
	defer close(out)
	rnd := rand.New(rand.NewPCG(1, 1))
	for range pipelineBatches {
		f := filled{p.s.Begin(), map[at]uint64{}}
		for range pipelineWrites {
			if err := p.raise(f, at{1, fmt.Sprint(rnd.IntN(pipelineKeys))}); err != nil {
				return err
			}
		}
		select {
		case out <- f:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// raise writes a key's next version, if the batch has the one it must have.
func (p *pipeline) raise(f filled, k at) error {
	e, _, err := f.batch.Get(k.table, []byte(k.key))
	if err != nil {
		return err
	}
	want := p.versions[k]
	if e.Version != want || want > 0 && string(e.Image) != image(k, want) {
		return fmt.Errorf("get %v: got version %d, image %.60q, want version %d", k, e.Version, e.Image, want)
	}
	p.versions[k], f.writes[k] = want+1, want+1
	return f.batch.Put(k.table, []byte(k.key),
		transform.Entry{Version: want + 1, Place: transform.Place{Index: 1}, Image: []byte(image(k, want+1))})
}

func image(k at, version uint64) string {
	return fmt.Sprintf("%s at %d %0200d", k.key, version, version)
}

// commit lets those beside it look now and then.
func (p *pipeline) commit(in <-chan filled, beside []chan struct{}) error {
	defer func() {
		for _, look := range beside {
			close(look)
		}
	}()
	n := 0
	for f := range in {
		if n++; n%10 == 0 {
			select {
			case beside[n/10%len(beside)] <- struct{}{}:
			default: // still at it
			}
		}
		f.batch.SetMeta("count", []byte(fmt.Sprint(len(f.writes))))
		if err := p.s.Commit(f.batch); err != nil {
			return err
		}
		p.mu.Lock()
		for k, v := range f.writes {
			p.done[k] = v
		}
		p.mu.Unlock()
	}
	return nil
}

// look checks that what is committed never goes back behind what was.
func (p *pipeline) look(ctx context.Context) error {
	p.mu.Lock()
	least := make(map[at]uint64, len(p.done))
	for k, v := range p.done {
		least[k] = v
	}
	p.mu.Unlock()
	return p.s.Each(ctx, func(table uint16, key []byte, e transform.Entry) error {
		k := at{table, string(key)}
		if e.Version < least[k] || string(e.Image) != image(k, e.Version) {
			return fmt.Errorf("each: %v at version %d, want %d or later", k, e.Version, least[k])
		}
		return nil
	})
}

func (p *pipeline) keys(ctx context.Context) error {
	keys, err := p.s.Keys(ctx, 1, state.All)
	if err != nil {
		return err
	}
	n := 0
	for keys.Next() {
		n++
	}
	if existing, _, _ := p.s.Count(1); n > existing {
		return errors.New("keys: more than there are")
	}
	return errors.Join(keys.Err(), keys.Close())
}

func TestPipeline(t *testing.T) {
	t.Parallel()
	cfg := state.Config{Dir: t.TempDir(), SegmentBytes: state.MinSegmentBytes}
	s, err := state.Open(ctx, cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &pipeline{s: s, versions: map[at]uint64{}, done: map[at]uint64{}}
	batches := make(chan filled, 1)
	g, gctx := errgroup.WithContext(ctx)
	var beside []chan struct{}
	for _, call := range []func(context.Context) error{p.look, p.keys, s.Sync} {
		look := make(chan struct{}, 1)
		beside = append(beside, look)
		g.Go(func() error {
			for range look {
				if err := call(gctx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error { return p.fill(gctx, batches) })
	g.Go(func() error { return p.commit(batches, beside) })
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = state.Open(ctx, cfg, slog.New(slog.DiscardHandler), nil); err != nil {
		t.Fatal(err)
	}
	p.s = s
	if err := errors.Join(p.look(ctx), s.Close()); err != nil {
		t.Fatal(err)
	}
}
