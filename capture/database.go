package capture

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
)

// watchInterval is the time between two looks at publication, tables and slot.
const watchInterval = 10 * time.Second

// Database is the legacy database: the way to its catalog, its slot and its
// tables. Its methods may be called concurrently.
type Database struct {
	cfg         Config
	tables      []TableRef
	log         *slog.Logger
	reg         prometheus.Registerer
	conn        *pgconn.Config // the DSN of the start, parsed
	metrics     *slotMetrics
	every       time.Duration // of watch
	slotTimeout time.Duration
	siblings    siblings

	bound    atomic.Pointer[place] // the server of the session, where Prepare was; nil: any
	lastHost atomic.Value          // string: host:port that was right the last time
	noSystem atomic.Bool           // the role may not ask for the system identifier

	mu       sync.Mutex
	baseline *baseline // what Prepare found; nil before
}

// NewDatabase checks cfg and the table list; it does not connect. The error has
// Usage() true. A nil reg keeps the metrics unregistered.
func NewDatabase(cfg Config, tables []TableRef, log *slog.Logger, reg prometheus.Registerer) (*Database, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	conn, err := parseDSN(cfg.DSN)
	if err != nil {
		return nil, err
	}
	seen := make(map[[2]string]bool, len(tables))
	for _, t := range tables {
		name := [2]string{t.Schema, t.Name}
		switch {
		case t.Schema == "" || t.Name == "":
			return nil, &UsageError{Key: "tables", Problem: fmt.Sprintf("table %q.%q needs a schema and a name", t.Schema, t.Name)}
		case seen[name]:
			return nil, &UsageError{Key: "tables", Problem: "table " + t.String() + " is named twice"}
		}
		seen[name] = true
	}
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	d := &Database{
		cfg: cfg, tables: tables, log: log.With("stage", "capture"), reg: reg,
		conn: conn, metrics: newSlotMetrics(), every: watchInterval, slotTimeout: slotTimeout,
	}
	if err := d.metrics.register(reg); err != nil {
		return nil, fmt.Errorf("register metrics of the slot: %w", err)
	}
	return d, nil
}

// String returns the table's name for messages: schema.name.
func (t TableRef) String() string { return t.Schema + "." + t.Name }

// slotMetrics are the gauges that watch keeps.
type slotMetrics struct {
	retained prometheus.Gauge
	safe     prometheus.Gauge
}

func newSlotMetrics() *slotMetrics {
	return &slotMetrics{
		retained: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "backstory_slot_retained_bytes",
			Help: "WAL that the server keeps for the slot.",
		}),
		safe: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "backstory_slot_safe_bytes",
			Help: "WAL that may still be written before the slot is in danger; -1 without a limit.",
		}),
	}
}

func (m *slotMetrics) register(reg prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.retained, m.safe} {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}
