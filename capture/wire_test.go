package capture

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

// piecewise is a connection that yields data in pieces, once or again and again.
type piecewise struct {
	net.Conn
	data  []byte
	piece int
	again bool
	at    int
}

func (p *piecewise) Read(b []byte) (int, error) {
	if p.at == len(p.data) {
		if !p.again {
			return 0, io.EOF
		}
		p.at = 0
	}
	n := copy(b, p.data[p.at:min(len(p.data), p.at+p.piece)])
	p.at += n
	return n, nil
}

func TestWireGrowsAndShrinks(t *testing.T) {
	t.Parallel()
	message := func(n int) string {
		return string([]byte{'d', byte((n + 4) >> 24), byte((n + 4) >> 16), byte((n + 4) >> 8), byte(n + 4)}) + strings.Repeat("x", n)
	}
	sizes := []int{0, 10, 8 * wireBuffer, 1, wireBuffer - headerLen, wireBuffer, 3, 100}
	var data string
	for _, n := range sizes {
		data += message(n)
	}
	w := newWire(&piecewise{data: []byte(data), piece: 100_000})
	largest := 0
	for _, want := range sizes {
		kind, body, err := w.receive()
		if err != nil || kind != 'd' || len(body) != want || strings.Trim(string(body), "x") != "" {
			t.Fatalf("got %q with %d bytes, %v; want %d", kind, len(body), err, want)
		}
		w.skip(body)
		largest = max(largest, len(w.buf))
	}
	if _, _, err := w.receive(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("at the end: got %v, want %v", err, io.ErrUnexpectedEOF)
	}
	if largest > 16*wireBuffer || len(w.buf) > 4*wireBuffer {
		t.Errorf("buffer: got %d, then %d bytes", largest, len(w.buf))
	}
}

func TestWireRejectsLengths(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"d\x00\x00\x00\x03", "d\xff\xff\xff\xff", "d\x80\x00\x00\x00"} {
		if _, _, err := newWire(&piecewise{data: []byte(data), piece: 10}).receive(); !errors.Is(err, errWire) {
			t.Errorf("%q: got %v, want %v", data, err, errWire)
		}
	}
}
