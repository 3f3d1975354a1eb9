package state

import (
	"context"
	"log/slog"
)

// Disk and File let tests put a disk of their own under a store.
type (
	Disk = disk
	File = file
)

// MoveStep is about how many bytes compaction writes while commits wait.
const MoveStep = moveStep

// Options are what tests may choose beyond Config.
type Options struct {
	Disk         Disk
	SegmentBytes int64
	Hash         func(table uint16, key []byte) uint64
	// Still means that nothing works in the background; see Step.
	Still bool
}

// OpenWith opens a store with segments of any size, on any disk.
func OpenWith(ctx context.Context, o Options) (*Store, error) {
	s := newStore(Config{Dir: "state", SegmentBytes: o.SegmentBytes}, o.Disk, slog.New(slog.DiscardHandler))
	if o.Hash != nil {
		s.hash = o.Hash
	}
	start := s.start
	if o.Still {
		start = s.loadWith
	}
	if err := start(ctx, nil); err != nil {
		return nil, err
	}
	return s, nil
}

// Step does what the keeper of a store that is Still would do next.
func (s *Store) Step(ctx context.Context) (more bool, err error) { return s.work(ctx) }

// DiskBytes is the size of the log and the live part of it.
func (s *Store) DiskBytes() (all, live int64) {
	u := s.usage()
	return u.disk, u.live
}

// Abandon leaves the store as a killed process would: nothing is synced or closed.
func (s *Store) Abandon() {
	s.stop()
	s.keeper.Wait()
	s.index.close()
}

// SetVersion makes the file of a segment one of another format.
func SetVersion(file []byte, version uint32) {
	le.PutUint32(file[8:], version)
	le.PutUint32(file[12:], headerSum(file))
}
