package main

import (
	"flag"
	"os"
	"strconv"
	"testing"
	"time"

	"backstory/internal/testenv"
)

var seedFlag = flag.Uint64("seed", 24686, "order and length of the faults; 0: another one at each run")

func TestMain(m *testing.M) { testenv.Main(m) }

// A minute of faults of all kinds loses nothing, doubles nothing and leaves
// nothing wrong. Their order is always the same, so that a change is judged by
// what it does and not by its draw; the moments at which they hit are not.
// BACKSTORY_CHAOS_FAULTS makes it longer; make chaos draws.
func TestChaos(t *testing.T) {
	o := defaultOptions()
	o.log, o.dir, o.seed, o.faults = t.Output(), t.TempDir(), *seedFlag, 30
	o.alter = false // see options
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	if text := os.Getenv("BACKSTORY_CHAOS_FAULTS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("BACKSTORY_CHAOS_FAULTS: %v", err)
		}
		o.faults = n
	}
	t.Logf("seed %d", o.seed)
	s := startServers(t, os.Getenv("BACKSTORY_TEST_PG_VERSION"), 1)
	if err := run(t.Context(), o, s); err != nil {
		t.Fatalf("seed %d: %v", o.seed, err)
	}
}
