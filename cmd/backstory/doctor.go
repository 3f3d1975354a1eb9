package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/screen"
	"backstory/internal/state"
	"backstory/sink"
	"backstory/transform"
)

func doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor --config FILE",
		Short: "Check database, mapping and Kafka, and say what mends each finding",
		Long: `Run every check that precedes a start and change nothing. Each finding says what is
so and what mends it. The exit code is 0 if the bridge would start, 2 if the
configuration is wrong, 3 if something would be refused, 1 if a server could not
be asked.`,
		Example: `  backstory doctor --config configs/backstory.yaml
  backstory doctor -c backstory.yaml --json | jq '.findings[] | select(.level != "ok")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := configOf(cmd)
			if err != nil {
				return err
			}
			if err := cfg.Validate(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), cfg.Bridge.StartupTimeout,
				fmt.Errorf("no answer within bridge.startup_timeout (%s)", cfg.Bridge.StartupTimeout))
			defer cancel()
			diagnosis, err := diagnose(ctx, cfg)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), diagnosis)
			} else {
				err = writeDiagnosis(cmd.OutOrStdout(), screen.StyleOf(os.Stdout), diagnosis)
			}
			return errors.Join(err, diagnosis.verdict())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, for programs")
	configFlags(cmd)
	return cmd
}

// diagnosis is what all checks found.
type diagnosis struct {
	Server   string            `json:"server"` // Postgres's version
	Findings []capture.Finding `json:"findings"`
	err      error             // why something could not be asked, or is wrong in the configuration
}

// diagnose asks both servers, for each slot. A mapping that cannot be read is an
// error, since nothing could be said without it; everything else is a finding.
func diagnose(ctx context.Context, cfg *Config) (*diagnosis, error) {
	p, err := newProcess(cfg, slog.New(slog.DiscardHandler)) // the findings say it
	if err != nil {
		return nil, err
	}
	d := &diagnosis{}
	d.ok("mapping", "%s: %s", cfg.Mapping, tablesOf(p.mapping))
	if err := p.noStateLeft(); err != nil {
		d.add("state", err)
	}
	for _, part := range p.parts {
		if err := d.examine(ctx, p, part); err != nil {
			return nil, err
		}
	}
	d.askBridge(ctx, cfg)
	return d, nil
}

// askBridge tells what only the bridge knows, if one runs here.
func (d *diagnosis) askBridge(ctx context.Context, cfg *Config) {
	c, err := newClient(cfg.HTTP.Listen)
	if err != nil {
		return // it has no address: that is no mistake
	}
	s, _, err := c.status(ctx)
	if err != nil {
		return // none runs
	}
	for _, t := range s.Tables {
		if c := t.ColumnsChanged; c != nil {
			d.find(capture.Finding{Check: "table " + t.Table + ", columns", Level: capture.LevelWarning,
				Found: fmt.Sprintf("%s changed (noticed %s): rows that nobody has changed since have the former ones in the topics",
					strings.Join(c.Columns, ", "), c.Since.Format(time.RFC3339)),
				Cure: "backstory backfill " + t.Table + ", or backfill.on_schema_change: compare"})
		}
	}
}

// examine asks for what one slot needs.
func (d *diagnosis) examine(ctx context.Context, p *process, of *part) error {
	db, err := p.openDatabase(of, p.log, nil)
	if err != nil {
		return err
	}
	report, err := db.Doctor(ctx)
	if err != nil {
		d.add("postgres", err)
	}
	d.Server = cmp.Or(d.Server, report.Server)
	for _, f := range slices.Concat(report.Findings, db.ExamineStandby(ctx, report.Identity)) {
		d.find(f)
	}
	if report.Tables != nil {
		d.checkColumns(of.mapping, report.Tables)
	}
	d.checkKafka(ctx, of, report.Identity, p.log)
	return nil
}

// find notes a finding. What the server says of itself, each slot would say again.
func (d *diagnosis) find(f capture.Finding) {
	if !slices.Contains(d.Findings, f) {
		d.Findings = append(d.Findings, f)
	}
}

// checkColumns compares the mapping with the tables.
func (d *diagnosis) checkColumns(m *transform.Mapping, tables []capture.TableInfo) {
	if err := m.Bind(tables); err != nil {
		d.add("mapping", err)
		return
	}
	d.ok("columns of the mapping", "are in the tables")
}

// checkKafka asks the brokers for the topics and their settings.
func (d *diagnosis) checkKafka(ctx context.Context, of *part, id capture.Identity, log *slog.Logger) {
	inspect := func() ([]string, error) { return sink.Inspect(ctx, of.cfg.Kafka, of.mapping, id, of.name(), log) }
	missing, err := inspect()
	if foreign(err) {
		missing, err = d.inspectKnowing(ctx, of, inspect)
	}
	if err != nil {
		for _, err := range each(err) {
			d.add("kafka", err)
		}
		return
	}
	d.ok("kafka", "%s: reachable; topics that are there have the right settings", strings.Join(of.cfg.Kafka.Brokers, ", "))
	for _, topic := range missing {
		d.ok("topic "+topic, "will be created")
	}
}

// foreign reports whether a topic has records of another source.
func foreign(err error) bool {
	for _, err := range each(err) {
		if refusal := new(sink.Refusal); errors.As(err, &refusal) && refusal.Foreign != "" {
			return true
		}
	}
	return false
}

// inspectKnowing repeats an inspection that has found another source, with what the
// state knows of former ones. Where a process has the state, that one has compared.
func (d *diagnosis) inspectKnowing(ctx context.Context, of *part, inspect func() ([]string, error)) ([]string, error) {
	tables := of.mapping.Tables
	there, err := state.Exists(of.cfg.State.Dir)
	if err != nil {
		return nil, err
	}
	if there {
		store, err := state.Open(ctx, of.cfg.State, slog.New(slog.DiscardHandler), nil)
		switch refusal := new(state.Refusal); {
		case errors.As(err, &refusal):
			d.find(capture.Finding{Check: "source of the topics", Level: capture.LevelWarning,
				Found: "topics have records of another source, and the state, which knows the former ones, can't be read: " + err.Error(),
				Cure:  "stop the bridge and ask again"})
			for _, t := range tables {
				t.Adopts = true // all else is still to be looked at
			}
		case err != nil:
			return nil, err
		default:
			if err := errors.Join(bridge.RecallFormer(store, tables), store.Close()); err != nil {
				return nil, err
			}
		}
	}
	return inspect()
}

func (d *diagnosis) ok(check, format string, args ...any) {
	d.find(capture.Finding{Check: check, Level: capture.LevelOK, Found: fmt.Sprintf(format, args...)})
}

// add makes a finding of each error, and remembers it for the exit code.
func (d *diagnosis) add(check string, err error) {
	d.err = errors.Join(d.err, err)
	f := capture.Finding{Check: check, Level: capture.LevelError, Found: err.Error()}
	var refusal *sink.Refusal
	var ours *bridge.Refusal
	var conn *capture.ConnError
	switch {
	case errors.As(err, &refusal):
		f.Check, f.Found, f.Cure = refusal.Thing, refusal.Problem, refusal.Cure
	case errors.As(err, &ours):
		f.Check, f.Found, f.Cure = ours.Thing, ours.Problem, ours.Cure
	case errors.As(err, &conn) && conn.Cure != "":
		f.Found, f.Cure = conn.Step+": "+conn.Err.Error(), conn.Cure
	}
	d.find(f)
}

// verdict is the error of the worst finding; nil if the bridge would start. It
// does not repeat the findings.
func (d *diagnosis) verdict() error {
	wrong := 0
	for _, f := range d.Findings {
		if f.Level == capture.LevelError {
			wrong++
		}
	}
	report := capture.Report{Findings: d.Findings}
	text := fmt.Sprintf("%d of %d checks keep the bridge from starting", wrong, len(d.Findings))
	switch exitCode(errors.Join(d.err, report.Err())) {
	case exitDone:
		return nil
	case exitUsage:
		return usageError{errors.New(text)}
	case exitRefused:
		if d.err == nil || exitCode(d.err) == exitRefused {
			return refusedError{text}
		}
	}
	return errors.New(text)
}

func tablesOf(m *transform.Mapping) string {
	words := make([]string, len(m.Tables))
	for i, t := range m.Tables {
		words[i] = t.String() + " → " + t.Aggregate
	}
	return strings.Join(words, ", ")
}

// writeDiagnosis prints the findings for people, each with its cure below it.
func writeDiagnosis(w io.Writer, style screen.Style, d *diagnosis) error {
	var b strings.Builder
	if d.Server != "" {
		fmt.Fprintf(&b, "Postgres %s\n", d.Server)
	}
	counts := map[capture.Level]int{}
	for _, f := range d.Findings {
		counts[f.Level]++
		sign, ink := "✓", screen.Green
		switch f.Level {
		case capture.LevelWarning:
			sign, ink = "!", screen.Yellow
		case capture.LevelError:
			sign, ink = "✗", screen.Red
		}
		fmt.Fprintf(&b, "%s %s: %s\n", style.Paint(ink, sign), style.Paint(screen.Bold, f.Check), f.Found)
		if f.Cure != "" {
			fmt.Fprintf(&b, "    → %s\n", strings.ReplaceAll(f.Cure, "\n", "\n      "))
		}
	}
	fmt.Fprintf(&b, "\n%d ok, %d to think about, %d wrong\n", counts[capture.LevelOK], counts[capture.LevelWarning], counts[capture.LevelError])
	_, err := io.WriteString(w, b.String())
	return err
}

func writeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}
