package capture

import (
	"context"
	"errors"
	"time"
)

// baseline is what Prepare found and everything after it relies on.
type baseline struct {
	identity Identity
	tables   []TableInfo
}

// watch looks every ten seconds whether publication, tables and slot are as
// Prepare found them. It returns a *Refusal when they are not, and the context's
// error when ctx ends. A server that cannot be reached is not its business: the
// stream notices that by itself.
func (d *Database) watch(ctx context.Context) error {
	ticker := time.NewTicker(d.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
		err := d.Recheck(ctx)
		var refusal *Refusal
		if errors.As(err, &refusal) {
			return err
		}
	}
}

// Recheck is one round of the watch.
func (d *Database) Recheck(ctx context.Context) error {
	status, err := d.SlotStatus(ctx)
	if err != nil {
		return err
	}
	if !status.Exists || status.Lost() {
		return &Refusal{Thing: "slot " + status.Name, Problem: "it is gone or lost"}
	}
	return nil
}
