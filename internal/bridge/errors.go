package bridge

import (
	"errors"
	"fmt"
)

// Refusal says why the bridge does not stream, and the way out. The command
// exits with 3.
type Refusal struct {
	Thing, Problem, Cure string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%s: %s; %s", r.Thing, r.Problem, r.Cure)
}

// Refused marks the error as one that no retry mends.
func (r *Refusal) Refused() bool { return true }

// restarts reports whether err only ended the session: the slot is taken again,
// the topics fenced and folded, and the stream goes on.
func restarts(err error) bool {
	var r interface{ Restart() bool }
	return errors.As(err, &r) && r.Restart() && !refuses(err)
}

// refuses reports whether any part of err is final.
func refuses(err error) bool {
	var r interface{ Refused() bool }
	var u interface{ Usage() bool }
	return errors.As(err, &r) && r.Refused() || errors.As(err, &u) && u.Usage()
}
