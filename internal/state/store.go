package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"backstory/capture"
)

// Store is an open state store. Its methods may be called from several
// goroutines; batches are begun and committed in the same order.
type Store struct {
	dir          string
	disk         disk
	unlock       io.Closer
	segmentBytes int64
	log          *slog.Logger
	metrics      *metrics
	id           storeID
	seed         uint32
	hash         func(table uint16, key []byte) uint64

	// Locks are taken in the order of their declaration.
	syncing sync.Mutex // one Sync or removal of a file at a time
	writing sync.Mutex // one writer of the log: Commit, compaction, roll
	mu      sync.RWMutex

	// Under writing:
	active *segment
	dirty  bool  // names were created or removed since the directory was synced
	failed error // the log must not be written any more

	markFile file // under syncing

	// Under mu. Index, segments and seq are changed only under writing as well.
	index    index
	segments []*segment     // by handle; nil: free
	large    map[uint64]int // true size of live records of at least `longest` bytes, by hash
	flights  []*Batch       // begun and not committed, in order
	free     []buffers
	meta     map[string]*[]byte
	again    map[uint16]map[string]struct{}
	counts   [][4]int // by table, then by kind - 1
	seq      uint64   // newest group
	synced   uint64   // newest group that is durable
	closed   bool

	moving *move         // compaction under way; only for the keeper
	kick   chan struct{} // wakes the keeper
	moved  chan struct{} // a step of compaction is done
	stop   context.CancelFunc
	keeper sync.WaitGroup
}

// maxFree bounds the buffers kept for later batches.
const maxFree = 4

// Open opens the store of a directory, or makes a new one. It cuts off what a
// crash left unfinished, and returns a *Refusal where the directory is in use or
// damaged. Its metrics are registered with reg, which may be nil.
func Open(ctx context.Context, cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, &Usage{err}
	}
	d, err := openDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := newStore(cfg, d, log)
	s.unlock = d
	if err := s.start(ctx, reg); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return s, nil
}

func newStore(cfg Config, d disk, log *slog.Logger) *Store {
	s := &Store{
		dir: cfg.Dir, disk: d, segmentBytes: cfg.SegmentBytes, log: log,
		hash:  hashKey,
		large: map[uint64]int{},
		meta:  map[string]*[]byte{},
		again: map[uint16]map[string]struct{}{},
		kick:  make(chan struct{}, 1),
		moved: make(chan struct{}, 1),
		stop:  func() {},
	}
	if s.segmentBytes == 0 {
		s.segmentBytes = DefaultSegmentBytes
	}
	return s
}

// start loads what is on disk and begins the keeper, which ends with Close.
func (s *Store) start(ctx context.Context, reg prometheus.Registerer) error {
	if err := s.loadWith(ctx, reg); err != nil {
		return err
	}
	keep, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.keeper.Go(func() { s.keep(keep) })
	s.wake()
	return nil
}

// loadWith registers the metrics and loads what is on disk.
func (s *Store) loadWith(ctx context.Context, reg prometheus.Registerer) error {
	var err error
	if s.metrics, err = newMetrics(s, reg); err != nil {
		return fmt.Errorf("register the metrics of the state: %w", err)
	}
	if err := s.load(ctx); err != nil {
		s.metrics.unregister()
		return errors.Join(err, s.release())
	}
	return nil
}

// Close syncs what is committed and closes the files. Batches that are not
// committed are dropped. It may be called twice.
func (s *Store) Close() error {
	s.stop()
	s.keeper.Wait()
	err := s.Sync(context.Background())
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return errors.Join(err, s.end())
}

// Discard closes a store without syncing it: one whose files are removed next.
func (s *Store) Discard() error {
	s.stop()
	s.keeper.Wait()
	s.mu.RLock()
	closed := s.closed
	s.mu.RUnlock()
	if closed {
		return nil
	}
	return s.end()
}

// end gives back what an open store has.
func (s *Store) end() error {
	err := s.release()
	s.metrics.unregister()
	if s.unlock != nil {
		err = errors.Join(err, s.unlock.Close())
	}
	return err
}

// release gives back files and memory.
func (s *Store) release() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.dropFrom(0)
	s.index.close()
	var errs []error
	for _, seg := range s.segments {
		if seg != nil {
			errs = append(errs, seg.file.Close())
		}
	}
	s.segments = nil
	if s.markFile != nil {
		errs = append(errs, s.markFile.Close())
	}
	return errors.Join(errs...)
}

