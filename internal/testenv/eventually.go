package testenv

import (
	"time"
)

// pollCondition is how often Eventually looks.
const pollCondition = 10 * time.Millisecond

// Eventually waits until cond returns nil. After timeout it fails the test with
// the last error that cond gave. It must be called from the test's goroutine.
func Eventually(tb TB, timeout time.Duration, cond func() error) {
	tb.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(pollCondition)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			tb.Fatalf("not within %s: %v", timeout, err)
		case <-tb.Context().Done():
			tb.Fatalf("the test ended: %v", err)
		}
	}
}
