package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a benchmark found: for each row (a shape, a setting) its figures,
// for each figure the values of all runs.
type report struct {
	Benchmark string    `json:"benchmark"`
	Time      time.Time `json:"time"`
	Machine   string    `json:"machine"`
	Notes     []string  `json:"notes,omitempty"`
	Rows      []*row    `json:"rows"`
}

type row struct {
	Name    string    `json:"name"`
	Figures []*figure `json:"figures"`
}

type figure struct {
	Name   string    `json:"name"` // with its unit
	Values []float64 `json:"values"`
}

func newReport(name string) *report {
	return &report{Benchmark: name, Time: time.Now().UTC(), Machine: machine()}
}

// row returns the row of a name, a new one at the end if there is none.
func (r *report) row(name string) *row {
	for _, have := range r.Rows {
		if have.Name == name {
			return have
		}
	}
	made := &row{Name: name}
	r.Rows = append(r.Rows, made)
	return made
}

// note adds a line that stands below the table.
func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// add appends the value of one run to a figure.
func (r *row) add(name string, value float64) {
	for _, f := range r.Figures {
		if f.Name == name {
			f.Values = append(f.Values, value)
			return
		}
	}
	r.Figures = append(r.Figures, &figure{Name: name, Values: []float64{value}})
}

func (r *report) json(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// table prints a line for each row: of each figure the median, and in brackets
// the least and the greatest value.
func (r *report) table(w io.Writer) error {
	fmt.Fprintf(w, "%s, %s, %s\n", r.Benchmark, r.Time.Format(time.RFC3339), r.Machine)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var header []string
	for _, row := range r.Rows {
		if names := row.names(); !slices.Equal(names, header) {
			header = names
			fmt.Fprintln(t, "\t"+strings.Join(header, "\t"))
		}
		cells := []string{row.Name}
		for _, f := range row.Figures {
			cells = append(cells, f.String())
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, n)
	}
	return nil
}

func (r *row) names() []string {
	var names []string
	for _, f := range r.Figures {
		names = append(names, f.Name)
	}
	return names
}

func (f *figure) String() string {
	s := number(median(f.Values))
	if len(f.Values) > 1 {
		s += " (" + number(slices.Min(f.Values)) + "–" + number(slices.Max(f.Values)) + ")"
	}
	return s
}

// number prints three digits at least, and none behind the point that say nothing.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return grouped(int64(math.Round(v)))
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// grouped writes a thin comma between each three digits.
func grouped(v int64) string {
	s := strconv.FormatInt(v, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile returns the value below which the fraction q of the values lies; of
// two in the middle the mean.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	if low+1 >= len(sorted) {
		return sorted[low]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}

// machine says what the figures were measured on.
func machine() string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s, %s, %s", runtime.NumCPU(), model, runtime.GOOS, runtime.Version())
}
