package capture

import (
	"errors"
	"fmt"
	"regexp"
)

// Config says which database is captured and how.
type Config struct {
	// DSN is the connection string of the legacy database, as a URL or as
	// key=value pairs; the PG* environment variables fill what it leaves out.
	// The role needs REPLICATION and SELECT on the mapped tables. No default.
	DSN string `yaml:"dsn" mapstructure:"dsn"`

	// ReadDSN returns the connection string of now, where that may change while the
	// program runs: a file in which somebody changes the password. It is called for
	// each connection. Nil: DSN stays.
	ReadDSN func() (string, error) `yaml:"-" mapstructure:"-"`

	// Slot names the logical replication slot: 1 to 63 of a–z, 0–9 and _.
	// Default "backstory".
	Slot string `yaml:"slot" mapstructure:"slot"`

	// Publication names the publication: 1 to 63 bytes. Default "backstory".
	Publication string `yaml:"publication" mapstructure:"publication"`

	// Create permits Prepare to create the publication and the slot, and to add
	// mapped tables to the publication. Default true.
	Create bool `yaml:"create" mapstructure:"create"`

	// ColumnList limits a publication that Prepare creates to the captured
	// columns. It saves the server's and the network's time, but afterwards
	// dropping or retyping a listed column, and moving the primary key to a
	// column outside the list, fails in the application. Postgres 15 and later, not
	// for tables with REPLICA IDENTITY FULL. Default false.
	ColumnList bool `yaml:"column_list" mapstructure:"column_list"`

	// Failover says whether the slot is one that standbys copy, so that it is there
	// after a fail-over: "auto" and "on" make it so from Postgres 17 on, also one
	// that exists, when it is taken. Where that cannot be "auto" goes on without,
	// "on" refuses. "off" leaves the slot as it is. Default "auto".
	Failover string `yaml:"failover" mapstructure:"failover"`

	// StandbyDSN is the connection string of a standby that may become the primary.
	// The doctor looks there whether the slot is copied; nothing else uses it, and
	// nothing is written there. Empty: it does not look. Default empty.
	StandbyDSN string `yaml:"standby_dsn" mapstructure:"standby_dsn"`

	// BatchBytes bounds, in bytes, the values that one Batch or Chunk holds; a
	// single row may exceed it. 64 KiB to 1 GiB. Default 4 MiB.
	BatchBytes int `yaml:"batch_bytes" mapstructure:"batch_bytes"`
}

// Bounds of Config.BatchBytes.
const (
	minBatchBytes = 64 << 10
	maxBatchBytes = 1 << 30
)

// Values of Config.Failover.
const (
	failoverAuto = "auto"
	failoverOn   = "on"
	failoverOff  = "off"
)

// nameBytes is NAMEDATALEN − 1: what Postgres keeps of an identifier.
const nameBytes = 63

var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// DefaultConfig returns the defaults; DSN is left for the caller to fill.
func DefaultConfig() Config {
	return Config{Slot: "backstory", Publication: "backstory", Create: true, Failover: failoverAuto, BatchBytes: 4 << 20}
}

// Validate reports every key with an unusable value, one error each, joined.
// A DSN never appears in a message, because it may hold a password.
func (c Config) Validate() error {
	var errs []error
	if _, err := parseDSN(c.DSN); err != nil {
		errs = append(errs, err)
	}
	if c.StandbyDSN != "" {
		if _, err := parseDSN(c.StandbyDSN); err != nil {
			var usage *UsageError
			if errors.As(err, &usage) {
				usage.Key = "standby_dsn"
			}
			errs = append(errs, err)
		}
	}
	switch c.Failover {
	case failoverAuto, failoverOn, failoverOff:
	default:
		errs = append(errs, &UsageError{Key: "failover", Problem: fmt.Sprintf("auto, on or off, not %q", c.Failover)})
	}
	if !slotName.MatchString(c.Slot) {
		errs = append(errs, &UsageError{Key: "slot",
			Problem: fmt.Sprintf("%q is no slot name: use 1 to 63 of a-z, 0-9 and _", c.Slot)})
	}
	if c.Publication == "" || len(c.Publication) > nameBytes {
		errs = append(errs, &UsageError{Key: "publication",
			Problem: fmt.Sprintf("a name of 1 to %d bytes is needed", nameBytes)})
	}
	if c.BatchBytes < minBatchBytes || c.BatchBytes > maxBatchBytes {
		errs = append(errs, &UsageError{Key: "batch_bytes",
			Problem: fmt.Sprintf("%d is outside %d to %d", c.BatchBytes, minBatchBytes, maxBatchBytes)})
	}
	return errors.Join(errs...)
}
