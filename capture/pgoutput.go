package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The messages of pgoutput, protocol version 1, by their first byte.
const (
	msgBegin       = 'B'
	msgCommit      = 'C'
	msgOrigin      = 'O'
	msgRelation    = 'R'
	msgType        = 'Y'
	msgInsert      = 'I'
	msgUpdate      = 'U'
	msgDelete      = 'D'
	msgTruncate    = 'T'
	msgMessage     = 'M'
	msgStreamAbort = 'A'

	// What a slot with two_phase sends, whatever version of the protocol was asked for.
	msgBeginPrepare     = 'b'
	msgPrepare          = 'P'
	msgCommitPrepared   = 'K'
	msgRollbackPrepared = 'r'
	msgStreamPrepare    = 'p'
)

// The parts of a row message.
const (
	tupleNew = 'N'
	tupleOld = 'O' // the whole old row: identity FULL
	tupleKey = 'K' // the key columns of the old row
)

// The kinds of a column in a tuple.
const (
	columnNull      = 'n'
	columnUnchanged = 'u'
	columnText      = 't'
	columnBinary    = 'b'
)

// postgresEpoch is 2000-01-01 UTC in microseconds since 1970.
const postgresEpoch = 946_684_800_000_000

// Errors of the decoder. They are final: the bytes do not get better.
var (
	errShort    = errors.New("message ends early")
	errTrailing = errors.New("message has bytes behind its end")
	errTwoPhase = errors.New("it is of a prepared transaction")
	errBinary   = errors.New("column is in binary format, which was not asked for")
)

// cursor reads a message from front to back. The first read past the end makes
// it bad; from then on every read yields zeros, so that a decoder checks once,
// at its end.
type cursor struct {
	b   []byte
	bad bool
}

// take returns the next n bytes, and nil where there are fewer.
func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.b, c.bad = nil, true
		return nil
	}
	head := c.b[:n:n]
	c.b = c.b[n:]
	return head
}

func (c *cursor) byte() byte {
	if len(c.b) == 0 {
		c.bad = true
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) uint16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) lsn() LSN { return LSN(c.uint64()) }

// time reads a timestamp: microseconds since 1970.
func (c *cursor) time() int64 { return int64(c.uint64()) + postgresEpoch }

// text reads a string that ends with a NUL byte.
func (c *cursor) text() []byte {
	end := bytes.IndexByte(c.b, 0)
	if end < 0 {
		c.b, c.bad = nil, true
		return nil
	}
	s := c.b[:end:end]
	c.b = c.b[end+1:]
	return s
}

// done reports what is wrong with the message once all of it was read.
func (c *cursor) done() error {
	switch {
	case c.bad:
		return errShort
	case len(c.b) > 0:
		return errTrailing
	}
	return nil
}

// begin opens a transaction.
type begin struct {
	commit LSN   // of the commit record, where it begins
	time   int64 // of the commit
	xid    uint32
}

func decodeBegin(body []byte) (begin, error) {
	c := cursor{b: body}
	m := begin{commit: c.lsn(), time: c.time(), xid: c.uint32()}
	return m, c.done()
}

// commit closes a transaction.
type commit struct {
	commit LSN // where the commit record begins
	end    LSN // where it ends
}

func decodeCommit(body []byte) (commit, error) {
	c := cursor{b: body}
	c.byte() // flags, unused
	m := commit{commit: c.lsn(), end: c.lsn()}
	c.time()
	return m, c.done()
}

// decodeOrigin checks an origin message, of which nothing is used.
func decodeOrigin(body []byte) error {
	c := cursor{b: body}
	c.lsn()
	c.text()
	return c.done()
}

// decodeStreamAbort checks the message that Postgres 18 may send although
// nothing is streamed in protocol 1: it takes back what never came.
func decodeStreamAbort(body []byte) error {
	c := cursor{b: body}
	c.uint32() // transaction
	c.uint32() // subtransaction
	if len(c.b) > 0 {
		c.lsn()
		c.time()
	}
	return c.done()
}

// typeName is the name of a user's type, with domains unwrapped.
type typeName struct {
	oid    uint32 // as declared
	schema []byte // of the base type; empty for pg_catalog
	name   []byte // of the base type
}

// String is the qualified name, for people.
func (n typeName) String() string {
	if len(n.name) == 0 {
		return "of an unknown name"
	}
	return string(n.schema) + "." + string(n.name)
}

func decodeType(body []byte) (typeName, error) {
	c := cursor{b: body}
	m := typeName{oid: c.uint32(), schema: c.text(), name: c.text()}
	return m, c.done()
}

// columnKeyFlag marks a column of the replica identity.
const columnKeyFlag = 1

// decodeRelation decodes the description of a table. Only the declared types
// are known from it: Base equals OID and Elem is 0.
func decodeRelation(body []byte) (*Relation, error) {
	c := cursor{b: body}
	r := &Relation{ID: c.uint32(), Schema: string(c.text()), Name: string(c.text()), Identity: c.byte()}
	if r.Schema == "" {
		r.Schema = "pg_catalog"
	}
	for range c.uint16() {
		flags, name, oid := c.byte(), c.text(), c.uint32()
		mod := int32(c.uint32()) //nolint:gosec // it is signed in the protocol
		if c.bad {
			break
		}
		r.Columns = append(r.Columns, Column{Name: string(name), OID: oid, Base: oid, Mod: mod, Key: flags&columnKeyFlag != 0})
	}
	return r, c.done()
}

// relationID reads the first field of a row message.
func relationID(body []byte) (uint32, error) {
	c := cursor{b: body}
	id := c.uint32()
	if c.bad {
		return 0, errShort
	}
	return id, nil
}

// truncate lists the tables that one statement emptied. Its ids are read one by
// one, so that nothing is allocated for them.
type truncate struct {
	count int
	ids   cursor
}

func decodeTruncate(body []byte) (truncate, error) {
	c := cursor{b: body}
	n := c.uint32()
	c.byte() // options: CASCADE, RESTART IDENTITY
	switch have := uint64(len(c.b)); {
	case c.bad || have < uint64(n)*4:
		return truncate{}, errShort
	case have > uint64(n)*4:
		return truncate{}, errTrailing
	}
	return truncate{count: int(n), ids: c}, nil
}

// logicalMessage is what pg_logical_emit_message wrote.
type logicalMessage struct {
	transactional bool
	lsn           LSN // where its record ends
	prefix        []byte
	content       []byte
}

// messageTransactional is the only flag of a message.
const messageTransactional = 1

func decodeMessage(body []byte) (logicalMessage, error) {
	c := cursor{b: body}
	m := logicalMessage{transactional: c.byte()&messageTransactional != 0, lsn: c.lsn(), prefix: c.text()}
	m.content = c.take(int(c.uint32()))
	return m, c.done()
}

// decodeError names the message and the place in WAL.
func decodeError(kind byte, at LSN, err error) error {
	return fmt.Errorf("decode pgoutput message %q at %s: %w; nothing above it is confirmed: start again, and report it if it comes again", kind, at, err)
}
