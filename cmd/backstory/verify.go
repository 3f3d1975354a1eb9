package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/screen"
	"backstory/internal/settings"
	"backstory/internal/verify"
	"backstory/sink"
	"backstory/transform"
)

// verifyOptions are the flags of verify.
type verifyOptions struct {
	asJSON   bool
	limit    int
	patience time.Duration
	scratch  string
}

func verifyCommand() *cobra.Command {
	o := &verifyOptions{}
	cmd := &cobra.Command{
		Use:   "verify --config FILE [TABLE…]",
		Short: "Compare table, state, latest topic and fold of the events, while writers write",
		Long: `Compare each row of a table with the state of the running bridge, with the newest
record of the latest topic and with the fold of all its events, at one position of
each row, while the application writes. The events themselves are checked too:
versions without a gap, positions, ids, old values, times, sources. Changes under
way are no differences; rows that can't be decided are looked at again. Where the
mapping has retention, events that it has taken are none either: what is left is
compared, and the result says of how many aggregates events were missing.

The bridge must be running, on this machine, with http.listen set. Nothing is
published, and of the database only watermarks are written into WAL. Without a
TABLE all tables of the mapping are compared. The scratch store takes about twice
the room of the table on disk.

The exit code is 0 if everything was compared and is equal, 4 if there are
differences, 1 if something could not be compared.`,
		Example: `  backstory verify --config configs/backstory.yaml
  backstory verify -c backstory.yaml public.products --json | jq '.[].differences'`,
		RunE: func(cmd *cobra.Command, args []string) error { return runVerify(cmd, args, o) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.asJSON, "json", false, "print JSON, for programs")
	flags.IntVar(&o.limit, "limit", verify.Limit, "show so many differences of a table; all are counted")
	flags.DurationVar(&o.patience, "patience", time.Minute, "how long to look again at rows that can't be decided")
	flags.StringVar(&o.scratch, "scratch-dir", "", "where the scratch store is made (default: that for temporary files)")
	configFlags(cmd)
	return cmd
}

func runVerify(cmd *cobra.Command, args []string, o *verifyOptions) error {
	cfg, err := configOf(cmd)
	if err != nil {
		return err
	}
	if o.limit < 1 || o.patience < 0 {
		return usageError{errors.New("--limit: 1 or more; --patience: 0 or more")}
	}
	p, err := newProcess(cfg, cfg.Log.logger())
	if err != nil {
		return err
	}
	tables, err := tablesNamed(p.mapping, args)
	if err != nil {
		return err
	}
	if err := bridgeStreams(cmd.Context(), cfg, tables); err != nil {
		return err
	}
	v := &verification{process: p, options: o, looks: map[*part]*look{}, line: newProgressLine(os.Stderr)}
	results, err := v.run(cmd.Context(), tables)
	if err != nil {
		return err
	}
	if o.asJSON {
		err = writeJSON(cmd.OutOrStdout(), results)
	} else {
		err = writeResults(cmd.OutOrStdout(), screen.StyleOf(os.Stdout), results)
	}
	return errors.Join(err, verdict(results))
}

// tablesNamed finds the tables that the arguments mean: all without one.
func tablesNamed(m *transform.Mapping, args []string) ([]*transform.Table, error) {
	if len(args) == 0 {
		return m.Tables, nil
	}
	var tables []*transform.Table
	for _, arg := range args {
		at := slices.IndexFunc(m.Tables, func(t *transform.Table) bool {
			return arg == t.String() || arg == t.Name || arg == t.Aggregate
		})
		if at < 0 {
			return nil, usageError{unknownTable(m, arg)}
		}
		if !slices.Contains(tables, m.Tables[at]) {
			tables = append(tables, m.Tables[at])
		}
	}
	return tables, nil
}

func unknownTable(m *transform.Mapping, name string) error {
	var known []string
	for _, t := range m.Tables {
		known = append(known, t.String(), t.Aggregate)
	}
	if near := settings.Nearest(name, known); near != "" {
		return fmt.Errorf("%s: no table of the mapping; did you mean %s?", name, near)
	}
	return fmt.Errorf("%s: no table of the mapping, which has %s", name, strings.Join(known, ", "))
}

// bridgeStreams refuses what would make differences that are none: a bridge that
// is not running, one with another mapping, and a table that it is still reading.
// It waits for a bridge that is starting.
func bridgeStreams(ctx context.Context, cfg *Config, tables []*transform.Table) error {
	s, err := streamingStatus(ctx, cfg, tables)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if err := tableStreams(s, t); err != nil {
			return err
		}
	}
	return nil
}

