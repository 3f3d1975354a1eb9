package state

import (
	"context"

	"backstory/transform"
)

// Each calls fn for every committed aggregate and note, in no order. One that is
// there throughout is met once; of one that is written meanwhile the older or the
// newer entry is. Commits go on beside it. Key and image are valid during the
// call. An error of fn ends it and is returned as it is.
func (s *Store) Each(ctx context.Context, fn func(table uint16, key []byte, e transform.Entry) error) error {
	for part := range Parts {
		if err := s.EachOf(ctx, part, fn); err != nil {
			return err
		}
	}
	return nil
}

// hashes appends the hashes of a part of the index.
func (s *Store) hashes(part int, to []uint64) []uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, sl := range s.index.shards[part].slots {
		if sl.loc != 0 {
			to = append(to, sl.hash)
		}
	}
	return to
}

// committed reads the committed record of a hash, without its padding, into buf.
func (s *Store) committed(h uint64, buf []byte) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	buf, err := s.readRecord(buf, s.index.get(h))
	if err != nil {
		return nil, err
	}
	return recordAt(buf, 0), nil
}
