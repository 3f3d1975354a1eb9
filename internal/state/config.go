package state

import (
	"errors"
	"fmt"
)

// Bounds and default of Config.SegmentBytes.
const (
	DefaultSegmentBytes = 256 << 20
	MinSegmentBytes     = 1 << 20
	MaxSegmentBytes     = 1 << 30
)

// Config says where the store is and how it is cut into files.
type Config struct {
	// Dir holds the files of the store and nothing else. It is created if it is
	// missing. Required.
	Dir string `yaml:"dir"`
	// SegmentBytes is the size of the groups at which a file of the log is closed
	// and the next one begun; only a batch that is larger goes beyond it. Disk use
	// is about twice the live records plus one segment. 1 MiB to 1 GiB, default 256 MiB.
	SegmentBytes int64 `yaml:"segment_bytes"`
}

// Validate reports all that is wrong. A zero SegmentBytes stands for the default.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: a directory is needed"))
	}
	if c.SegmentBytes != 0 && (c.SegmentBytes < MinSegmentBytes || c.SegmentBytes > MaxSegmentBytes) {
		errs = append(errs, fmt.Errorf("segment_bytes: %d is outside %d to %d", c.SegmentBytes, MinSegmentBytes, MaxSegmentBytes))
	}
	return errors.Join(errs...)
}

// Usage is what a wrong Config yields.
type Usage struct{ err error }

// Error names every wrong key.
func (u *Usage) Error() string { return "state: " + u.err.Error() }

// Unwrap gives the errors of Validate.
func (u *Usage) Unwrap() error { return u.err }

// Usage tells the callers, who do not import this type, that the configuration is wrong.
func (u *Usage) Usage() bool { return true }
