package bridge

import (
	"errors"
	"fmt"
	"time"

	"backstory/capture"
)

// Config bounds the loop.
type Config struct {
	// PieceBytes is about how much event data is encoded into one publication;
	// at most three of them are in memory. Default 4 MiB.
	PieceBytes int `mapstructure:"piece_bytes" yaml:"piece_bytes"`
	// PieceEvents bounds the events of one publication. Default 10000.
	PieceEvents int `mapstructure:"piece_events" yaml:"piece_events"`
	// SyncInterval is how often the state is flushed to disk and the slot
	// confirmed. It delays the release of WAL, not the events. Default 500 ms.
	SyncInterval time.Duration `mapstructure:"sync_interval" yaml:"sync_interval"`
	// StopTimeout bounds the orderly end after SIGTERM. What is not published by
	// then comes again at the next start. Default 30 s.
	StopTimeout time.Duration `mapstructure:"stop_timeout" yaml:"stop_timeout"`
	// StartupTimeout is how long the first start may wait for servers that can't
	// be reached. Later the bridge waits for ever. Default 30 s.
	StartupTimeout time.Duration `mapstructure:"startup_timeout" yaml:"startup_timeout"`
	// RenewInterval is the age at which the Kafka session is fenced anew, far
	// below producer.id.expiration.ms (1 day): brokers that have forgotten the
	// session neither fence for it nor know what they have of it, so the sink ends
	// one of 23 hours. 1 min to 12 h. Default 6 h.
	RenewInterval time.Duration `mapstructure:"renew_interval" yaml:"renew_interval"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		PieceBytes:     4 << 20,
		PieceEvents:    10_000,
		SyncInterval:   500 * time.Millisecond,
		StopTimeout:    30 * time.Second,
		StartupTimeout: 30 * time.Second,
		RenewInterval:  6 * time.Hour,
	}
}

// Validate reports every value that is out of bounds, by key.
func (c Config) Validate() error {
	var errs []error
	if c.PieceBytes < 1<<16 || c.PieceBytes > 64<<20 {
		errs = append(errs, errors.New("piece_bytes: from 65536 to 67108864"))
	}
	if c.PieceEvents < 1 || c.PieceEvents > 1_000_000 {
		errs = append(errs, errors.New("piece_events: from 1 to 1000000"))
	}
	if c.SyncInterval < 10*time.Millisecond || c.SyncInterval > time.Minute {
		errs = append(errs, errors.New("sync_interval: from 10ms to 1m"))
	}
	if c.StopTimeout <= 0 {
		errs = append(errs, errors.New("stop_timeout: above 0"))
	}
	if c.StartupTimeout <= 0 {
		errs = append(errs, errors.New("startup_timeout: above 0"))
	}
	if c.RenewInterval < time.Minute || c.RenewInterval > 12*time.Hour {
		errs = append(errs, errors.New("renew_interval: from 1m to 12h"))
	}
	return errors.Join(errs...)
}

// Bounds of BackfillConfig.
const (
	maxChunkRows = 1_000_000
	maxParallel  = 64
)

// BackfillConfig says how tables are read.
type BackfillConfig struct {
	// Initial imports the rows that are there at the first start. Without it
	// the bridge streams from the slot's start and imports nothing. Default true.
	Initial bool `mapstructure:"initial" yaml:"initial"`
	// ChunkRows is the size of a chunk, 1 to 1,000,000 rows. Default 10000.
	ChunkRows int `mapstructure:"chunk_rows" yaml:"chunk_rows"`
	// RowsPerSecond bounds the load on the database by each table that is read; 0
	// means no limit.
	RowsPerSecond int `mapstructure:"rows_per_second" yaml:"rows_per_second"`
	// Parallel is how many tables are read at a time, 1 to 64. Default 1.
	Parallel int `mapstructure:"parallel" yaml:"parallel"`
	// MaxStandbyLag is the lag of a standby's replay, in bytes of WAL, above which
	// reading waits; 0: never. A role without pg_monitor sees no standby. Default
	// 64 MiB.
	MaxStandbyLag int64 `mapstructure:"max_standby_lag_bytes" yaml:"max_standby_lag_bytes"`
	// StatementTimeout is how long the server may work on one chunk, 1 s to 24 h. A
	// transaction of a run lasts no longer. Default 10 min.
	StatementTimeout time.Duration `mapstructure:"statement_timeout" yaml:"statement_timeout"`
	// OnSchemaChange says what to do when the columns of a table have changed: none
	// leaves each row as it is until its next change; compare compares the table with
	// the state, beside the stream. Default none.
	OnSchemaChange string `mapstructure:"on_schema_change" yaml:"on_schema_change"`
}

// Values of BackfillConfig.OnSchemaChange. Empty is none.
const (
	schemaNone    = "none"
	schemaCompare = "compare"
)

// DefaultBackfillConfig returns the defaults.
func DefaultBackfillConfig() BackfillConfig {
	return BackfillConfig{Initial: true, ChunkRows: 10_000, Parallel: 1, MaxStandbyLag: 64 << 20,
		StatementTimeout: capture.DefaultStatementTimeout, OnSchemaChange: schemaNone}
}

// wants reports whether a table is to be read on.
func (c BackfillConfig) wants(run importRun) bool {
	return !run.Done && (run.Reconcile || run.Asked || c.Initial)
}

// Validate reports every value that is out of bounds, by key.
func (c BackfillConfig) Validate() error {
	var errs []error
	if c.ChunkRows < 1 || c.ChunkRows > maxChunkRows {
		errs = append(errs, fmt.Errorf("chunk_rows: from 1 to %d", maxChunkRows))
	}
	if c.RowsPerSecond < 0 {
		errs = append(errs, errors.New("rows_per_second: 0 (no limit) or above"))
	}
	if c.Parallel < 1 || c.Parallel > maxParallel {
		errs = append(errs, fmt.Errorf("parallel: from 1 to %d", maxParallel))
	}
	if c.MaxStandbyLag < 0 {
		errs = append(errs, errors.New("max_standby_lag_bytes: 0 (never wait) or above"))
	}
	if c.OnSchemaChange != "" && c.OnSchemaChange != schemaNone && c.OnSchemaChange != schemaCompare {
		errs = append(errs, errors.New("on_schema_change: none or compare"))
	}
	if c.StatementTimeout < time.Second || c.StatementTimeout > 24*time.Hour {
		errs = append(errs, errors.New("statement_timeout: from 1s to 24h"))
	}
	return errors.Join(errs...)
}
