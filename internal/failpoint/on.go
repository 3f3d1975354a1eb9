//go:build failpoints

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// moment is about as long as a request is on its way.
const moment = 500 * time.Microsecond

// armed is the place of this process and how often it is passed before that.
var (
	armed = os.Getenv("BACKSTORY_TEST_FAILPOINT")
	left  atomic.Int64
	_     = parse()
)

func parse() bool {
	name, times, counted := strings.Cut(armed, ":")
	n, err := strconv.Atoi(times)
	if counted && err != nil {
		panic("BACKSTORY_TEST_FAILPOINT: " + err.Error())
	}
	armed = name
	left.Store(int64(max(n, 1)))
	return true
}

// Hit is where the process can die.
func Hit(name string) {
	if name == armed && left.Add(-1) == 0 {
		die()
	}
}

// Soon is where the process can die a moment later, while it waits.
func Soon(name string) {
	if name == armed && left.Add(-1) == 0 {
		time.AfterFunc(moment, die)
	}
}

// Armed reports whether the process is to die at a place, for one that has to
// prepare it.
func Armed(name string) bool { return name == armed && left.Load() == 1 }

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
