// Package stored holds the state of a bridge that has stopped against the latest
// topic. It is apart from package audit, which knows nothing of the bridge's code.
package stored

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"backstory/internal/e2e/audit"
	"backstory/internal/state"
)

// Compare opens the state in dir and returns an error unless it has each aggregate
// of a type as its newest record in latest has it, and no other one.
func Compare(ctx context.Context, dir, aggregate string, latest []audit.Record) (err error) {
	store, err := state.Open(ctx, state.Config{Dir: dir}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	table, err := tableOf(store, aggregate)
	if err != nil {
		return err
	}
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

// tableOf is the number that the state has given to the table of an aggregate.
func tableOf(store *state.Store, aggregate string) (uint16, error) {
	var registered struct {
		ID uint16 `json:"id"`
	}
	text, ok := store.Meta("aggregate/" + aggregate)
	if !ok {
		return 0, fmt.Errorf("state: it has no aggregate %s", aggregate)
	}
	if err := json.Unmarshal(text, &registered); err != nil {
		return 0, fmt.Errorf("state: aggregate %s: %w", aggregate, err)
	}
	return registered.ID, nil
}
