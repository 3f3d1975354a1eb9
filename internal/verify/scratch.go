package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"backstory/internal/state"
	"backstory/transform"
)

// version is an aggregate as one record of a topic leaves it.
type version struct {
	number    uint64 // 0: the aggregate is unknown
	place     transform.Place
	xid       uint32
	id        transform.EventID
	partition int32
	offset    int64
	below     int64 // of latest: ce_eventsoffset
	time      int64 // microseconds since 1970
	exists    bool
	// broken: events are missing before, so of the image only what the events since
	// then have said is known.
	broken bool
	image  []byte // JSON; nil unless it exists
}

// The tables of the scratch store.
const (
	foldOfEvents uint16 = iota + 1 // newest version of each aggregate by the events topic
	newestLatest                   // newest record of each key of the latest topic
	looked                         // keys that were compared, or are on the list to be
	strangeIDs                     // ids of events that do not follow from their position
)

const (
	scratchHead  = 1 + 4 + 8 + 8 + 8 + 16
	scratchBatch = 5000 // reads and writes between two commits: it bounds the batch's memory
	flagExists   = 1
	flagBroken   = 2
)

// scratch keeps versions by key in a store of its own, which is removed at the
// end. It serves one goroutine.
type scratch struct {
	dir   string
	store *state.Store
	batch *state.Batch
	used  int
	blob  []byte
}

// openScratch makes the store in a new directory under parent; empty: that for
// temporary files.
func openScratch(ctx context.Context, parent string) (*scratch, error) {
	dir, err := os.MkdirTemp(parent, "backstory-verify-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the scratch store: %w", err)
	}
	store, err := state.Open(ctx, state.Config{Dir: dir}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the scratch store: %w", err), os.RemoveAll(dir))
	}
	return &scratch{dir: dir, store: store, batch: store.Begin()}, nil
}

func (s *scratch) close() error {
	return errors.Join(s.store.Discard(), os.RemoveAll(s.dir))
}

// get returns what is kept of a key, the zero version if nothing is. The image is
// valid until the next call of settle.
func (s *scratch) get(table uint16, key []byte) (version, error) {
	s.used++
	e, ok, err := s.batch.Get(table, key)
	if err != nil || !ok {
		return version{}, err
	}
	if len(e.Image) < scratchHead {
		return version{}, fmt.Errorf("scratch store: the entry of key %q is cut off", key)
	}
	b := e.Image
	v := version{
		number: e.Version, place: e.Place, xid: e.XID,
		exists: b[0]&flagExists != 0, broken: b[0]&flagBroken != 0,
		partition: int32(binary.LittleEndian.Uint32(b[1:])),
		offset:    int64(binary.LittleEndian.Uint64(b[5:])),
		below:     int64(binary.LittleEndian.Uint64(b[13:])),
		time:      int64(binary.LittleEndian.Uint64(b[21:])),
		id:        transform.EventID(b[29:scratchHead]),
	}
	if v.exists {
		v.image = b[scratchHead:]
	}
	return v, nil
}

func (s *scratch) put(table uint16, key []byte, v *version) error {
	s.used++
	flags := byte(0)
	if v.exists {
		flags |= flagExists
	}
	if v.broken {
		flags |= flagBroken
	}
	b := append(s.blob[:0], flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(v.partition))
	b = binary.LittleEndian.AppendUint64(b, uint64(v.offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(v.below))
	b = binary.LittleEndian.AppendUint64(b, uint64(v.time))
	b = append(b, v.id[:]...)
	s.blob = append(b, v.image...)
	return s.batch.Put(table, key, transform.Entry{Version: v.number, Place: v.place, XID: v.xid, Image: s.blob})
}

// has and mark keep sets of keys.
func (s *scratch) has(set uint16, key []byte) (bool, error) {
	s.used++
	_, ok, err := s.batch.Get(set, key)
	return ok, err
}

func (s *scratch) mark(set uint16, key []byte) error {
	s.used++
	return s.batch.Put(set, key, transform.Entry{Version: 1, Place: transform.Place{Index: 1}, Image: []byte{1}})
}

// settle commits what was written, if it has become much. Images that get has
// returned are invalid then.
func (s *scratch) settle() error {
	if s.used < scratchBatch {
		return nil
	}
	return s.commit()
}

func (s *scratch) commit() error {
	s.used = 0
	err := s.store.Commit(s.batch)
	s.batch = s.store.Begin()
	return err
}

// keys returns the keys of a table in bytewise order, as they are now.
func (s *scratch) keys(ctx context.Context, table uint16) (*state.Keys, error) {
	if err := s.commit(); err != nil {
		return nil, err
	}
	return s.store.Keys(ctx, table, state.All)
}

// own returns the version with an image of its own.
func (v version) own() version {
	v.image = bytes.Clone(v.image)
	return v
}
