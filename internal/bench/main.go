package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"backstory/internal/testenv"
)

func main() { os.Exit(run()) }

// run returns the exit code: 1 if something could not be measured.
func run() int {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// common are the flags that every benchmark has.
type common struct {
	json    bool
	runs    int
	buffers string // shared_buffers of Postgres
}

func rootCommand() *cobra.Command {
	var c common
	root := &cobra.Command{
		Use:           "bench",
		Short:         "Measure the bridge on a real Postgres and a real Kafka",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	flags := root.PersistentFlags()
	flags.BoolVar(&c.json, "json", false, "print the raw figures as JSON instead of a table")
	flags.IntVar(&c.runs, "runs", 3, "runs of each measurement; the table has their median")
	flags.StringVar(&c.buffers, "shared-buffers", "2GB", "memory that Postgres takes for its buffers")
	root.AddCommand(
		catchupCommand(&c), latencyCommand(&c), backfillCommand(&c), stateCommand(&c), outageCommand(&c),
		giantCommand(&c), startupCommand(&c), growthCommand(&c), profileCommand(&c), peersCommand(&c), slotsCommand(&c), standbyCommand(&c),
	)
	return root
}

// measure runs f with servers of its own and prints what it found. What was found
// before an error is printed too.
func (c *common) measure(cmd *cobra.Command, f func(l *lab, r *report) error) error {
	r := newReport(cmd.Name())
	err := testenv.Program(cmd.Context(), os.Stderr, func(tb testenv.TB) {
		l, err := newLab(tb, c.buffers)
		if err == nil {
			err = f(l, r)
		}
		if err != nil {
			tb.Fatal(err)
		}
	})
	return c.print(cmd, r, err)
}

// print writes the report, if there is something in it, and passes err on.
func (c *common) print(cmd *cobra.Command, r *report, err error) error {
	if len(r.Rows) == 0 {
		return err
	}
	write := r.table
	if c.json {
		write = r.json
	}
	if werr := write(cmd.OutOrStdout()); err == nil {
		err = werr
	}
	return err
}
