package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"backstory/capture"
	"backstory/internal/child"
	"backstory/internal/state"
	"backstory/transform"
)

func stateCommand(c *common) *cobra.Command {
	var keys, image, ops int
	cmd := &cobra.Command{
		Use:   "state",
		Short: "The state store alone: get and put of keys in random order",
		Long: `Get and put keys in uniformly random order, in batches as the bridge makes them,
while a second goroutine flushes to disk twice a second. Each key is overwritten
several times, so compaction runs.`,
		Example: "  go run ./internal/bench state --keys 1000000 --image 500 --ops 6000000 --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := newReport(cmd.Name())
			return c.print(cmd, r, measureState(cmd.Context(), r, c.runs, keys, image, ops))
		},
	}
	cmd.Flags().IntVar(&keys, "keys", 1_000_000, "aggregates in the store")
	cmd.Flags().IntVar(&image, "image", 500, "bytes of an image")
	cmd.Flags().IntVar(&ops, "ops", 3_000_000, "gets and puts of one run")
	return cmd
}

// stateBatch is how many changes a batch of the bridge has in catch-up.
const stateBatch = 10_000

func measureState(ctx context.Context, r *report, runs, keys, image, ops int) (err error) {
	scratch, err := child.NewScratch("bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.Remove()) }()
	store, err := openStore(ctx, filepath.Join(scratch.Dir, "state"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := fill(store, 1, 0, keys, image); err != nil {
		return err
	}
	for range runs {
		if err := churn(ctx, r.row("get and put"), store, keys, image, ops); err != nil {
			return err
		}
	}
	r.note("%d keys, images of %d bytes, batches of %d, flushed twice a second.", keys, image, stateBatch)
	return nil
}

func openStore(ctx context.Context, dir string) (*state.Store, error) {
	return state.Open(ctx, state.Config{Dir: dir}, slog.New(slog.NewTextHandler(io.Discard, nil)), nil)
}

// syntheticKey is a key that no row of the table has.
func syntheticKey(b []byte, i int) []byte { return strconv.AppendInt(append(b, 's'), int64(i), 10) }

// syntheticImage is a JSON object of about the given length.
func syntheticImage(size int) []byte {
	text := []byte(`{"text":"`)
	for len(text) < size-2 {
		text = append(text, byte('a'+len(text)%26))
	}
	return append(text, `"}`...)
}

// fill puts the synthetic aggregates from one number up to another into a store.
func fill(store *state.Store, table uint16, first, end, image int) error {
	text := syntheticImage(image)
	var key []byte
	for from := first; from < end; from += stateBatch {
		batch := store.Begin()
		for i := from; i < min(end, from+stateBatch); i++ {
			key = syntheticKey(key[:0], i)
			if err := batch.Put(table, key, entryAt(1, text)); err != nil {
				return err
			}
		}
		if err := store.Commit(batch); err != nil {
			return fmt.Errorf("fill the state: %w", err)
		}
	}
	return store.Sync(context.Background())
}

func entryAt(lsn uint64, text []byte) transform.Entry {
	return transform.Entry{Version: 1, XID: 700, Image: text,
		Place: transform.Place{Pos: capture.Position{LSN: capture.LSN(lsn), Kind: capture.KindChange, Index: 1}, Index: 1}}
}

// churn does one run.
func churn(ctx context.Context, row *row, store *state.Store, keys, image, ops int) error {
	flushing, stop := context.WithCancel(ctx)
	flushed := make(chan error, 1)
	go func() { flushed <- flushTwiceASecond(flushing, store) }() // ends with stop
	before, err := cpuOf(os.Getpid())
	if err != nil {
		return errors.Join(err, stopFlush(stop, flushed))
	}
	machineBefore, err := busy()
	if err != nil {
		return errors.Join(err, stopFlush(stop, flushed))
	}
	began := time.Now()
	longest, err := randomPuts(store, keys, image, ops)
	took := time.Since(began)
	if err := errors.Join(err, stopFlush(stop, flushed)); err != nil {
		return err
	}
	after, err := cpuOf(os.Getpid())
	if err != nil {
		return err
	}
	machineAfter, err := busy()
	if err != nil {
		return err
	}
	m, err := memoryOf(os.Getpid())
	if err != nil {
		return err
	}
	row.add("get+put/s", float64(ops)/took.Seconds())
	row.add("CPU µs", (after-before)/float64(ops)*1e6)
	row.add("longest get+put ms", longest.op.Seconds()*1e3)
	row.add("longest commit ms", longest.commit.Seconds()*1e3)
	row.add("peak MB", m.peak)
	row.add("foreign cores", (machineAfter-machineBefore-(after-before))/took.Seconds())
	return nil
}

func stopFlush(stop context.CancelFunc, flushed <-chan error) error {
	stop()
	return <-flushed
}

func flushTwiceASecond(ctx context.Context, store *state.Store) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := store.Sync(context.WithoutCancel(ctx)); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// pauses are the longest times that a caller had to wait.
type pauses struct{ op, commit time.Duration }

func randomPuts(store *state.Store, keys, image, ops int) (longest pauses, err error) {
	random := rand.New(rand.NewPCG(1, 2))
	text := syntheticImage(image)
	var key []byte
	for done := 0; done < ops; done += stateBatch {
		batch := store.Begin()
		last := time.Now()
		for range min(stateBatch, ops-done) {
			key = syntheticKey(key[:0], random.IntN(keys))
			e, ok, err := batch.Get(1, key)
			if err != nil || !ok {
				return longest, fmt.Errorf("get key %q: found %t: %w", key, ok, err)
			}
			e.Version++
			binary.BigEndian.PutUint32(text[len(text)-8:], 0x61616161+uint32(e.Version%16)) // still text
			e.Image = text
			if err := batch.Put(1, key, e); err != nil {
				return longest, fmt.Errorf("put key %q: %w", key, err)
			}
			now := time.Now()
			longest.op = max(longest.op, now.Sub(last))
			last = now
		}
		if err := store.Commit(batch); err != nil {
			return longest, err
		}
		longest.commit = max(longest.commit, time.Since(last))
	}
	return longest, nil
}
