package state

import (
	"context"
	"fmt"
	"slices"
)

// Seen is a set of keys, at 8 bytes each: a key's hash in the index stands for
// that key alone. The zero value is empty. It is used by one goroutine at a time,
// and only with the store that filled it.
type Seen struct {
	parts [Parts][]uint64
}

// See adds a key that the batch knows; an unknown one is passed over.
func (b *Batch) See(seen *Seen, table uint16, key []byte) error {
	if b.closed.Load() {
		return ErrBatchClosed
	}
	r, h, _, err := b.locate(table, key)
	if err != nil || r == nil {
		return err
	}
	part := h >> 56
	seen.parts[part] = append(seen.parts[part], h)
	return nil
}

// EachUnseen calls fn for the key of every committed aggregate of a table that
// exists and is not in seen, in no order; what is written meanwhile may be met or
// not. Commits go on beside it. The key is valid during the call. An error of fn
// ends it and is returned as it is.
func (s *Store) EachUnseen(ctx context.Context, table uint16, seen *Seen, fn func(key []byte) error) error {
	var hashes []uint64
	var buf []byte
	for part := range Parts {
		slices.Sort(seen.parts[part])
		hashes = s.hashes(part, hashes[:0])
		for _, h := range hashes {
			if _, found := slices.BinarySearch(seen.parts[part], h); found {
				continue
			}
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("read the state: %w", err)
			}
			r, err := s.committed(h, buf[:0])
			if err != nil {
				return fmt.Errorf("read the state: %w", err)
			}
			buf = r
			if e := record(r).entry(); record(r).kind() != kindExisting || record(r).table() != table || !e.Exists() {
				continue
			}
			if err := fn(record(r).key()); err != nil {
				return err
			}
		}
	}
	return nil
}
