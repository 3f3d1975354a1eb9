package testenv_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"backstory/internal/testenv"
)

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// dial returns a connection, and a function that sends a line and reads it back.
func dial(t *testing.T, addr string) (net.Conn, func(timeout time.Duration) error) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	r := bufio.NewReader(c)
	return c, func(timeout time.Duration) error {
		if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("ping\n")); err != nil {
			return err
		}
		_, err := r.ReadString('\n')
		return err
	}
}

const soon, long = 50 * time.Millisecond, 10 * time.Second

func TestProxyCutAndHeal(t *testing.T) {
	t.Parallel()
	p := testenv.Proxy(t, echo(t))
	_, ping := dial(t, p.Addr())
	if err := ping(long); err != nil {
		t.Fatalf("healed: %v", err)
	}
	p.Cut()
	if err := ping(long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v on a cut connection, want an end of it", err)
	}
	if c, err := net.Dial("tcp", p.Addr()); err == nil {
		t.Errorf("a cut proxy takes connections: %v", c.Close())
	}
	p.Heal(t)
	_, ping = dial(t, p.Addr())
	if err := ping(long); err != nil {
		t.Errorf("healed again: %v", err)
	}
}

func TestProxyReset(t *testing.T) {
	t.Parallel()
	p := testenv.Proxy(t, echo(t))
	_, ping := dial(t, p.Addr())
	if err := ping(long); err != nil {
		t.Fatal(err)
	}
	p.Reset()
	if err := ping(long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v on a reset connection, want an end of it", err)
	}
	if _, ping = dial(t, p.Addr()); ping(long) != nil {
		t.Error("no new connection after a reset")
	}
}

func TestProxyStall(t *testing.T) {
	t.Parallel()
	p := testenv.Proxy(t, echo(t))
	c, ping := dial(t, p.Addr())
	if err := ping(long); err != nil {
		t.Fatal(err)
	}
	p.Stall()
	if err := ping(soon); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v on a stalled connection, want the deadline", err)
	}
	p.Heal(t)
	if err := c.SetDeadline(time.Now().Add(long)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len("ping\n"))); err != nil {
		t.Errorf("what was held back did not arrive: %v", err)
	}
}

func TestProxySlow(t *testing.T) {
	t.Parallel()
	p := testenv.Proxy(t, echo(t))
	_, ping := dial(t, p.Addr())
	p.Slow(soon)
	begin := time.Now()
	if err := ping(long); err != nil {
		t.Fatal(err)
	}
	if got, want := time.Since(begin), 2*soon; got < want {
		t.Errorf("there and back in %s, want at least %s", got, want)
	}
}
