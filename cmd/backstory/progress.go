package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"backstory/internal/bridge"
	"backstory/internal/screen"
)

// progress shows a backfill: as a bar on a terminal, as lines elsewhere, as JSON
// for programs. The result goes to out, the way there to notes.
type progress struct {
	out    io.Writer
	notes  *os.File
	asJSON bool
	style  screen.Style
	bar    *progressbar.ProgressBar // only on a terminal
	last   time.Time
	said   string
}

// linePause is the time between two lines of progress.
const linePause = 5 * time.Second

func newProgress(out io.Writer, notes *os.File, asJSON bool) *progress {
	p := &progress{out: out, notes: notes, asJSON: asJSON, style: screen.StyleOf(notes)}
	if !asJSON && p.style.Width > 0 {
		p.bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(notes), progressbar.OptionShowCount(),
			progressbar.OptionShowIts(), progressbar.OptionSetItsString("rows"), progressbar.OptionSetPredictTime(true),
			progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionUseANSICodes(true), progressbar.OptionEnableColorCodes(false))
	}
	return p
}

// update shows the state of the tables.
func (p *progress) update(tables []bridge.TableStatus) {
	switch {
	case p.asJSON:
		p.json(tables, false)
	case p.bar != nil:
		p.draw(tables)
	default:
		p.lines(tables)
	}
}

func (p *progress) draw(tables []bridge.TableStatus) {
	var rows, total int64
	var what []string
	for _, t := range tables {
		rows += t.Backfill.Rows
		total += max(t.Backfill.EstimatedRows, t.Backfill.Rows)
		if t.Backfill.Phase != "done" && t.Backfill.Phase != "waiting" {
			what = append(what, t.Table+" "+t.Backfill.Phase)
		}
	}
	p.bar.Describe(strings.Join(what, ", "))
	if total > 0 {
		p.bar.ChangeMax64(total + 1) // never full before it is done
	}
	_ = p.bar.Set64(rows) // the terminal may be gone; the result goes elsewhere
}

// lines prints a line a table from time to time, and when its phase changes.
func (p *progress) lines(tables []bridge.TableStatus) {
	var phases strings.Builder
	for _, t := range tables {
		phases.WriteString(t.Backfill.Phase + ",")
	}
	if phases.String() == p.said && time.Since(p.last) < linePause {
		return
	}
	p.said, p.last = phases.String(), time.Now()
	for _, t := range tables {
		fmt.Fprintf(p.notes, "%s: %s\n", t.Table, backfillLine(t.Backfill))
	}
}

// progressJSON is a line of --json.
type progressJSON struct {
	Done   bool                `json:"done"`
	Tables []progressTableJSON `json:"tables"`
}

type progressTableJSON struct {
	Table string `json:"table"`
	Again int    `json:"rows_to_read_again"`
	bridge.BackfillStatus
}

func (p *progress) json(tables []bridge.TableStatus, done bool) {
	line := progressJSON{Done: done, Tables: []progressTableJSON{}}
	for _, t := range tables {
		line.Tables = append(line.Tables, progressTableJSON{t.Table, t.Again, t.Backfill})
	}
	text, err := json.Marshal(line)
	if err != nil || string(text) == p.said {
		return // a status always has a JSON form; and what was said need not be said again
	}
	p.said = string(text)
	fmt.Fprintln(p.out, p.said)
}

// finish prints the result, and returns why a table could not be read to its end.
func (p *progress) finish(tables []bridge.TableStatus) error {
	if p.asJSON {
		p.json(tables, true)
		return failures(tables)
	}
	if p.bar != nil {
		_ = p.bar.Finish() // as in draw
	}
	for _, t := range tables {
		s := t.Backfill
		if s.Phase == "failed" {
			continue
		}
		what := "published"
		if s.DryRun != nil {
			what = "would be published"
		}
		if _, err := fmt.Fprintf(p.out, "%s: %d rows read, %d equal; %d events %s, %d of them for rows that are gone\n",
			t.Table, s.Rows, s.Equal, s.Events, what, s.Gone); err != nil {
			return err
		}
		if s.DryRun != nil {
			if err := p.differences(s.DryRun); err != nil {
				return err
			}
		}
	}
	return failures(tables)
}

func failures(tables []bridge.TableStatus) error {
	var errs []error
	for _, t := range tables {
		if t.Backfill.Phase == "failed" {
			errs = append(errs, fmt.Errorf("%s after %d rows and %d events; the stream goes on, and what was published stands",
				t.Backfill.Error, t.Backfill.Rows, t.Backfill.Events))
		}
	}
	return errors.Join(errs...)
}

// differences shows what a dry run has found.
func (p *progress) differences(d *bridge.DryRun) error {
	counts := d.Events()
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "  %8d %s\n", counts[kind], kind)
	}
	examples := d.Examples()
	if len(examples) > 0 {
		b.WriteString("  for example:\n")
	}
	for _, e := range examples {
		line := fmt.Sprintf("    %s %s %s", e.Key, e.Type, e.Data)
		if w := p.style.Width; w > 0 && len(line) > w {
			line = line[:w-1] + "…"
		}
		b.WriteString(line + "\n")
	}
	_, err := io.WriteString(p.out, b.String())
	return err
}
