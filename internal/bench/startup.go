package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
)

func startupCommand(c *common) *cobra.Command {
	var rows, products int
	cmd := &cobra.Command{
		Use:   "startup",
		Short: "From the start to the first change, and the rebuild of a lost state",
		Long: `Start the bridge with one change waiting and see when its event is there: with
the state of the table, and with a state to which synthetic products were added.
Then remove the state and see how fast it is folded up from the topics.`,
		Example: "  go run ./internal/bench startup --rows 1000000 --products 10000000 --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.startup(r, c.runs, rows, products) })
		},
	}
	cmd.Flags().IntVar(&rows, "rows", 200_000, "rows of the table, and records to rebuild from")
	cmd.Flags().IntVar(&products, "products", 1_000_000, "products of the large state")
	return cmd
}

// productTable is the number that the only mapped table has in the state.
const productTable = 1

func (l *lab) startup(r *report, runs, rows, products int) error {
	rig, err := l.primed("startup", rows)
	if err != nil {
		return err
	}
	for range runs {
		if err := rig.firstChange(r.row(fmt.Sprintf("%d products", rows))); err != nil {
			return err
		}
	}
	for range runs {
		if err := rig.rebuild(r.row("rebuild")); err != nil {
			return err
		}
	}
	if err := rig.enlarge(0, products-rows); err != nil {
		return err
	}
	for range runs {
		if err := rig.firstChange(r.row(fmt.Sprintf("%d products", products))); err != nil {
			return err
		}
	}
	r.note("images of synthetic products have %d bytes.", syntheticBytes)
	return nil
}

// syntheticBytes is the size of the images that are added to a state.
const syntheticBytes = 350

// enlarge adds synthetic products, from the given number on, to the state of a bridge that is stopped. The
// bridge can't tell them from those of a table: it looks at keys that change.
func (r *rig) enlarge(from, products int) (err error) {
	if products <= 0 {
		return nil
	}
	store, err := openStore(r.l.ctx(), r.stateDir())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return fill(store, productTable, from, from+products, syntheticBytes)
}

// firstChange starts the bridge with one change waiting.
func (r *rig) firstChange(row *row) error {
	if err := r.l.exec("UPDATE products SET price = price + 0.01 WHERE id = 1"); err != nil {
		return err
	}
	before, err := r.l.sums(r.events, r.latest)
	if err != nil {
		return err
	}
	b, err := r.start(unixSocket)
	if err != nil {
		return err
	}
	since, err := b.streaming()
	if err != nil {
		return err
	}
	last, _, err := b.follow(before, 1)
	if err != nil {
		return err
	}
	m, err := memoryOf(b.proc.PID())
	if err != nil {
		return err
	}
	row.add("streams s", since.Sub(b.started).Seconds())
	row.add("first change s", last.at.Sub(b.started).Seconds())
	row.add("CPU s", last.bridge)
	row.add("peak MB", m.peak)
	return b.stop()
}

// rebuild starts the bridge without its state.
func (r *rig) rebuild(row *row) error {
	if err := os.RemoveAll(r.stateDir()); err != nil {
		return err
	}
	b, err := r.start(unixSocket)
	if err != nil {
		return err
	}
	recovering, err := b.await(startLimit, time.Millisecond, func(s status) bool { return s.Phase == "recovering" || s.Phase == "streaming" })
	if err != nil {
		return err
	}
	streaming, err := b.streaming()
	if err != nil {
		return err
	}
	u, err := r.l.usage(b.proc.PID())
	if err != nil {
		return err
	}
	if recovering.Phase != "recovering" {
		return errors.New("the rebuild was over before it was seen: take more rows")
	}
	m, err := memoryOf(b.proc.PID())
	if err != nil {
		return err
	}
	records, err := r.rebuilt()
	if err != nil {
		return err
	}
	seconds := streaming.Sub(recovering.Since).Seconds()
	row.add("records/s", float64(records)/seconds)
	row.add("records", float64(records))
	row.add("s", seconds)
	row.add("CPU µs a record", u.bridge/float64(records)*1e6)
	row.add("peak MB", m.peak)
	if err := b.imported(startLimit); err != nil { // the table is compared with it
		return err
	}
	return b.stop()
}

// rebuilt is the number of records that the bridge's log says were folded last.
func (r *rig) rebuilt() (n int, err error) {
	f, err := os.Open(r.logFile())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var line struct {
			Message string `json:"msg"`
			Records int    `json:"records"`
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Records > 0 {
			n = line.Records
		}
	}
	if n == 0 {
		err = errors.New("the log of the bridge has no rebuild")
	}
	return n, errors.Join(err, lines.Err())
}
