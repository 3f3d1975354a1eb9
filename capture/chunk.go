package capture

import (
	"fmt"
	"slices"
	"sync"
)

// chunkBuffer holds the memory of a chunk: the copied text, and what points into
// it. It is COPY's destination.
type chunkBuffer struct {
	pool   *chunkPool
	data   []byte
	rows   int
	limit  int  // bytes; the first row may exceed it. 0: none
	full   bool // rows were dropped
	values []Value
	texts  []byte // converted values; those of before stay where they are when it grows
}

// Write takes one row: the server sends one in each message.
func (b *chunkBuffer) Write(row []byte) (int, error) {
	if b.full || b.limit > 0 && b.rows > 0 && len(b.data)+len(row) > b.limit {
		b.full = true
		return len(row), nil
	}
	b.data = append(b.data, row...)
	b.rows++
	return len(row), nil
}

// decode turns the copied text into changes, without positions yet.
func (c *Chunk) decode(p *readPlan) error {
	b, width := c.buffer, len(p.relation.Columns)
	b.values = slices.Grow(b.values[:0], b.rows*width+len(p.targets))[:b.rows*width+len(p.targets)]
	clear(b.values) // columns that are not read are Absent
	fields, values := b.values[b.rows*width:], b.values[:b.rows*width]
	c.Changes = slices.Grow(c.Changes[:0], b.rows)
	rest := b.data
	var err error
	for i := range b.rows {
		if rest, err = decodeCopyRow(rest, fields); err != nil {
			return fmt.Errorf("row %d: %w", i+1, err)
		}
		row := values[i*width : (i+1)*width : (i+1)*width]
		for j, place := range p.targets {
			row[place] = fields[j]
		}
		c.Changes = append(c.Changes, Change{Op: OpRead, Time: c.Time, Relation: p.relation, New: row})
		if p.texts != nil {
			if err := p.texts.change(&c.Changes[i], b.keep); err != nil {
				return err
			}
		}
	}
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes follow the last row", len(rest))
	}
	c.Last = c.lastKey(p)
	return nil
}

// keep copies a text to where it stays as long as the chunk.
func (b *chunkBuffer) keep(text []byte) []byte {
	from := len(b.texts)
	b.texts = append(b.texts, text...)
	return b.texts[from:len(b.texts):len(b.texts)]
}

// lastKey copies the key of the last row; nil if there is none.
func (c *Chunk) lastKey(p *readPlan) []string {
	if len(c.Changes) == 0 {
		return nil
	}
	row := c.Changes[len(c.Changes)-1].New
	key := make([]string, len(p.key))
	for i, column := range p.key {
		key[i] = string(row[column.place].Data)
	}
	return key
}

// place gives the rows their positions.
func (c *Chunk) place(watermark LSN) {
	c.Watermark = watermark
	for i := range c.Changes {
		c.Changes[i].Pos = Position{LSN: watermark, Kind: KindBackfill, Index: uint32(i + 1)} //nolint:gosec // rows of a chunk are far below 2³²
	}
}

// Release gives the chunk's memory back to its reader; neither the chunk nor
// anything in it may be used after that, nor be released again. A chunk that was not made by a reader
// has nothing to give back.
func (c *Chunk) Release() {
	if c.buffer != nil {
		c.buffer.pool.put(c)
	}
}

// chunkPool keeps the memory of released chunks. A sync.Pool would let go of it
// between two chunks.
type chunkPool struct {
	mu   sync.Mutex
	free []*Chunk
}

// keptChunks is enough for two that wait or are applied and one that is read meanwhile.
const keptChunks = 3

func (p *chunkPool) take() *Chunk {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		chunk := p.free[n-1]
		p.free = p.free[:n-1]
		return chunk
	}
	return &Chunk{buffer: &chunkBuffer{pool: p}}
}

func (p *chunkPool) put(c *Chunk) {
	b := c.buffer
	*b = chunkBuffer{pool: p, data: b.data[:0], values: b.values[:0], texts: b.texts[:0]}
	*c = Chunk{Changes: c.Changes[:0], buffer: b}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < keptChunks && !slices.Contains(p.free, c) {
		p.free = append(p.free, c)
	}
}
