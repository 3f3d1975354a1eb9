//go:build !failpoints

package failpoint

// Hit is where the process can die.
func Hit(string) {}

// Soon is where the process can die a moment later, while it waits.
func Soon(string) {}

// Armed reports whether the process is to die at a place, for one that has to
// prepare it.
func Armed(string) bool { return false }
