package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"backstory/internal/child"
)

// Program runs f with the servers of this package outside of go test: logs go to
// w, and when f has returned or called Fatal, what it registered is cleaned up and
// the shared servers are stopped. A server that can't be had is an error. It
// returns what f reported by Errorf and Fatalf.
func Program(ctx context.Context, w io.Writer, f func(tb TB)) error {
	ctx, cancel := context.WithCancel(ctx)
	p := &program{w: w, ctx: ctx}
	done := make(chan struct{})
	go func() { // ends with f; Fatal must be able to end it
		defer close(done)
		f(p)
	}()
	<-done
	cancel()
	p.cleanUp()
	return errors.Join(append(p.errs, closeShared())...)
}

// program is the TB of Program.
type program struct {
	w   io.Writer
	ctx context.Context // of f; TB has it as a method

	mu      sync.Mutex
	errs    []error
	cleanup []func()
}

func (p *program) Helper() {}

func (p *program) Log(args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.w, args...)
}

func (p *program) Logf(format string, args ...any) { p.Log(fmt.Sprintf(format, args...)) }

func (p *program) Errorf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

func (p *program) Fatal(args ...any) { p.Fatalf("%s", fmt.Sprint(args...)) }

func (p *program) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	runtime.Goexit()
}

// Skipf is an error here: nobody asked for a run without the server.
func (p *program) Skipf(format string, args ...any) { p.Fatalf(format, args...) }

func (p *program) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanup = append(p.cleanup, f)
}

func (p *program) Context() context.Context { return p.ctx }

func (p *program) TempDir() string {
	scratch, err := child.NewScratch("program")
	if err != nil {
		p.Fatalf("make a directory: %v", err)
	}
	p.Cleanup(func() {
		if err := scratch.Remove(); err != nil && !errors.Is(err, os.ErrNotExist) {
			p.Errorf("remove a directory: %v", err)
		}
	})
	return scratch.Dir
}

func (p *program) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.errs) > 0
}

// cleanUp does what was registered, the last first, also what is registered
// meanwhile. Each may call Fatal.
func (p *program) cleanUp() {
	for {
		p.mu.Lock()
		n := len(p.cleanup)
		if n == 0 {
			p.mu.Unlock()
			return
		}
		f := p.cleanup[n-1]
		p.cleanup = p.cleanup[:n-1]
		p.mu.Unlock()
		done := make(chan struct{})
		go func() { // ends with f
			defer close(done)
			f()
		}()
		<-done
	}
}
