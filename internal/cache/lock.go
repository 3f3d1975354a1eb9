package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pollLock is how often a waiting process asks for the lock again. flock has no
// wait that a context could end.
const pollLock = 20 * time.Millisecond

// lock is an advisory lock between processes; the kernel releases it when its
// holder dies, so that there is no stale one.
type lock struct {
	file *os.File
}

func lockFile(ctx context.Context, path string) (*lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	tick := time.NewTicker(pollLock)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &lock{file: f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s, held by another process: %w", path, context.Cause(ctx)), f.Close())
		case <-tick.C:
		}
	}
}

// release gives the lock up. The file stays: removing it would let two waiters
// lock two different files. Closing an unwritten file can't lose anything.
func (l *lock) release() { _ = l.file.Close() }
