package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/state"
	"backstory/internal/verify"
	"backstory/internal/web"
	"backstory/transform"
)

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Run the bridge until SIGTERM",
		Long: `Run the bridge: prepare what is missing (publication, slot, topics), import the
rows that are there if the state is new, then stream until SIGTERM. A second
instance with the same slot waits and takes over when the first one ends.`,
		Example: `  backstory run --config configs/backstory.yaml
  BACKSTORY_SOURCE_DSN_FILE=/run/secrets/dsn backstory run -c backstory.yaml --log-format json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := configOf(cmd)
			if err != nil {
				return err
			}
			log := cfg.Log.logger()
			log.Info("starting", "version", versionLine())
			return runBridge(cmd.Context(), cfg, log)
		},
	}
	configFlags(cmd)
	return cmd
}

// runBridge runs the bridge with its HTTP server until ctx is done.
func runBridge(ctx context.Context, cfg *Config, log *slog.Logger) error {
	return withBridge(ctx, cfg, log, func(p *parts) error {
		return runWithServer(ctx, cfg.HTTP, p.bridge, p.reg, log)
	})
}

// parts are what a bridge is put together from.
type parts struct {
	bridge *bridge.Bridge
	db     *database
	reg    *prometheus.Registry
}

// withBridge opens from the durable end to the source, calls use, and closes in
// reverse.
func withBridge(ctx context.Context, cfg *Config, log *slog.Logger, use func(*parts) error) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	mapping, err := transform.LoadMapping(cfg.Mapping)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	source, err := openDatabase(cfg, mapping, log, reg)
	if err != nil {
		return err
	}
	store, err := state.Open(ctx, cfg.State, log, reg)
	if err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	kafka := &topics{cfg: cfg.Kafka, mapping: mapping, slot: cfg.Source.Slot, timeout: cfg.Bridge.StartupTimeout, log: log, reg: reg}
	defer func() { err = errors.Join(err, kafka.Close()) }()
	db := &database{Database: source, mapping: mapping, topics: kafka, store: store}
	b := bridge.New(cfg.Bridge, cfg.Backfill, db, kafka, store, mapping, log, reg)
	return use(&parts{bridge: b, db: db, reg: reg})
}

func openDatabase(cfg *Config, m *transform.Mapping, log *slog.Logger, reg prometheus.Registerer) (*capture.Database, error) {
	db, err := capture.NewDatabase(cfg.Source.Config, m.Refs(), log, reg)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	return db, nil
}

// runWithServer runs the bridge and its HTTP server until ctx is done or one of
// them fails, which ends the other.
func runWithServer(ctx context.Context, cfg web.Config, b *bridge.Bridge, metrics prometheus.Gatherer, log *slog.Logger) error {
	if cfg.Listen == "" {
		return b.Run(ctx)
	}
	server, err := web.Open(cfg, web.Views{
		Status:  func() any { return statusWithSlot(b) },
		Ready:   func() error { return ready(b.Status()) },
		Metrics: metrics,
	}, log)
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }() // Run has closed it, or was never reached
	serveBackfills(server, b)
	server.Handle("POST /state", verify.EntryHandler(b))
	server.Handle("POST /state/keys", verify.KeyHandler(b))
	g, ctx := errgroup.WithContext(ctx)
	serving, stop := context.WithCancel(ctx)
	g.Go(func() error { // ends when ctx does, after what was taken is durable
		defer stop()
		return b.Run(ctx)
	})
	g.Go(func() error { return server.Run(serving) }) // ends after the bridge
	return g.Wait()
}

// statusWithSlot is what /status shows.
func statusWithSlot(b *bridge.Bridge) bridge.Status {
	s := b.Status()
	slot := b.Slot()
	s.Slot = &slot
	return s
}

// ready says what keeps changes from flowing.
func ready(s bridge.Status) error {
	switch {
	case s.Phase == "streaming":
		return nil
	case s.Error != "":
		return fmt.Errorf("%s: %s", s.Phase, s.Error)
	}
	return errors.New(s.Phase)
}
