package main

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// profiling is a file that is laid over the bridge's own when it is built for a
// profile. So the bridge that is measured otherwise is the one that is released.
//
//go:embed overlay/profile.go.txt
var profiling []byte

func profileCommand(c *common) *cobra.Command {
	var rows, changes int
	var out string
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Where the CPU time of a change goes in catch-up",
		Long: `Profile the bridge while it empties a backlog of transactions of 100, and add the
samples up by step. --out keeps the profiles for go tool pprof.`,
		Example: "  go run ./internal/bench profile --rows 1000000 --changes 1000000 --out profiles",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.profile(r, c.runs, rows, changes, out) })
		},
	}
	cmd.Flags().IntVar(&rows, "rows", 200_000, "rows of the table")
	cmd.Flags().IntVar(&changes, "changes", 200_000, "updates of one backlog, at most rows")
	cmd.Flags().StringVar(&out, "out", "", "directory that the profiles are kept in")
	return cmd
}

// steps say by a function's name to which step of the path a sample belongs. Of
// the frames of a sample, the innermost that has a step decides; helpers, such as
// those that append a header, have none, and belong to who called them.
var steps = []struct{ prefix, step string }{
	{"backstory/capture.(*wire).read", "read"},
	{"backstory/capture.", "decode"},
	{"backstory/internal/state.", "state"},
	{"backstory/transform.", "map"},
	{"backstory/sink.(*deflater)", "compress"},
	{"github.com/pierrec/lz4", "compress"},
	{"backstory/sink.(*Producer).encode", "encode"},
	{"backstory/sink.(*Publication)", "produce"},
	{"backstory/sink.(*Producer)", "produce"},
	{"backstory/sink.(*Client)", "produce"},
	{"github.com/segmentio/kafka-go", "produce"},
	{"backstory/internal/bridge.", "bridge"},
	{"backstory/internal/web.", "http"},
	{"net/http.", "http"},
	{"runtime.gcBgMarkWorker", "garbage collection"},
	{"runtime.bgsweep", "garbage collection"},
	{"runtime.bgscavenge", "garbage collection"},
	{"runtime.gcStart", "garbage collection"},
	{"runtime.mstart", "scheduler"},
	{"runtime.mcall", "scheduler"},
}

// order of the table.
var stepOrder = []string{"read", "decode", "state", "map", "encode", "compress", "produce", "bridge", "http",
	"garbage collection", "scheduler", "other"}

func stepOf(stack []string) string {
	for _, frame := range stack {
		for _, s := range steps {
			if strings.HasPrefix(frame, s.prefix) {
				return s.step
			}
		}
	}
	return "other"
}

func (l *lab) profile(r *report, runs, rows, changes int, out string) error {
	if out == "" {
		out = l.dir
	} else if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	rig, err := l.primed("profile", rows)
	if err != nil {
		return err
	}
	if rig.binary, err = l.buildProfiling(); err != nil {
		return err
	}
	for i := range runs {
		cpu := filepath.Join(out, fmt.Sprintf("cpu%d.pprof", i))
		if err := rig.sample(cpu, "BENCH_CPU_PROFILE", i*changes, changes, rows); err != nil {
			return err
		}
		if err := addSteps(l, r, cpu, changes); err != nil {
			return err
		}
	}
	allocs := filepath.Join(out, "allocs.pprof")
	if err := rig.sample(allocs, "BENCH_ALLOC_PROFILE", runs*changes, changes, rows); err != nil {
		return err
	}
	if err := rig.addAllocations(r, allocs, changes); err != nil {
		return err
	}
	r.note("microseconds of CPU a change, by the profile; %d changes a run, 100 a transaction, over a Unix socket.", changes)
	return nil
}

