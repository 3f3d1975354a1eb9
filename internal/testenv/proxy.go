package testenv

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// Link is a proxy on the loopback address, whose connections a test can cut, stall and
// slow down. It begins healed.
type Link struct {
	target string
	addr   string

	mu    sync.Mutex
	l     net.Listener          // nil while cut
	conns map[net.Conn]struct{} // both ends of each connection
	gate  chan struct{}         // closed while bytes flow
	delay time.Duration         // of each read
	judge *judge                // nil: bytes pass as they are
	stop  chan struct{}         // closed at the end
	wg    sync.WaitGroup
}

// Proxy starts a proxy to target (host:port). It ends with the test.
func Proxy(tb TB, target string) *Link {
	tb.Helper()
	p, err := newLink(target)
	if err != nil {
		tb.Fatalf("proxy to %s: %v", target, err)
	}
	tb.Cleanup(p.close)
	return p
}

func newLink(target string) (*Link, error) {
	p := &Link{target: target, conns: make(map[net.Conn]struct{}), gate: make(chan struct{}), stop: make(chan struct{})}
	close(p.gate)
	if err := p.listen("127.0.0.1:0"); err != nil {
		return nil, err
	}
	return p, nil
}

// Addr is where the proxy listens, the same for its whole life.
func (p *Link) Addr() string { return p.addr }

// Cut resets all connections and refuses new ones until Heal.
func (p *Link) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.l != nil {
		_ = p.l.Close()
		p.l = nil
	}
	p.reset()
}

// Reset resets all connections; new ones are taken.
func (p *Link) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reset()
}

// reset makes the peers see a reset and not an orderly end.
func (p *Link) reset() {
	for c := range p.conns {
		abort(c)
	}
}

// Stall lets no byte pass, in both directions, and keeps the connections open,
// until Heal.
func (p *Link) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flowing() {
		p.gate = make(chan struct{})
	}
}

// Slow holds back everything that one read brings (at most 32 KiB) for delay.
func (p *Link) Slow(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = delay
}

// Turn leads new connections to another server, and resets those there are.
func (p *Link) Turn(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
	p.reset()
}

// Heal ends Cut, Stall and Slow.
func (p *Link) Heal(tb TB) {
	tb.Helper()
	if err := p.Mend(); err != nil {
		tb.Fatal(err)
	}
}

// Mend is Heal for a program that is no test.
func (p *Link) Mend() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = 0
	if !p.flowing() {
		close(p.gate)
	}
	if p.l != nil {
		return nil
	}
	if err := p.listen(p.addr); err != nil {
		return fmt.Errorf("heal the proxy: %w", err)
	}
	return nil
}

func (p *Link) flowing() bool {
	select {
	case <-p.gate:
		return true
	default:
		return false
	}
}

func (p *Link) listen(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	p.l, p.addr = l, l.Addr().String()
	p.wg.Go(func() { p.accept(l) }) // ends when l is closed
	return nil
}

func (p *Link) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c) }) // ends when either end is closed
	}
}

func (p *Link) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	target, j := p.target, p.judge
	p.mu.Unlock()
	server, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		return
	}
	defer server.Close()
	if !p.add(client, server) {
		return
	}
	defer p.remove(client, server)
	if j != nil {
		p.exchange(client, server, j)
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.pipe(server, client) })
	both.Go(func() { p.pipe(client, server) })
	both.Wait()
}

func (p *Link) pipe(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if !p.pass() {
				return
			}
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits for as long as the proxy holds bytes back; false at its end.
func (p *Link) pass() bool {
	p.mu.Lock()
	gate, delay := p.gate, p.delay
	p.mu.Unlock()
	if delay > 0 {
		wait := time.NewTimer(delay)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-p.stop:
			return false
		}
	}
	select {
	case <-gate:
		return true
	case <-p.stop:
		return false
	}
}

// add refuses a connection that came while the proxy was being cut.
func (p *Link) add(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.l == nil {
		return false
	}
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
	return true
}

func (p *Link) remove(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

func (p *Link) close() {
	p.Cut()
	close(p.stop)
	p.wg.Wait()
}

// Close ends the proxy, for one that belongs to no test.
func (p *Link) Close() error {
	p.close()
	return nil
}