// Begin begins a batch, which sees all batches before it. The batch before it is
// closed for everything but SetMeta and Commit.
func (s *Store) Begin() *Batch {
	b := &Batch{s: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		b.buffers = s.free[n-1]
		s.free = s.free[:n-1]
	}
	var header [groupHeaderSize]byte
	b.buf = append(b.buf, header[:]...)
	if s.closed {
		b.closed.Store(true)
		return b
	}
	if n := len(s.flights); n > 0 {
		s.flights[n-1].closed.Store(true)
	}
	s.flights = append(s.flights, b)
	return b
}

// Drop abandons a batch and all that were begun after it. A batch that is
// committed or dropped already is passed over. None of them may be in use.
func (s *Store) Drop(b *Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.flights, b); i >= 0 {
		s.dropFrom(i)
	}
}

// DropAll abandons every batch that is not committed. None of them may be in use.
func (s *Store) DropAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropFrom(0)
}

func (s *Store) dropFrom(i int) {
	for _, b := range s.flights[i:] {
		b.closed.Store(true)
	}
	clear(s.flights[i:])
	s.flights = s.flights[:i]
}

// before returns the batches that were begun before b and are not committed.
// The caller has mu.
func (s *Store) before(b *Batch) []*Batch {
	for i := len(s.flights) - 1; i >= 0; i-- {
		if s.flights[i] == b {
			return s.flights[:i]
		}
	}
	return nil
}

// Committed is the number of the newest committed group. It rises with every
// commit that has something in it, and by the store's own groups.
func (s *Store) Committed() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.seq
}

// Synced is the number up to which all groups are durable: a batch is when
// Synced has reached what Committed was after its commit.
func (s *Store) Synced() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.synced
}

// Meta returns a copy of the committed value of a name.
func (s *Store) Meta(name string) ([]byte, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.metaLocked(name)
}

func (s *Store) metaLocked(name string) ([]byte, bool) {
	v := s.meta[name]
	if v == nil {
		return nil, false
	}
	return append([]byte{}, *v...), true
}

// AgainKeys returns the committed keys of a table that must be read again, in
// bytewise order.
func (s *Store) AgainKeys(table uint16) [][]byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	keys := make([][]byte, 0, len(s.again[table]))
	for k := range s.again[table] {
		keys = append(keys, []byte(k))
	}
	slices.SortFunc(keys, slices.Compare)
	return keys
}

// Count returns how many committed aggregates of a table exist, how many are
// deleted, and how many keys are only noted.
func (s *Store) Count(table uint16) (existing, deleted, notes int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if int(table) >= len(s.counts) {
		return 0, 0, 0
	}
	c := &s.counts[table]
	return c[kindExisting-1], c[kindDeleted-1], c[kindNote-1]
}

// Empty reports whether nothing was ever committed: no key, no list, and no meta
// but the identity.
func (s *Store) Empty() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := len(s.meta)
	if s.meta[identityName] != nil {
		names--
	}
	return s.index.used == 0 && names == 0 && len(s.again) == 0
}

// identityName is the meta under which Bind keeps the identity.
const identityName = "state.identity"

// MetaRebound is the meta that says that the state's position is of another history
// than the server's: what the server has at that position is not what the state was
// made from. Whoever has made the state fit removes it.
const MetaRebound = "state.rebound"

// Bind ties the store to the cluster that its positions are of, and returns the
// identity that it is tied to. A new store takes the given one; one of another
// cluster or database is a *Refusal. A store of another timeline stays on that:
// whether the history went on from there is for the caller to find out, who then
// moves it by [Batch.Bind].
func (s *Store) Bind(id capture.Identity) (capture.Identity, error) {
	if _, ok := s.Meta(identityName); !ok {
		return id, s.setIdentity(id, false)
	}
	got, ok := s.identity()
	if !ok {
		return id, damaged(s.dir, identityName, 0, "the identity is cut off")
	}
	if got.System != id.System || got.Database != id.Database {
		return got, s.foreign(id, got)
	}
	return got, nil
}

// Elsewhere reports whether the store is tied to another cluster or database.
func (s *Store) Elsewhere(id capture.Identity) bool {
	got, ok := s.identity()
	return ok && (got.System != id.System || got.Database != id.Database)
}

// identity is what the store is tied to; ok is false if it is to nothing, or that can't
// be read.
func (s *Store) identity() (id capture.Identity, ok bool) {
	v, _ := s.Meta(identityName)
	if len(v) < identityFixed {
		return id, false
	}
	return capture.Identity{System: le.Uint64(v), Timeline: int32(le.Uint32(v[8:])), Database: string(v[identityFixed:])}, true
}

// identityFixed is the length of system and timeline, before the database's name.
const identityFixed = 12

