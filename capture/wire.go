package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Messages of the frontend/backend protocol that occur while a slot is streamed.
const (
	wireCopyData        = 'd'
	wireCopyDone        = 'c'
	wireCopyBoth        = 'W'
	wireCommandComplete = 'C'
	wireReady           = 'Z'
	wireError           = 'E'
	wireNotice          = 'N'
	wireParameter       = 'S'
)

// Messages of the streaming protocol, inside CopyData.
const (
	streamData      = 'w'
	streamKeepalive = 'k'
	streamStatus    = 'r'
)

// Sizes of the read buffer and of what it may be asked to hold.
const (
	wireBuffer  = 256 << 10
	wireLargest = 1 << 30 // Postgres builds no larger message
)

// errWire says that the bytes are no messages of the protocol.
var errWire = errors.New("malformed protocol message")

// wire reads the messages of one connection into one buffer, which is as large as
// the largest message needs.
type wire struct {
	conn net.Conn
	buf  []byte
	r, w int
	// drained: the last read got less than it could take, so the connection had
	// nothing more at hand.
	drained bool
}

func newWire(conn net.Conn) *wire { return &wire{conn: conn, buf: make([]byte, wireBuffer)} }

// headerLen is a message's kind and length; the length counts itself.
const headerLen = 5

// peek returns the message at the front of the buffer, valid until read. ok is
// false where the buffer does not hold all of it.
func (w *wire) peek() (kind byte, body []byte, ok bool, err error) {
	have := w.buf[w.r:w.w]
	if len(have) < headerLen {
		return 0, nil, false, nil
	}
	size := binary.BigEndian.Uint32(have[1:headerLen])
	if size < 4 || size > wireLargest {
		return 0, nil, false, fmt.Errorf("%w: kind %q, length %d", errWire, have[0], size)
	}
	if uint64(len(have)) < uint64(size)+1 {
		return 0, nil, false, nil
	}
	return have[0], have[headerLen : size+1], true, nil
}

// skip drops the message that peek returned.
func (w *wire) skip(body []byte) { w.r += headerLen + len(body) }

// read makes room and reads once.
func (w *wire) read() error {
	switch {
	case w.r == w.w:
		w.r, w.w = 0, 0
		if len(w.buf) > 4*wireBuffer {
			w.buf = make([]byte, wireBuffer)
		}
	case w.r > 0 && w.r >= len(w.buf)/2, w.w == len(w.buf) && w.r > 0:
		w.w = copy(w.buf, w.buf[w.r:w.w])
		w.r = 0
	case w.w == len(w.buf):
		// It grows with what is there, not with the length that a message claims.
		w.buf = append(w.buf, make([]byte, len(w.buf))...)
	}
	n, err := w.conn.Read(w.buf[w.w:])
	w.w += n
	w.drained = w.w < len(w.buf)
	if n > 0 {
		return nil // an error comes again
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// receive blocks until a message is there, up to the connection's deadline. It
// is for the beginning and the end of a session.
func (w *wire) receive() (kind byte, body []byte, err error) {
	for {
		kind, body, ok, err := w.peek()
		if err != nil || ok {
			return kind, body, err
		}
		if err := w.read(); err != nil {
			return 0, nil, err
		}
	}
}

// serverError decodes an ErrorResponse.
func serverError(body []byte) error {
	var response pgproto3.ErrorResponse
	if err := response.Decode(body); err != nil {
		return fmt.Errorf("%w: error response: %w", errWire, err)
	}
	return pgconn.ErrorResponseToPgError(&response)
}

// xlogData is the frame of a pgoutput message.
type xlogData struct {
	start LSN   // of the WAL record that the message is about; 0 where there is none
	sent  int64 // microseconds since 1970 by the server's clock
	data  []byte
}

func decodeXLogData(body []byte) (xlogData, error) {
	c := cursor{b: body}
	m := xlogData{start: c.lsn()}
	c.lsn() // the same again: a logical walsender does not say where WAL ends
	m.sent = c.time()
	m.data = c.b
	if c.bad {
		return xlogData{}, fmt.Errorf("%w: XLogData: %w", errWire, errShort)
	}
	return m, nil
}

// keepalive is the server's sign of life.
type keepalive struct {
	walEnd LSN // what the server has decoded
	reply  bool
}

func decodeKeepalive(body []byte) (keepalive, error) {
	c := cursor{b: body}
	m := keepalive{walEnd: c.lsn()}
	c.time()
	m.reply = c.byte() == 1
	if err := c.done(); err != nil {
		return keepalive{}, fmt.Errorf("%w: keepalive: %w", errWire, err)
	}
	return m, nil
}

// appendStatus appends a standby status update that says the same of written,
// flushed and applied WAL.
func appendStatus(dst []byte, confirmed LSN, now time.Time, reply bool) []byte {
	dst = append(dst, wireCopyData)
	dst = binary.BigEndian.AppendUint32(dst, 4+1+4*8+1)
	dst = append(dst, streamStatus)
	for range 3 {
		dst = binary.BigEndian.AppendUint64(dst, uint64(confirmed))
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(now.UnixMicro()-postgresEpoch))
	if reply {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// appendCopyDone appends the client's end of the stream.
func appendCopyDone(dst []byte) []byte { return append(dst, wireCopyDone, 0, 0, 0, 4) }

// appendTerminate appends the end of the session.
func appendTerminate(dst []byte) []byte { return append(dst, 'X', 0, 0, 0, 4) }
