package capture

import (
	"errors"
	"fmt"
)

// row is a decoded insert, update or delete. The values point into the message.
type row struct {
	new     []Value
	old     []Value
	oldFull bool
}

// decodeRow decodes the body of a row message of the given kind, of a relation
// with the given number of columns. values hands out the slices to fill.
func decodeRow(kind byte, body []byte, columns int, values *slab[Value]) (row, error) {
	c := cursor{b: body}
	c.uint32() // relation
	var r row
	var err error
	part := c.byte()
	if kind != msgInsert && (part == tupleOld || part == tupleKey) {
		r.oldFull = part == tupleOld
		if r.old, err = decodeTuple(&c, columns, r.oldFull, values); err != nil {
			return row{}, fmt.Errorf("old tuple: %w", err)
		}
		if kind == msgDelete {
			return r, c.done()
		}
		part = c.byte()
	}
	switch {
	case c.bad:
		return row{}, errShort
	case kind == msgDelete:
		return row{}, fmt.Errorf("part %q in a delete", part)
	case part != tupleNew:
		return row{}, fmt.Errorf("part %q instead of a new tuple", part)
	}
	if r.new, err = decodeTuple(&c, columns, true, values); err != nil {
		return row{}, fmt.Errorf("new tuple: %w", err)
	}
	return r, c.done()
}

// errColumns says that a tuple does not fit the relation that announced it.
var errColumns = errors.New("number of columns differs from the relation's")

// decodeTuple decodes one tuple. In a tuple that is not whole, a column without
// a value is not part of the key; that says nothing about NULL.
func decodeTuple(c *cursor, columns int, whole bool, values *slab[Value]) ([]Value, error) {
	n := int(c.uint16())
	switch {
	case c.bad:
		return nil, errShort
	case n != columns:
		return nil, fmt.Errorf("%w: got %d, want %d", errColumns, n, columns)
	}
	tuple := values.take(n)
	for i := range tuple {
		switch kind := c.byte(); kind {
		case columnText:
			tuple[i] = Value{Kind: Text, Data: c.take(int(c.uint32()))}
		case columnNull:
			tuple[i] = Value{Kind: Null}
			if !whole {
				tuple[i].Kind = Absent
			}
		case columnUnchanged:
			tuple[i] = Value{Kind: Unchanged}
		case columnBinary:
			return nil, fmt.Errorf("column %d: %w", i+1, errBinary)
		default:
			if c.bad {
				return nil, errShort
			}
			return nil, fmt.Errorf("column %d: unknown kind %q", i+1, kind)
		}
	}
	if c.bad {
		return nil, errShort
	}
	return tuple, nil
}

// slab hands out slices from blocks that it uses again after a reset. What was
// handed out stays where it is until then.
type slab[T any] struct {
	blockLen int
	blocks   [][]T
	free     []T // rest of the block in use
	next     int // block to use then
	used     int // elements handed out since the reset
	large    bool
}

// take returns a slice of n elements with any content.
func (s *slab[T]) take(n int) []T {
	s.used += n
	if n > len(s.free) {
		if n > s.blockLen/4 {
			s.large = true
			return make([]T, n) // rare; a block's rest is not wasted for it
		}
		if s.next == len(s.blocks) {
			s.blocks = append(s.blocks, make([]T, s.blockLen))
		}
		s.free = s.blocks[s.next]
		s.next++
	}
	taken := s.free[:n:n]
	s.free = s.free[n:]
	return taken
}

// reset takes everything back.
func (s *slab[T]) reset() { s.free, s.next, s.used, s.large = nil, 0, 0, false }

// arena holds the changes of a batch and all that they point to.
type arena struct {
	changes []Change
	values  slab[Value]
	bytes   slab[byte]
}

// Blocks of an arena: 256 KiB of bytes, 128 KiB of values.
const (
	byteBlock  = 256 << 10
	valueBlock = 4 << 10
)

func newArena() *arena {
	return &arena{values: slab[Value]{blockLen: valueBlock}, bytes: slab[byte]{blockLen: byteBlock}}
}

// copy keeps a copy of b in the arena.
func (a *arena) copy(b []byte) []byte {
	kept := a.bytes.take(len(b))
	copy(kept, b)
	return kept
}

// adopt appends a copy of changes, with all that they point to.
func (a *arena) adopt(changes []Change) {
	for _, change := range changes {
		change.New = a.adoptValues(change.New)
		change.Old = a.adoptValues(change.Old)
		a.changes = append(a.changes, change)
	}
}

func (a *arena) adoptValues(values []Value) []Value {
	if len(values) == 0 {
		return nil
	}
	kept := a.values.take(len(values))
	for i, v := range values {
		if v.Kind == Text {
			v.Data = a.copy(v.Data)
		}
		kept[i] = v
	}
	return kept
}

// reset empties the arena for the next batch. Large pieces are set free: nothing
// that waits to be overwritten may hold on to them.
func (a *arena) reset() {
	if a.bytes.large || a.values.large {
		clear(a.changes[:cap(a.changes)])
		for _, block := range a.values.blocks {
			clear(block)
		}
	}
	a.changes = a.changes[:0]
	a.values.reset()
	a.bytes.reset()
}
