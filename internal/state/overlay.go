package state

// where says in which buffer of a batch a record is.
type where uint32

const (
	nowhere where = iota
	inRead        // as it was when the batch read it
	inBuf         // written by the batch
	inNone        // neither the batches before nor the store have one
)

// claim is what a batch knows of a hash.
type claim struct {
	hash  uint64
	at    uint32 // offset in the buffer
	where where
}

// overlay maps hashes to the records that a batch has in its own buffers.
type overlay struct {
	claims []claim
	used   int
}

const overlayMin = 1024

func (o *overlay) probe(h uint64) *claim {
	mask := uint64(len(o.claims) - 1)
	for i := (h >> 20) & mask; ; i = (i + 1) & mask {
		if c := &o.claims[i]; c.where == nowhere || c.hash == h {
			return c
		}
	}
}

// find returns a claim that is nowhere if the batch does not know the hash.
func (o *overlay) find(h uint64) claim {
	if o.used == 0 {
		return claim{}
	}
	return *o.probe(h)
}

func (o *overlay) set(h uint64, at int, w where) {
	if 2*o.used >= len(o.claims) {
		o.grow()
	}
	c := o.probe(h)
	if c.where == nowhere {
		o.used++
	}
	*c = claim{hash: h, at: uint32(at), where: w}
}

func (o *overlay) grow() {
	bigger := overlay{claims: make([]claim, max(2*len(o.claims), overlayMin)), used: o.used}
	for _, c := range o.claims {
		if c.where != nowhere {
			*bigger.probe(c.hash) = c
		}
	}
	*o = bigger
}

// reset empties the overlay. One that is far larger than what it held is given
// up, so that a single large batch does not make every later one slow.
func (o *overlay) reset() {
	if len(o.claims) > 64*max(o.used, overlayMin) {
		o.claims = nil
	}
	clear(o.claims)
	o.used = 0
}