func identityOf(id capture.Identity) []byte {
	v := le.AppendUint64(nil, id.System)
	v = le.AppendUint32(v, uint32(id.Timeline))
	return append(v, id.Database...)
}

func (s *Store) setIdentity(id capture.Identity, rebound bool) error {
	b := &Batch{s: s}
	b.buf = make([]byte, groupHeaderSize)
	b.Bind(id)
	if rebound {
		b.SetMeta(MetaRebound, []byte{})
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.commit(b); err != nil {
		return fmt.Errorf("bind the state to system %d: %w", id.System, err)
	}
	return nil
}

// Bind ties the store to an identity, together with the rest of the batch.
func (b *Batch) Bind(id capture.Identity) { b.SetMeta(identityName, identityOf(id)) }

// Adopt ties the store to another cluster or database, to which the rows that it
// tells of were moved. It sets MetaRebound: its positions are of the former one.
func (s *Store) Adopt(id capture.Identity) error {
	v, ok := s.Meta(identityName)
	switch {
	case ok && string(v) == string(identityOf(id)):
		return nil
	case ok && len(v) < identityFixed:
		return damaged(s.dir, identityName, 0, "the identity is cut off")
	}
	return s.setIdentity(id, ok)
}

func (s *Store) foreign(id, got capture.Identity) error {
	return &Refusal{
		Thing:   "state directory " + s.dir,
		Problem: fmt.Sprintf("it belongs to %s, not to %s", got, id),
		Cure: "point source.dsn or state.dir to the other, or give this source a directory, slot and topics of its own; " +
			"if the database was moved or upgraded to a new server, stop what still writes to the former one and run " +
			"`backstory backfill --reconcile --adopt-topics`: it binds the state to the new one, compares the tables with it and publishes the differences",
	}
}

// readRecord appends the record at l to buf and checks it. The caller has mu.
func (s *Store) readRecord(buf []byte, l loc) ([]byte, error) {
	seg := s.segments[l.handle()]
	at, size := len(buf), l.size()
	if size == longest {
		var head [recordHeaderSize]byte
		if _, err := seg.file.ReadAt(head[:], l.offset()); err != nil {
			return nil, s.readError(seg, l, err)
		}
		size = padded(record(head[:]).length())
		if l.offset()+int64(size) > seg.size {
			return nil, damaged(s.dir, logName(seg.number), l.offset(), "the length of the record is wrong")
		}
	}
	buf = slices.Grow(buf, size)[:at+size]
	if _, err := seg.file.ReadAt(buf[at:], l.offset()); err != nil {
		return nil, s.readError(seg, l, err)
	}
	if _, problem := checkRecord(buf[at:], s.seed); problem != "" {
		return nil, damaged(s.dir, logName(seg.number), l.offset(), problem)
	}
	return buf, nil
}

func (s *Store) readError(seg *segment, l loc, err error) error {
	if errors.Is(err, io.EOF) {
		return damaged(s.dir, logName(seg.number), l.offset(), "the file has become shorter")
	}
	return fmt.Errorf("read %s at byte %d: %w", logName(seg.number), l.offset(), err)
}

// hashOf is the hash under which a record is in the index.
func (s *Store) hashOf(r record) uint64 {
	h := s.hash(r.table(), r.key())
	for range r.salt() {
		h = nextHash(h)
	}
	return h
}

// misplaced reports a place of the index that leads to the record of another key.
func (s *Store) misplaced(h uint64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	l := s.index.get(h)
	name := "index"
	if seg := s.segments[l.handle()]; seg != nil {
		name = logName(seg.number)
	}
	return damaged(s.dir, name, l.offset(), "the record is of another key than the index says")
}

// sizeOf is the padded length of the record that the index has for h at l.
func (s *Store) sizeOf(h uint64, l loc) int64 {
	if l.size() == longest {
		return int64(s.large[h])
	}
	return int64(l.size())
}

// place puts a record into the index and keeps the accounts of live bytes and
// keys. old is the record's kind before, 0 if the hash is new. The caller has
// writing and mu.
func (s *Store) place(h uint64, table uint16, l loc, size int) error {
	if int(table) >= len(s.counts) {
		s.counts = append(s.counts, make([][4]int, int(table)+1-len(s.counts))...)
	}
	old, err := s.index.put(h, l)
	if err != nil {
		return err
	}
	if old != 0 {
		s.segments[old.handle()].live -= s.sizeOf(h, old)
		s.counts[table][old.kind()-1]--
	}
	if l.size() == longest {
		s.large[h] = size
	} else if old.size() == longest {
		delete(s.large, h)
	}
	s.segments[l.handle()].live += int64(size)
	s.counts[table][l.kind()-1]++
	return nil
}
