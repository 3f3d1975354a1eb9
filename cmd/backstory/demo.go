package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"backstory/configs"
	"backstory/internal/child"
	"backstory/internal/demo"
	"backstory/internal/pgserver"
	"backstory/internal/screen"
	"backstory/sink"
	"backstory/transform"
)

// logWidth cuts lines where the output is no terminal.
const logWidth = 160

// drainTimeout bounds the wait for the last change to reach both topics, and
// topicPause is the time between two looks for topics that are not there yet.
const (
	drainTimeout = 30 * time.Second
	topicPause   = 100 * time.Millisecond
)

// demoOptions are the flags of demo.
type demoOptions struct {
	dir      string
	version  string
	duration time.Duration
	rate     float64
	products int
	seed     uint64
	asJSON   bool
}

func demoCommand() *cobra.Command {
	o := &demoOptions{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it work: a shop, its database, the bridge and both topics, all in here",
		Long: `Start a throw-away Postgres and an embedded broker, a small shop that writes its
table of products, and the bridge with the reference configuration, and show what
arrives in each topic. Ctrl-C ends it: then both topics are compared with the
table, and everything is removed. Nothing is needed but this program; without an
installed Postgres one is fetched once.`,
		Example: `  backstory demo
  backstory demo --rate 10 --duration 20s
  backstory demo --dir ./demo     # keeps the data; another run goes on with it`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return usageError{err}
			}
			return runDemo(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.dir, "dir", "", "keep database, topics, state and logs in this `directory` (default: a temporary one)")
	flags.StringVar(&o.version, "postgres", "", "major `version` of Postgres, 10 to 18 (default: what is installed)")
	flags.DurationVar(&o.duration, "duration", 0, "end after this time (default: at Ctrl-C)")
	flags.Float64Var(&o.rate, "rate", 1.5, "transactions a second")
	flags.IntVar(&o.products, "products", 8, "products in the table before the bridge starts")
	flags.Uint64Var(&o.seed, "seed", 1, "of what happens in the shop")
	flags.BoolVar(&o.asJSON, "json", false, "print one JSON object a line, for programs")
	return cmd
}

func (o *demoOptions) validate() error {
	var errs []error
	if o.rate <= 0 || o.rate > 1000 {
		errs = append(errs, errors.New("--rate: above 0 and at most 1000"))
	}
	if o.duration < 0 {
		errs = append(errs, errors.New("--duration: 0 (until Ctrl-C) or more"))
	}
	if o.products < 1 || o.products > 100_000 {
		errs = append(errs, errors.New("--products: from 1 to 100000"))
	}
	return errors.Join(errs...)
}

// runDemo starts the parts from the servers to the shop, and ends them in
// reverse. A signal ends the shop alone: the summary comes after it.
func runDemo(ctx context.Context, o *demoOptions, out io.Writer) (err error) {
	ctx, stop := endOfReader(ctx)
	defer stop()
	d := &demonstration{demoOptions: o, out: reading{out}, screen: newScreen(os.Stdout), ledger: demo.NewLedger()}
	if d.screen.Style.Width == 0 {
		d.screen.Style.Width = logWidth // the state of a product is long, and not the point
	}
	if err := d.makeDir(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.removeDir()) }()
	// The servers outlive the signal, which is for the shop.
	alive := context.WithoutCancel(ctx)
	if err := d.start(ctx); err != nil {
		if ended(ctx, err) {
			return d.close(alive)
		}
		return errors.Join(err, d.close(alive))
	}
	err = d.play(ctx, alive)
	if errors.Is(err, errNoReader) {
		err = nil // the write may fail before the signal is here
	}
	return errors.Join(err, d.close(alive))
}

// endOfReader ends the demo in order also when its terminal is closed, or the
// program that reads its output ends: the servers are to go, and the directory.
func endOfReader(ctx context.Context) (context.Context, context.CancelFunc) {
	signals := []os.Signal{syscall.SIGPIPE}
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signals = append(signals, syscall.SIGHUP)
	}
	return signal.NotifyContext(ctx, signals...)
}

// errNoReader is a write to a pipe or a terminal that is closed.
var errNoReader = errors.New("nobody reads the output")

// reading marks the errors of writes that nobody reads.
type reading struct{ io.Writer }

func (r reading) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EIO) {
		err = fmt.Errorf("%w: %w", errNoReader, err)
	}
	return n, err
}

// demonstration has the parts while they run.
type demonstration struct {
	*demoOptions
	out      io.Writer
	screen   *screen.Screen
	scratch  *child.Scratch // nil: dir is kept
	postgres *pgserver.Server
	broker   *demo.Broker
	shop     *demo.Shop
	ledger   *demo.Ledger
	mapping  *transform.Mapping
	cfg      *Config
	log      *slog.Logger
	logFile  *os.File
}

// makeDir makes the directory of the run. A temporary one is swept away by the
// next demo if this process is killed.
func (d *demonstration) makeDir() (err error) {
	if d.dir == "" {
		if d.scratch, err = child.NewScratch("demo"); err == nil {
			d.dir = d.scratch.Dir
		}
	} else if d.dir, err = filepath.Abs(d.dir); err == nil {
		err = os.MkdirAll(d.dir, 0o755)
	}
	if err != nil {
		return fmt.Errorf("directory of the demo: %w", err)
	}
	return nil
}

func (d *demonstration) removeDir() error {
	if d.scratch == nil {
		return nil
	}
	return d.scratch.Remove()
}

