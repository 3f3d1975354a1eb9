package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"backstory/internal/bridge"
	"backstory/internal/screen"
)

// statusTimeout bounds the question to the running bridge.
const statusTimeout = 5 * time.Second

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status --config FILE",
		Short: "What the running bridge does",
		Long:  "Ask the running bridge at http.listen for its phase, positions, lags, tables and backfill.",
		Example: `  backstory status --config configs/backstory.yaml
  backstory status --http.listen 127.0.0.1:8642 --json | jq .phase`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := configOf(cmd)
			if err != nil {
				return err
			}
			text, err := askStatus(cmd.Context(), cfg.HTTP.Listen)
			if err != nil {
				return err
			}
			if asJSON {
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			var s bridge.Status
			if err := json.Unmarshal(text, &s); err != nil {
				return fmt.Errorf("status of the bridge at %s: %w", cfg.HTTP.Listen, err)
			}
			return writeStatus(cmd.OutOrStdout(), screen.StyleOf(os.Stdout), s, time.Now())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, for programs")
	configFlags(cmd)
	return cmd
}

// askStatus fetches /status from where the bridge listens.
func askStatus(ctx context.Context, listen string) ([]byte, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, usageError{fmt.Errorf("http.listen: %q is not host:port; without it a running bridge cannot be asked", listen)}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1" // the bridge listens everywhere, here too
	}
	addr := net.JoinHostPort(host, port)
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/status", nil)
	if err != nil {
		return nil, usageError{fmt.Errorf("http.listen: %w", err)}
	}
	client := &http.Client{Transport: &http.Transport{Proxy: nil}} // a proxy does not know our loopback
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("no bridge answers at %s: it is not running, or http.listen is another (%w)", addr, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 8<<20))
	if err != nil {
		return nil, fmt.Errorf("read the status at %s: %w", addr, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status at %s: %s: %s", addr, response.Status, strings.TrimSpace(string(text)))
	}
	return text, nil
}

// writeStatus prints a status for people.
func writeStatus(w io.Writer, style screen.Style, s bridge.Status, now time.Time) error {
	var b strings.Builder
	ink := screen.Yellow
	switch s.Phase {
	case "streaming":
		ink = screen.Green
	case "failed":
		ink = screen.Red
	}
	fmt.Fprintf(&b, "%s since %s (%s)\n", style.Paint(ink, s.Phase), s.Since.Local().Format(time.DateTime), age(now.Sub(s.Since)))
	if s.Error != "" {
		fmt.Fprintf(&b, "  %-12s %s\n", "because", s.Error)
	}
	if s.Confirmed != "" {
		fmt.Fprintf(&b, "  %-12s %s\n", "confirmed", s.Confirmed)
	}
	if s.LastCommit != nil {
		fmt.Fprintf(&b, "  %-12s %s (%s ago)\n", "last change", s.LastCommit.Local().Format("2006-01-02 15:04:05.000"), age(now.Sub(*s.LastCommit)))
	}
	for _, t := range s.Tables {
		fmt.Fprintf(&b, "\n%s → %s\n", style.Paint(screen.Bold, t.Table), t.Aggregate)
		fmt.Fprintf(&b, "  %-12s %s, %s\n", "topics", t.Events, t.Latest)
		fmt.Fprintf(&b, "  %-12s %d since the start\n", "events", t.Published)
		fmt.Fprintf(&b, "  %-12s %s\n", "backfill", backfillLine(t.Backfill))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func backfillLine(s bridge.BackfillStatus) string {
	line := s.Phase
	if s.Phase == "none" {
		return line
	}
	line += fmt.Sprintf(", %d rows", s.Rows)
	if s.Phase == "running" && s.EstimatedRows > 0 {
		line += fmt.Sprintf(" of about %d (%d%%)", s.EstimatedRows, min(100, 100*s.Rows/s.EstimatedRows))
	}
	if s.Reconcile {
		line += ", repairing"
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
