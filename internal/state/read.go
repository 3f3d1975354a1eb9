package state

import (
	"context"
	"fmt"

	"backstory/transform"
)

// Parts is the number of parts that EachOf knows.
const Parts = 256

// Lookup returns the committed entry of an aggregate, whether there is one, and
// whether its row is to be read again. Commits go on beside it. The image is the
// caller's.
func (s *Store) Lookup(table uint16, key []byte) (e transform.Entry, found, again bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return e, false, false, ErrClosed
	}
	_, again = s.again[table][string(key)]
	h := s.hash(table, key)
	for range maxSalt {
		l := s.index.get(h)
		if l == 0 {
			return e, false, again, nil
		}
		buf, err := s.readRecord(nil, l)
		if err != nil {
			return e, false, again, fmt.Errorf("read the state: %w", err)
		}
		if r := recordAt(buf, 0); r.about(table, key) {
			if r.kind() == kindGone {
				return e, false, again, nil
			}
			return r.entry(), true, again, nil
		}
		h = nextHash(h)
	}
	return e, false, again, fmt.Errorf("read the state: %d keys have the same hash", maxSalt)
}

// EachOf calls fn for the committed aggregates and notes of one of the Parts, as
// Each does for all.
func (s *Store) EachOf(ctx context.Context, part int, fn func(table uint16, key []byte, e transform.Entry) error) error {
	if part < 0 || part >= Parts {
		return fmt.Errorf("read the state: part %d of %d", part, Parts)
	}
	var buf []byte
	for _, h := range s.hashes(part, nil) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the state: %w", err)
		}
		r, err := s.committed(h, buf[:0])
		if err != nil {
			return fmt.Errorf("read the state: %w", err)
		}
		buf = r
		if record(r).kind() == kindGone {
			continue
		}
		if err := fn(record(r).table(), record(r).key(), record(r).entry()); err != nil {
			return err
		}
	}
	return nil
}