// start brings up what the bridge needs, with some products in the table.
func (d *demonstration) start(ctx context.Context) (err error) {
	if _, ok, err := pgserver.Installed(ctx, d.version); err == nil && !ok {
		d.note("no such Postgres is installed: fetching one into the cache, if it is not there yet (15 MB) …")
	}
	d.note("starting Postgres …")
	options := pgserver.Options{Version: d.version, Fast: true}
	if d.scratch == nil {
		options.Dir = filepath.Join(d.dir, "postgres")
	}
	if d.postgres, err = pgserver.Start(ctx, options); err != nil {
		return err
	}
	if d.broker, err = demo.StartBroker(filepath.Join(d.dir, "kafka")); err != nil {
		return err
	}
	dsn := d.postgres.DSN("postgres")
	if d.shop, err = demo.OpenShop(ctx, dsn, d.seed); err != nil {
		return err
	}
	if err := d.shop.Stock(ctx, d.products); err != nil {
		return err
	}
	if err := d.configure(dsn); err != nil {
		return err
	}
	if d.log, err = d.openLog(); err != nil {
		return err
	}
	d.note("Postgres %s, Kafka %s; %d products were there before anybody watched", d.postgres.Addr(), d.broker.Addr(), d.shop.Products())
	host, port, err := net.SplitHostPort(d.postgres.Addr())
	if err != nil {
		return err
	}
	d.note("to change one: psql -h %s -p %s -U postgres -c 'UPDATE products SET stock = 0 WHERE id = 1'", host, port)
	d.note("Ctrl-C ends it")
	return nil
}

// configure makes the reference configuration that of these servers.
func (d *demonstration) configure(dsn string) error {
	d.cfg = defaultConfig()
	d.cfg.Source.DSN = dsn
	d.cfg.Kafka.Brokers = []string{d.broker.Addr()}
	d.cfg.State.Dir = filepath.Join(d.dir, "state")
	d.cfg.Mapping = filepath.Join(d.dir, "products.yaml")
	d.cfg.HTTP.Listen = "127.0.0.1:0"
	if err := os.WriteFile(d.cfg.Mapping, configs.Products, 0o644); err != nil {
		return fmt.Errorf("mapping of the demo: %w", err)
	}
	var err error
	d.mapping, err = transform.LoadMapping(d.cfg.Mapping)
	return err
}

// openLog keeps the bridge's log out of the view.
func (d *demonstration) openLog() (*slog.Logger, error) {
	file, err := os.OpenFile(filepath.Join(d.dir, "bridge.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log of the demo: %w", err)
	}
	d.logFile = file
	return slog.New(slog.NewTextHandler(file, nil)), nil
}

// play runs bridge, view and shop until the signal or the duration, then waits
// until the topics agree with the table, and sums up.
func (d *demonstration) play(ctx, alive context.Context) error {
	running, stop := context.WithCancel(alive)
	defer stop()
	g, running := errgroup.WithContext(running)
	g.Go(func() error { return runBridge(running, d.cfg, d.log) })
	g.Go(func() error { return d.watch(running) })
	g.Go(func() error { // ends first; what it returns ends the others
		defer stop()
		if err := d.trade(ctx, running); err != nil {
			return err
		}
		return d.sumUp(running)
	})
	return g.Wait()
}

// watch shows both topics and keeps the ledger of them.
func (d *demonstration) watch(ctx context.Context) error {
	topics := d.mapping.Tables[0].Topics
	w := &recordWriter{out: d.out, asJSON: d.asJSON, screen: d.screen}
	patience := time.NewTimer(d.cfg.Bridge.StartupTimeout)
	defer patience.Stop()
	for {
		err := sink.Tail(ctx, d.cfg.Kafka, []string{topics.Events, topics.Latest}, sink.FromStart(), true, d.log, func(r *transform.Stored) error {
			if err := d.ledger.Add(r); err != nil {
				return err
			}
			return w.write(r)
		})
		if ended(ctx, err) {
			return nil
		}
		if d.ledger.Records(transform.Events) > 0 {
			return err
		}
		select { // the bridge has not made the topics yet
		case <-time.After(topicPause):
		case <-patience.C:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// trade lets the shop do one thing after another until ctx is done, which is no
// error, or running is.
func (d *demonstration) trade(ctx, running context.Context) error {
	if d.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.duration)
		defer cancel()
	}
	tick := time.NewTicker(time.Duration(float64(time.Second) / d.rate))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-running.Done():
			return context.Cause(running)
		case <-tick.C:
		}
		if d.ledger.Records(transform.Latest) < d.products {
			continue // the import first, so that its events can be told apart
		}
		if err := d.shop.Step(running); err != nil {
			return err
		}
	}
}

// close ends what start began, in reverse.
func (d *demonstration) close(ctx context.Context) error {
	var errs []error
	if d.shop != nil {
		errs = append(errs, d.shop.Close(ctx))
	}
	if d.broker != nil {
		d.broker.Close()
	}
	if d.postgres != nil {
		errs = append(errs, d.postgres.Close())
	}
	if d.logFile != nil {
		errs = append(errs, d.logFile.Close())
	}
	return errors.Join(errs...)
}

// note tells people what goes on; programs get records only.
func (d *demonstration) note(format string, args ...any) {
	if !d.asJSON {
		fmt.Fprintln(d.out, d.screen.Style.Paint(screen.Dim, "· "+fmt.Sprintf(format, args...)))
	}
}
