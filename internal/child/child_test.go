package child_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"backstory/internal/child"
)

// TestMain is also the program of the children: CHILD_TEST says which part it plays.
func TestMain(m *testing.M) {
	if os.Getenv("CHILD_TEST") == "parent" {
		os.Exit(parent())
	}
	os.Exit(m.Run())
}

// parent starts a sleeper, says its pid and waits to be killed.
func parent() int {
	p, err := child.Start(exec.Command("sleep", "600"), nil, syscall.SIGKILL)
	if err != nil {
		return 1
	}
	os.Stdout.WriteString(strconv.Itoa(p.PID()) + "\n")
	<-p.Done()
	return 1
}

func startParent(t *testing.T) (p *child.Process, sleeper int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CHILD_TEST=parent")
	cmd.Stdout = w
	p, err = child.Start(cmd, nil, syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill(context.Background()) })
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	sleeper, err = strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return p, sleeper
}

func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func TestChildDiesWithItsParent(t *testing.T) {
	t.Parallel()
	p, sleeper := startParent(t)
	if !alive(sleeper) {
		t.Skip("needs /proc")
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for alive(sleeper) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("process %d outlived its parent", sleeper)
		}
	}
}

func TestKillTakesChildrenAlong(t *testing.T) {
	t.Parallel()
	p, sleeper := startParent(t)
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if alive(sleeper) {
		t.Errorf("process %d is still there", sleeper)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	p, err := child.Start(exec.Command("sleep", "600"), nil, syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Err(); err != nil {
		t.Errorf("got %v of a running child, want nil", err)
	}
	if err := p.Stop(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if p.Err() == nil {
		t.Error("got nil of a child that a signal ended")
	}
	if err := p.Stop(t.Context(), syscall.SIGTERM); err != nil {
		t.Errorf("second stop: %v", err)
	}
}

func TestStopKillsAtTheDeadline(t *testing.T) {
	t.Parallel()
	p, err := child.Start(exec.Command("sleep", "600"), nil, syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Stop(ctx, syscall.SIGCONT); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if alive(p.PID()) {
		t.Error("the child still runs")
	}
}

func TestStartOfNothing(t *testing.T) {
	t.Parallel()
	if _, err := child.Start(exec.Command(filepath.Join(t.TempDir(), "no such program")), nil, syscall.SIGKILL); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want os.ErrNotExist", err)
	}
}

// TestScratchIsSwept changes the place for temporary files, so it is not parallel.
func TestScratchIsSwept(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	orphan := filepath.Join(tmp, "backstory-test-1")
	if err := errors.Join(os.MkdirAll(filepath.Join(orphan, "data"), 0o700), os.WriteFile(orphan+".lock", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	mine, err := child.NewScratch("test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the orphan is still there: %v", err)
	}
	other, err := child.NewScratch("test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine.Dir); err != nil {
		t.Errorf("a living owner's directory was removed: %v", err)
	}
	if err := errors.Join(mine.Remove(), mine.Remove(), other.Remove()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(tmp); len(left) != 0 || err != nil {
		t.Errorf("got %v, %v, want nothing left", left, err)
	}
}
