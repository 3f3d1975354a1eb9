package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"backstory/internal/bridge"
	"backstory/internal/screen"
)

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status --config FILE",
		Short: "What the running bridge does",
		Long:  "Ask the running bridge at http.listen for its phase, its position, its tables and how far they are read.",
		Example: `  backstory status --config configs/backstory.yaml
  backstory status --http.listen 127.0.0.1:8642 --json | jq .phase`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := configOf(cmd)
			if err != nil {
				return err
			}
			c, err := newClient(cfg.HTTP.Listen)
			if err != nil {
				return err
			}
			s, text, err := c.status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			return writeStatus(cmd.OutOrStdout(), screen.StyleOf(os.Stdout), s, time.Now())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, for programs")
	configFlags(cmd)
	return cmd
}

// writeStatus prints a status for people.
func writeStatus(w io.Writer, style screen.Style, s processStatus, now time.Time) error {
	var b strings.Builder
	slots := s.Slots
	if len(slots) == 0 {
		slots = []slotStatus{{Phase: s.Phase, Since: s.Since, Error: s.Error, Confirmed: s.Confirmed, LastCommit: s.LastCommit, Slot: s.Slot}}
	}
	for i := range slots {
		writeSlot(&b, style, &slots[i], now)
	}
	for _, t := range s.Tables {
		fmt.Fprintf(&b, "\n%s → %s\n", style.Paint(screen.Bold, t.Table), t.Aggregate)
		if t.Slot != "" {
			fmt.Fprintf(&b, "  %-12s %s\n", "slot", t.Slot)
		}
		fmt.Fprintf(&b, "  %-12s %s, %s\n", "topics", t.Events, t.Latest)
		fmt.Fprintf(&b, "  %-12s %d since the start\n", "events", t.Published)
		if len(t.EventsEnds) > 0 {
			fmt.Fprintf(&b, "  %-12s events %v, latest %v\n", "ends", t.EventsEnds, t.LatestEnds)
		}
		if t.Again > 0 {
			fmt.Fprintf(&b, "  %-12s %d rows\n", "to read again", t.Again)
		}
		if c := t.ColumnsChanged; c != nil {
			fmt.Fprintf(&b, "  %-12s %s, noticed %s; rows show it at their next change, all of them after `backstory backfill %s`\n", "columns",
				strings.Join(c.Columns, ", "), c.Since.Local().Format(time.DateTime), t.Table)
		}
		fmt.Fprintf(&b, "  %-12s %s\n", "backfill", backfillLine(t.Backfill))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeSlot prints what the bridge of a slot does.
func writeSlot(b *strings.Builder, style screen.Style, s *slotStatus, now time.Time) {
	ink := screen.Yellow
	switch s.Phase {
	case "streaming":
		ink = screen.Green
	case "failed":
		ink = screen.Red
	}
	if s.Name != "" {
		fmt.Fprintf(b, "%s ", style.Paint(screen.Bold, s.Name))
	}
	fmt.Fprintf(b, "%s since %s (%s)\n", style.Paint(ink, s.Phase), s.Since.Local().Format(time.DateTime), age(now.Sub(s.Since)))
	if s.Error != "" {
		fmt.Fprintf(b, "  %-12s %s\n", "because", s.Error)
	}
	if s.Confirmed != "" {
		fmt.Fprintf(b, "  %-12s %s\n", "confirmed", s.Confirmed)
	}
	if s.LastCommit != nil {
		fmt.Fprintf(b, "  %-12s %s (%s ago)\n", "last change", s.LastCommit.Local().Format("2006-01-02 15:04:05.000"), age(now.Sub(*s.LastCommit)))
	}
	if s.Slot != nil {
		b.WriteString(slotLines(s.Slot))
	}
}

// slotLines are the two lags: of what is not published, and of what the server
// keeps.
func slotLines(s *bridge.SlotView) string {
	if s.Error != "" {
		return fmt.Sprintf("  %-12s %s: %s\n", "slot", s.Name, s.Error)
	}
	line := fmt.Sprintf("  %-12s %s, %s behind the server's %s\n", "slot", s.Name, byteSize(s.LagBytes), s.Current)
	line += fmt.Sprintf("  %-12s %s of WAL since %s", "retained", byteSize(s.RetainedBytes), s.Restart)
	if s.WALStatus != "" {
		line += ", " + s.WALStatus
	}
	if s.SafeBytes >= 0 {
		line += ", lost after " + byteSize(s.SafeBytes) + " more"
	}
	return line + "\n"
}

// byteSize is a number of bytes for people.
func byteSize(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, exp := float64(n)/unit, 0
	for value >= unit && exp < 4 {
		value /= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[exp])
}

func backfillLine(s bridge.BackfillStatus) string {
	line := s.Phase
	if s.Phase == "none" {
		return line
	}
	line += fmt.Sprintf(", %d rows", s.Rows)
	if s.EstimatedRows > s.Rows {
		line += fmt.Sprintf(" of about %d (%d%%)", s.EstimatedRows, 100*s.Rows/s.EstimatedRows)
	}
	if s.RowsPerSecond > 0 && s.Phase != "done" {
		line += fmt.Sprintf(", %.0f/s", s.RowsPerSecond)
	}
	if s.SecondsLeft > 0 {
		line += ", " + age(time.Duration(s.SecondsLeft*float64(time.Second))) + " left"
	}
	line += fmt.Sprintf(": %d events, %d equal, %d gone", s.Events, s.Equal, s.Gone)
	if s.Where != "" {
		line += ", where " + s.Where
	}
	if s.DryRun != nil {
		line += ", dry run"
	}
	return line
}

// age is a duration in the two largest units that matter.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
