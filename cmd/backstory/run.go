package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"backstory/internal/bridge"
	"backstory/internal/verify"
	"backstory/internal/web"
)

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Run the bridge until SIGTERM",
		Long: `Run the bridge: prepare what is missing (publication, slot, topics), import the
rows that are there if the state is new, then stream until SIGTERM. A second
instance with the same slot waits and takes over when the first one ends. Where the
mapping divides the tables over several slots, one process runs them all.`,
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

// gcPercent is the garbage, in percent of what is in use, at which it is collected.
// Nearly all memory is in buffers that are used again, so collections stay rare, and
// the peak of an import is a tenth below that of Go's 100.
const gcPercent = 50

// collectEarly sets it, unless the operator has chosen another by GOGC.
func collectEarly() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// runBridge runs the bridges of the slots, with their HTTP server, until ctx is done.
func runBridge(ctx context.Context, cfg *Config, log *slog.Logger) error {
	return withProcess(ctx, cfg, log, func(p *process) error { return p.runWithServer(ctx) })
}

// runWithServer runs the bridges and the HTTP server until ctx is done or one of
// them fails, which ends the others.
func (p *process) runWithServer(ctx context.Context) error {
	if p.cfg.HTTP.Listen == "" {
		return p.run(ctx)
	}
	server, err := web.Open(p.cfg.HTTP, web.Views{
		Status:  func() any { return p.status(true) },
		Ready:   func() error { return ready(p.status(false).Status) },
		Metrics: p.reg,
	}, p.log)
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }() // Run has closed it, or was never reached
	p.serveBackfills(server)
	server.Handle("POST /state", verify.EntryHandler(p.memory))
	server.Handle("POST /state/keys", verify.KeyHandler(p.memory))
	server.Handle("POST /state/sources", verify.SourceHandler(p.memory))
	g, ctx := errgroup.WithContext(ctx)
	serving, stop := context.WithCancel(ctx)
	g.Go(func() error { // ends when ctx does, after what was taken is durable
		defer stop()
		return p.run(ctx)
	})
	g.Go(func() error { return server.Run(serving) }) // ends after the bridges
	return g.Wait()
}

// memory is the state that has an aggregate.
func (p *process) memory(aggregate string) verify.Memory {
	for _, t := range p.mapping.Tables {
		if t.Aggregate == aggregate {
			return p.partOf(t).bridge
		}
	}
	return nil
}

// ready says what keeps changes from flowing.
func ready(s bridge.Status) error {
	switch {
	case s.Phase == "streaming" && s.Error == "":
		return nil
	case s.Error != "":
		return fmt.Errorf("%s: %s", s.Phase, s.Error)
	}
	return errors.New(s.Phase)
}
