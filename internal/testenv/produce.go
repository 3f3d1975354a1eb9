package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Fate is what becomes of a produce request on its way through a [Link].
type Fate int

// The fates of a request. A Held one waits in the proxy, outlives its client, and
// arrives when [Link.Release] is called.
const (
	Answered   Fate = iota // it arrives, and so does its answer
	Lost                   // it does not arrive: its connection is reset instead
	Unanswered             // it arrives: its connection is reset in place of the answer
	Held
)

func (f Fate) String() string {
	return [...]string{"answered", "lost", "unanswered", "held"}[f]
}

// NoAnswer is the Code of a request that no broker has answered.
const NoAnswer = -1

// Produce is a produce request that has met its fate. One that is held is told of
// twice: when it is, and when it has arrived.
type Produce struct {
	Topic     string // the first that it names
	Partition int32
	Fate      Fate
	Code      int16 // the broker's answer for that partition, or NoAnswer
}

// judge decides over the produce requests of a link.
type judge struct {
	fate     func(topic string, partition int32) Fate
	told     func(Produce)
	released chan struct{}
}

// Judge lets fate decide over each produce request from now on, and tells of each
// one when it has met its fate. The link must lead to a broker without TLS and
// SASL; its connections are reset. Both functions are called from other
// goroutines. The first topic and partition of a request stand for all of it.
func (p *Link) Judge(fate func(topic string, partition int32) Fate, told func(Produce)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judge = &judge{fate: fate, told: told, released: make(chan struct{})}
	p.reset()
}

// Release lets the requests arrive that are held, and all that will be.
func (p *Link) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.judge.released)
}

// exchange passes requests and answers one after the other until either end is
// closed or a request is lost.
func (p *Link) exchange(client, server net.Conn, j *judge) {
	for {
		request, err := readFrame(client)
		if err != nil || !p.pass() {
			return
		}
		met := Produce{Code: NoAnswer}
		topic, partition, produces := produced(request)
		if produces {
			met.Topic, met.Partition, met.Fate = topic, partition, j.fate(topic, partition)
		}
		switch met.Fate {
		case Lost:
			j.told(met)
			abort(client)
			return
		case Held:
			j.told(met)
			select {
			case <-j.released:
			case <-p.stop:
				return
			}
		}
		if _, err := server.Write(request); err != nil {
			return
		}
		answer, err := readFrame(server)
		if err != nil || !p.pass() {
			return
		}
		if met.Fate == Unanswered {
			abort(client)
		} else if _, err = client.Write(answer); err != nil && met.Fate != Held {
			return
		}
		if produces {
			met.Code = answered(answer)
			j.told(met)
		}
		if met.Fate == Unanswered {
			return
		}
	}
}

// abort makes the peer see a reset.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// readFrame reads a request or an answer, with the four bytes of its length.
func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > 200<<20 {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	frame := append(size[:], make([]byte, n)...)
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}

// errShort is what a frame gets that ends too early; none of ours does.
var errShort = errors.New("the frame is too short")

// fields reads the head of a frame.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) skip(n int) []byte {
	if n < 0 || n > len(f.rest) {
		n, f.err = 0, errShort
	}
	head := f.rest[:n]
	f.rest = f.rest[n:]
	return head
}

func (f *fields) int16() int16 {
	if b := f.skip(2); len(b) == 2 {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (f *fields) int32() int32 {
	if b := f.skip(4); len(b) == 4 {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (f *fields) text() string { return string(f.skip(max(0, int(f.int16())))) }

// produced reads the first topic and partition of a produce request of a version
// before 9, which has other lengths; ok is false for any other request.
func produced(request []byte) (topic string, partition int32, ok bool) {
	f := fields{rest: request}
	f.skip(4)
	const produce = 0
	if key, version := f.int16(), f.int16(); key != produce || version < 3 || version > 8 {
		return "", 0, false
	}
	f.skip(4)     // correlation id
	f.text()      // client id
	f.text()      // transactional id
	f.skip(2 + 4) // acks, timeout
	f.skip(4)     // number of topics
	topic = f.text()
	f.skip(4) // number of partitions
	partition = f.int32()
	return topic, partition, f.err == nil
}

// answered reads the code of an answer's first partition.
func answered(answer []byte) int16 {
	f := fields{rest: answer}
	f.skip(4 + 4 + 4) // length, correlation id, number of topics
	f.text()
	f.skip(4 + 4) // number of partitions, partition
	if code := f.int16(); f.err == nil {
		return code
	}
	return NoAnswer
}
