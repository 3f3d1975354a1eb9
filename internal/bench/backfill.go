package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
)

// backfillOptions are the flags of backfill.
type backfillOptions struct {
	rows    int
	warm    int
	against string // path of another build
	profile string // directory
}

func backfillCommand(c *common) *cobra.Command {
	var o backfillOptions
	cmd := &cobra.Command{
		Use:   "backfill",
		Short: "The first import of a table, beside COPY",
		Long: `Let a new bridge import a table, with a new slot, a new state and new topics
each time. Before it COPY reads the same table to nowhere. --warm imports come first and are
not counted: a broker that has just started is still compiling.

--against measures another build of the bridge in turn with this one. --profile adds the
samples of two more runs up by step, and keeps their CPU profile and their execution trace
(go tool trace -pprof=sync says who waited for whom) in a directory.`,
		Example: "  go run ./internal/bench backfill --rows 2000000 --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.backfill(r, c.runs, o) })
		},
	}
	cmd.Flags().IntVar(&o.rows, "rows", 200_000, "rows of the table")
	cmd.Flags().IntVar(&o.warm, "warm", 2, "imports that are not counted")
	cmd.Flags().StringVar(&o.against, "against", "", "another build of the bridge, to be measured too")
	cmd.Flags().StringVar(&o.profile, "profile", "", "directory that profiles are kept in; empty: none are taken")
	return cmd
}

// builds are the programs to be measured: the row's name, and a path.
func (o backfillOptions) builds(l *lab) [][2]string {
	if o.against == "" {
		return [][2]string{{"import", l.binary}}
	}
	return [][2]string{{"import, other", o.against}, {"import", l.binary}}
}

func (l *lab) backfill(r *report, runs int, o backfillOptions) error {
	if err := l.products(o.rows); err != nil {
		return err
	}
	for range o.warm {
		if err := l.importBy(l.binary, newReport("").row("warm"), o.rows); err != nil {
			return err
		}
	}
	builds := o.builds(l)
	for range runs {
		for _, build := range builds {
			if err := l.importBy(build[1], r.row(build[0]), o.rows); err != nil {
				return err
			}
		}
		slices.Reverse(builds)
	}
	r.note("table of %d rows; all µs is the CPU of bridge, Postgres and Kafka together, so that n cores import at most n million rows/s divided by it.", o.rows)
	r.note("foreign cores are those of the bridge's run.")
	if o.profile == "" {
		return nil
	}
	return l.profileImport(r, o)
}

// importBy measures one import by a program with new files, topics and slot.
func (l *lab) importBy(binary string, row *row, rows int, env ...string) error {
	l.imports++
	rig, err := l.newRig(fmt.Sprintf("import%d", l.imports))
	if err != nil {
		return err
	}
	rig.binary = binary
	if err := rig.importOnce(row, rows, env...); err != nil {
		return err
	}
	return rig.remove()
}

// profileImport imports twice more: with a CPU profile, and with an execution trace.
func (l *lab) profileImport(r *report, o backfillOptions) error {
	dir, err := filepath.Abs(o.profile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	binary, err := l.buildProfiling()
	if err != nil {
		return err
	}
	cpu := filepath.Join(dir, "import-cpu.pprof")
	if err := l.importBy(binary, newReport("").row(""), o.rows, "BENCH_CPU_PROFILE="+cpu); err != nil {
		return err
	}
	if err := addSteps(l, r, cpu, o.rows); err != nil {
		return err
	}
	return l.importBy(binary, newReport("").row(""), o.rows, "BENCH_TRACE="+filepath.Join(dir, "import-trace"))
}

func (r *rig) importOnce(row *row, rows int, env ...string) error {
	idle, err := r.l.usage(0)
	if err != nil {
		return err
	}
	limit, err := r.l.copyOut()
	if err != nil {
		return err
	}
	copied, err := r.l.usage(0)
	if err != nil {
		return err
	}
	b, err := r.start(unixSocket, env...)
	if err != nil {
		return err
	}
	since, err := b.streaming()
	if err != nil {
		return err
	}
	if len(env) > 0 {
		if err := b.proc.Signal(syscall.SIGUSR1); err != nil {
			return err
		}
	}
	before, err := r.l.usage(b.proc.PID())
	if err != nil {
		return err
	}
	after, _, err := b.follow(map[string]int64{}, int64(rows)) // the topics are new
	if err != nil {
		return err
	}
	if len(env) > 0 {
		if err := b.proc.Signal(syscall.SIGUSR2); err != nil {
			return err
		}
	}
	m, err := memoryOf(b.proc.PID())
	if err != nil {
		return err
	}
	if err := b.stop(); err != nil {
		return err
	}
	n, seconds, u := float64(rows), after.at.Sub(since).Seconds(), after.since(before)
	row.add("rows/s", n/seconds)
	row.add("COPY rows/s", n/limit.Seconds())
	row.add("ratio", limit.Seconds()/seconds)
	row.add("bridge µs", u.bridge/n*1e6)
	row.add("postgres µs", u.postgres/n*1e6)
	row.add("kafka µs", u.kafka/n*1e6)
	row.add("of it compiling µs", u.compilers/n*1e6)
	row.add("all µs", (u.bridge+u.postgres+u.kafka)/n*1e6)
	row.add("COPY's postgres µs", copied.since(idle).postgres/n*1e6)
	row.add("peak MB", m.peak)
	row.add("foreign cores", u.foreign(after.at.Sub(before.at)))
	r.l.logf("%s: %.0f rows/s, COPY %.0f/s, ratio %.2f, bridge %.2f + postgres %.2f + kafka %.2f (compiling %.2f) + bench %.2f µs, foreign %.2f cores", row.Name, n/seconds, n/limit.Seconds(),
		limit.Seconds()/seconds, u.bridge/n*1e6, u.postgres/n*1e6, u.kafka/n*1e6, u.compilers/n*1e6, u.self/n*1e6, u.foreign(after.at.Sub(before.at)))
	return nil
}

// copyOut is how long COPY takes to send the whole table.
func (l *lab) copyOut() (time.Duration, error) {
	dsn, err := l.dsn(unixSocket)
	if err != nil {
		return 0, err
	}
	conn, err := pgx.Connect(l.ctx(), dsn)
	if err != nil {
		return 0, err
	}
	defer conn.Close(l.ctx())
	began := time.Now()
	_, err = conn.PgConn().CopyTo(l.ctx(), io.Discard, "COPY products TO STDOUT")
	return time.Since(began), err
}
