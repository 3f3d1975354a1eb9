package state

import (
	"errors"
	"fmt"
)

// ErrBatchClosed is returned by the methods of a batch that is committed,
// dropped, or followed by a later one.
var ErrBatchClosed = errors.New("the batch is closed: it was committed, dropped, or a later one was begun")

// ErrClosed is returned once the store is closed.
var ErrClosed = errors.New("the state store is closed")

// Refusal says that the store must not be used as it is, and what to do.
type Refusal struct {
	Thing   string // what it is about: a file and offset, or the directory
	Problem string
	Cure    string
}

// Error returns thing, problem and cure in one line.
func (r *Refusal) Error() string { return r.Thing + ": " + r.Problem + "; " + r.Cure }

// Refused tells the callers, who do not import this type, that a person has to act.
func (r *Refusal) Refused() bool { return true }

// damaged reports bytes that are not what was written.
func damaged(dir, name string, offset int64, problem string) *Refusal {
	return &Refusal{
		Thing:   fmt.Sprintf("state file %s/%s at byte %d", dir, name, offset),
		Problem: problem,
		Cure:    rebuildCure(dir),
	}
}

func rebuildCure(dir string) string {
	return fmt.Sprintf("move %s away and start again: the state is rebuilt from the topics", dir)
}
