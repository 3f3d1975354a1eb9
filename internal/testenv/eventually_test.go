package testenv_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"backstory/internal/testenv"
)

// recorder is a test that notes how it failed.
type recorder struct {
	testing.TB
	fatal string
}

func (*recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestEventually(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		after time.Duration // the condition holds
		fatal string
	}{
		{name: "at once"},
		{name: "in time", after: 900 * time.Millisecond},
		{name: "too late", after: 1100 * time.Millisecond, fatal: "not within 1s: not yet"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{TB: t}
				begin, done := time.Now(), make(chan struct{})
				go func() { // Fatalf ends the goroutine
					defer close(done)
					testenv.Eventually(r, time.Second, func() error {
						if time.Since(begin) < tt.after {
							return errors.New("not yet")
						}
						return nil
					})
				}()
				<-done
				if !strings.HasPrefix(r.fatal, tt.fatal) || (r.fatal == "") != (tt.fatal == "") {
					t.Errorf("got %q, want %q", r.fatal, tt.fatal)
				}
			})
		})
	}
}