// buildProfiling builds the bridge with the file laid over it.
func (l *lab) buildProfiling() (string, error) {
	root, err := exec.CommandContext(l.ctx(), "go", "list", "-f", "{{.Dir}}", "backstory/cmd/backstory").Output()
	if err != nil {
		return "", fmt.Errorf("find the bridge's source: %w", err)
	}
	source := filepath.Join(l.dir, "profile.go")
	replace := map[string]map[string]string{"Replace": {filepath.Join(strings.TrimSpace(string(root)), "bench_profile.go"): source}}
	text, err := json.Marshal(replace)
	if err != nil {
		return "", err
	}
	overlay, binary := filepath.Join(l.dir, "overlay.json"), filepath.Join(l.dir, "backstory-profiling")
	if err := errors.Join(os.WriteFile(source, profiling, 0o644), os.WriteFile(overlay, text, 0o644)); err != nil {
		return "", err
	}
	return binary, build(l.ctx(), binary, "-overlay", overlay)
}

// sample profiles the bridge from when it streams to its last record.
func (r *rig) sample(file, variable string, skip, changes, rows int) (err error) {
	log, err := r.l.writeBacklog(changes, 100, rows, skip)
	if err != nil {
		return err
	}
	before, err := r.l.sums(r.events, r.latest)
	if err != nil {
		return err
	}
	b, err := r.start(unixSocket, variable+"="+file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	if _, err := b.streaming(); err != nil {
		return err
	}
	if err := b.proc.Signal(syscall.SIGUSR1); err != nil {
		return err
	}
	first, err := r.l.usage(b.proc.PID())
	if err != nil {
		return err
	}
	last, _, err := b.follow(before, int64(log.changes))
	if err != nil {
		return err
	}
	r.l.logf("%.1f µs a change by /proc", last.since(first).bridge/float64(changes)*1e6)
	if err := b.proc.Signal(syscall.SIGUSR2); err != nil {
		return err
	}
	return b.confirmed(log.end, time.Minute)
}

// addSteps adds a profile up by step.
func addSteps(l *lab, rep *report, file string, changes int) error {
	sums := map[string]float64{}
	err := l.traces(func(value time.Duration, stack []string) {
		sums[stepOf(stack)] += value.Seconds()
		sums["all"] += value.Seconds()
	}, file)
	if err != nil {
		return err
	}
	for _, step := range append(slices.Clone(stepOrder), "all") {
		row := rep.row(step)
		row.add("µs", sums[step]/float64(changes)*1e6)
		row.add("%", 100*sums[step]/sums["all"])
	}
	return nil
}

// traces reads a CPU profile sample by sample, the innermost frame first.
func (l *lab) traces(fn func(value time.Duration, stack []string), file string) error {
	text, err := l.pprof("-traces", file)
	if err != nil {
		return err
	}
	var value time.Duration
	var stack []string
	flush := func() {
		if len(stack) > 0 {
			fn(value, stack)
		}
		stack = nil
	}
	begun := false
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		switch {
		case strings.HasPrefix(string(line), "-----"):
			flush()
			begun = true
		case !begun || len(words) == 0:
		case len(stack) == 0:
			if value, err = time.ParseDuration(words[0]); err != nil || len(words) < 2 {
				return fmt.Errorf("profile: line %q: %w", line, err)
			}
			stack = append(stack, words[1])
		default:
			stack = append(stack, words[0])
		}
	}
	flush()
	return nil
}

func (l *lab) pprof(args ...string) ([]byte, error) {
	cmd := exec.CommandContext(l.ctx(), "go", append([]string{"tool", "pprof"}, args...)...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool pprof: %w: %s", err, complaints.Bytes())
	}
	return out, nil
}

// addAllocations adds up what was allocated between two profiles, by function.
func (r *rig) addAllocations(rep *report, file string, changes int) error {
	for _, index := range []string{"alloc_objects", "alloc_space"} {
		text, err := r.l.pprof("-top", "-sample_index="+index, "-unit=B", "-nodecount=12", "-diff_base="+file+".base", file)
		if err != nil {
			return err
		}
		rep.note("%s of %d changes:", index, changes)
		lines := bufio.NewScanner(bytes.NewReader(text))
		for lines.Scan() {
			if line := lines.Text(); strings.Contains(line, "%") {
				rep.note("  %s", line)
			}
		}
	}
	return nil
}
