package testenv

import (
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
)

// shared holds the servers of the process. Tests of a package share them, so
// this is package state; Main closes it.
var shared struct {
	sync.Mutex
	open   map[string]any // *serverOf[T], by kind and version
	closer []io.Closer
}

// serverOf is a server that is being started, or was, or could not be.
type serverOf[T io.Closer] struct {
	once   sync.Once
	server T
	err    error
}

// sharedServer returns the server called name, started by the first caller. An
// error is remembered: what can't be had isn't tried for each test.
func sharedServer[T io.Closer](name string, start func() (T, error)) (T, error) {
	shared.Lock()
	if shared.open == nil {
		shared.open = make(map[string]any)
	}
	s, ok := shared.open[name].(*serverOf[T])
	if !ok {
		s = new(serverOf[T])
		shared.open[name] = s
	}
	shared.Unlock()
	s.once.Do(func() {
		s.server, s.err = start()
		if s.err == nil {
			shared.Lock()
			shared.closer = append(shared.closer, s.server)
			shared.Unlock()
		}
	})
	return s.server, s.err
}

// Main runs the tests of a package and stops the shared servers after them:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, "testenv: stop shared servers:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func closeShared() error {
	shared.Lock()
	defer shared.Unlock()
	var first error
	for _, c := range shared.closer {
		if err := c.Close(); err != nil && first == nil {
			first = err
		}
	}
	shared.closer = nil
	return first
}
