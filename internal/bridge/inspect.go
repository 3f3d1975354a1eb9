package bridge

import (
	"context"

	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// StateParts is the number of parts in which EachKey goes through the state.
const StateParts = state.Parts

// Committed returns the phase of the bridge, the position up to which the
// committed state has everything, and what is added to the positions of the WAL in
// those of events. It may be called beside Run, as may the following methods; they
// wait for nothing and hold up no commit.
func (b *Bridge) Committed() (phase string, lsn, base capture.LSN, err error) {
	if lsn, _, err = b.memory.lsn(); err == nil {
		base, err = b.memory.base()
	}
	b.status.mu.Lock()
	defer b.status.mu.Unlock()
	return b.status.status.Phase, lsn, base, err
}

// TableOf returns the number that the state has for an aggregate's table.
func (b *Bridge) TableOf(aggregate string) (table uint16, ok bool, err error) {
	r, ok, err := b.memory.registration(aggregate)
	return r.ID, ok, err
}

// Former returns the sources whose records stand in a table's topics beside its own.
func (b *Bridge) Former(table uint16) ([]transform.Former, error) { return b.memory.former(table) }

// Entry returns the committed entry of an aggregate, a zero one if there is none,
// and whether its row is to be read again.
func (b *Bridge) Entry(table uint16, key []byte) (e transform.Entry, again bool, err error) {
	e, _, again, err = b.store.Lookup(table, key)
	return e, again, err
}

// EachKey calls fn for the committed aggregates of a table, notes left out, that
// lie in one of the StateParts parts of the state. The key is valid during the
// call.
func (b *Bridge) EachKey(ctx context.Context, table uint16, part int, fn func(key []byte) error) error {
	return b.store.EachOf(ctx, part, func(t uint16, key []byte, e transform.Entry) error {
		if t != table || e.Version == 0 {
			return nil
		}
		return fn(key)
	})
}

// Shape returns what is remembered of a table's columns; nil: nothing.
func (b *Bridge) Shape(table uint16) (*capture.Shape, error) { return b.memory.shape(table) }