// streamingStatus is the status of the bridge once it streams the tables.
func streamingStatus(ctx context.Context, cfg *Config, tables []*transform.Table) (*bridge.Status, error) {
	c, err := newClient(cfg.HTTP.Listen)
	if err != nil {
		return nil, err
	}
	for begun := time.Now(); ; {
		whole, _, err := c.status(ctx)
		var absent *noBridge
		switch {
		case errors.As(err, &absent):
			return nil, refusedError{fmt.Sprintf("verify: %v; start the bridge: without it, what it has not read yet can't be told from a difference", err)}
		case err != nil:
			return nil, err
		}
		s := whole.of(tables)
		if s.Phase == "streaming" {
			return &s, nil
		}
		if time.Since(begun) > cfg.Bridge.StartupTimeout {
			return nil, refusedError{fmt.Sprintf("verify: the bridge does not stream, it is %s (%s); see `backstory status`", s.Phase, s.Error)}
		}
		select {
		case <-time.After(statusPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// statusPause is the time between two questions to a bridge that is starting.
const statusPause = 200 * time.Millisecond

func tableStreams(s *bridge.Status, t *transform.Table) error {
	at := slices.IndexFunc(s.Tables, func(b bridge.TableStatus) bool { return b.Table == t.String() })
	if at < 0 || s.Tables[at].Aggregate != t.Aggregate || s.Tables[at].Events != t.Topics.Events || s.Tables[at].Latest != t.Topics.Latest {
		return refusedError{fmt.Sprintf("verify: the running bridge does not carry %s to %s and %s; give --config the file that the bridge was started with",
			t, t.Topics.Events, t.Topics.Latest)}
	}
	if phase := s.Tables[at].Backfill.Phase; phase != "done" && phase != "none" {
		return refusedError{fmt.Sprintf("verify: the bridge is still reading %s (backfill %s); verify when `backstory status` says that it is done", t, phase)}
	}
	return nil
}

// verification is what the tables have in common.
type verification struct {
	*process
	options *verifyOptions
	looks   map[*part]*look
	line    *progressLine
}

// look is what the database has of the tables of a slot.
type look struct {
	db     *capture.Database
	report capture.Report
}

// run verifies one table after another.
func (v *verification) run(ctx context.Context, tables []*transform.Table) ([]*verify.Result, error) {
	for _, t := range tables {
		if err := v.look(ctx, v.partOf(t)); err != nil {
			return nil, err
		}
	}
	var results []*verify.Result
	for _, t := range tables {
		result, err := v.table(ctx, v.partOf(t), t)
		if err != nil {
			return nil, err
		}
		results = append(results, result)
	}
	return results, nil
}

// look asks the database for the tables of a slot and binds their mapping, once.
func (v *verification) look(ctx context.Context, of *part) error {
	if v.looks[of] != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, v.cfg.Bridge.StartupTimeout)
	defer cancel()
	db, err := v.openDatabase(of, v.log, nil)
	if err != nil {
		return err
	}
	report, err := db.Doctor(ctx)
	if err == nil {
		err = report.Err()
	}
	if err == nil {
		err = of.mapping.Bind(report.Tables)
	}
	if err == nil {
		err = reachable(ctx, v.cfg.Kafka.Brokers)
	}
	if err != nil {
		return v.of(of, fmt.Errorf("look at the tables: %w", err))
	}
	db.Bind(report.Identity)
	v.looks[of] = &look{db, report}
	return nil
}

func (v *verification) table(ctx context.Context, of *part, t *transform.Table) (_ *verify.Result, err error) {
	report := &v.looks[of].report
	at := slices.IndexFunc(report.Tables, func(i capture.TableInfo) bool { return i.Schema == t.Schema && i.Name == t.Name })
	info := report.Tables[at]
	reader, err := v.looks[of].db.OpenReader(ctx, info, capture.ReadOptions{StatementTimeout: v.cfg.Backfill.StatementTimeout})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	topics, err := sink.OpenScanner(ctx, v.cfg.Kafka, t, v.log)
	if err != nil {
		return nil, fmt.Errorf("open kafka: %w", err)
	}
	defer func() { err = errors.Join(err, topics.Close()) }()
	c, err := newClient(v.cfg.HTTP.Listen)
	if err != nil {
		return nil, err
	}
	defer v.line.clear()
	return verify.New(verify.Config{
		ChunkRows: v.cfg.Backfill.ChunkRows, RowsPerSecond: v.cfg.Backfill.RowsPerSecond, StateParts: bridge.StateParts,
		Patience: v.options.patience, Limit: v.options.limit, ScratchDir: v.options.scratch,
		Progress: func(p verify.Progress) { v.line.show(progressText(t, &p)) },
	}, of.mapping, t, info, report.Identity, reader, topics, verify.NewBridgeState(c.addr)).Run(ctx)
}

func progressText(t *transform.Table, p *verify.Progress) string {
	var text string
	switch p.Step {
	case "topics":
		text = fmt.Sprintf("reading the topics: %d events, %d latest records", p.Events, p.LatestRecords)
	case "table":
		text = fmt.Sprintf("comparing rows: %d", p.Rows)
		if p.EstimatedRows > 0 {
			text += fmt.Sprintf(" of about %d (%d%%)", p.EstimatedRows, min(100, 100*p.Rows/p.EstimatedRows))
		}
	case "keys":
		text = fmt.Sprintf("comparing keys that are not in the table: %d keys in all", p.Keys)
	default:
		text = "looking again"
	}
	if p.Pending > 0 {
		text += fmt.Sprintf(", %d to look at again", p.Pending)
	}
	if p.Found > 0 {
		text += fmt.Sprintf(", %d differences", p.Found)
	}
	return t.String() + ": " + text
}

// progressLine is one line on a terminal that is written over and over; elsewhere
// it is nothing.
type progressLine struct {
	out  io.Writer // nil: no terminal
	last time.Time
}

// progressEvery is the least time between two writings of the line.
const progressEvery = 100 * time.Millisecond

func newProgressLine(f *os.File) *progressLine {
	if screen.StyleOf(f).Width == 0 {
		return &progressLine{}
	}
	return &progressLine{out: f}
}

func (l *progressLine) show(text string) {
	if l.out == nil || time.Since(l.last) < progressEvery {
		return
	}
	l.last = time.Now()
	_, _ = fmt.Fprintf(l.out, "\r\x1b[K%s", text) // a terminal that is gone is no failure
}

func (l *progressLine) clear() {
	if l.out != nil && !l.last.IsZero() {
		_, _ = fmt.Fprint(l.out, "\r\x1b[K")
	}
}

// writeResults prints the results for people.
func writeResults(w io.Writer, style screen.Style, results []*verify.Result) error {
	var b strings.Builder
	for _, r := range results {
		sign, ink := "✓", screen.Green
		if !r.Equal {
			sign, ink = "✗", screen.Red
		}
		fmt.Fprintf(&b, "%s %s\n", style.Paint(ink, sign), r)
		for i := range r.Differences {
			fmt.Fprintf(&b, "    %s\n", &r.Differences[i])
		}
		if more := r.Found - len(r.Differences); more > 0 {
			fmt.Fprintf(&b, "    … and %d more (--limit)\n", more)
		}
		for _, key := range r.Unsettled {
			fmt.Fprintf(&b, "    %s key %q: could not be compared: it was changing, or waiting to be read by the bridge, all the time\n", r.Table, key)
		}
		c := &r.Compared
		fmt.Fprintf(&b, "  %d aggregates in the state, %d looks repeated, %s\n", c.StateKeys, c.LookedAgain, r.Ended.Sub(r.Began).Round(time.Millisecond))
		if c.EventsGone+c.EventsCut > 0 {
			fmt.Fprintf(&b, "  retention has taken all events of %d aggregates, and the first ones of %d: these were compared by what is left\n", c.EventsGone, c.EventsCut)
		}
		fmt.Fprintf(&b, "  events read:  %s\n  latest read:  %s\n", spansText(c.EventsRead), spansText(c.LatestRead))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func spansText(spans []sink.Span) string {
	words := make([]string, len(spans))
	for i, s := range spans {
		words[i] = fmt.Sprintf("%d: %d–%d", s.Partition, s.Start, s.End)
	}
	return strings.Join(words, ", ")
}

// verdict is the error of the results: differences first.
func verdict(results []*verify.Result) error {
	found, missed := 0, 0
	for _, r := range results {
		found, missed = found+r.Found, missed+r.NotCompared
	}
	switch {
	case found > 0:
		return differentError{fmt.Sprintf("verify: %d differences", found)}
	case missed > 0:
		return fmt.Errorf("verify: %d keys could not be compared; run it again, or with a longer --patience", missed)
	}
	return nil
}
