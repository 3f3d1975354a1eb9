// Package stored holds the state of a bridge that has stopped against the latest
// topic. It is apart from package audit, which knows nothing of the bridge's code.
package stored

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"backstory/internal/e2e/audit"
	"backstory/internal/state"
)

// table is the number of the only mapped table.
const table = 1

// Compare opens the state in dir and returns an error unless it has each
// aggregate as its newest record in latest has it, and no other one.
func Compare(ctx context.Context, dir string, latest []audit.Record) (err error) {
	store, err := state.Open(ctx, state.Config{Dir: dir}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	newest := map[string]*audit.Record{}
	for n := range latest {
		newest[latest[n].Key] = &latest[n]
	}
	existing := 0
	batch := store.Begin()
	defer store.Drop(batch)
	for key, l := range newest {
		e, _, err := batch.Get(table, []byte(key))
		if err != nil {
			return err
		}
		image := e.Image
		if !e.Exists() {
			image = nil // what a deleted aggregate keeps is of another key
		} else {
			existing++
		}
		if int64(e.Version) != l.Version() || !bytes.Equal(image, l.Value) {
			return fmt.Errorf("state: key %s has version %d and %.300s; latest %d/%d has version %d and %.300s",
				key, e.Version, image, l.Partition, l.Offset, l.Version(), l.Value)
		}
	}
	if n, _, _ := store.Count(table); n != existing {
		return fmt.Errorf("state: %d aggregates exist, %d in latest", n, existing)
	}
	return nil
}
