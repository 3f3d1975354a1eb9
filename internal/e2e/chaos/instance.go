package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"backstory/internal/child"
	"backstory/internal/testenv"
)

// restartPause is what a service manager waits before it starts the bridge again.
const restartPause = 300 * time.Millisecond

// ending says what the suite did to a process.
type ending int

const (
	byItself ending = iota
	killed          // SIGKILL
	told            // SIGTERM
)

// instance is a bridge with a state of its own, started again whenever it ends.
type instance struct {
	w      *world
	name   string
	config string
	state  string
	http   string
	link   *testenv.Link // to Postgres
	wake   chan struct{} // wanted has changed
	runs   int

	mu     sync.Mutex
	wanted bool
	proc   *child.Process // nil: none runs
	ending ending
	exited chan struct{} // closed when the process is judged
}

func (i *instance) start() { i.want(true) }

func (i *instance) want(on bool) {
	i.mu.Lock()
	i.wanted = on
	i.mu.Unlock()
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

func (i *instance) on() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.wanted
}

// supervise runs the process while it is wanted, until ctx is done.
func (i *instance) supervise(ctx context.Context) error {
	for ctx.Err() == nil {
		if !i.on() {
			select {
			case <-i.wake:
			case <-ctx.Done():
			}
			continue
		}
		if err := i.once(ctx); err != nil {
			select {
			case i.w.fails <- err:
			default:
			}
			return err
		}
		select {
		case <-time.After(restartPause):
		case <-ctx.Done():
		}
	}
	return nil
}

// once runs the process to its end and judges how it ended.
func (i *instance) once(ctx context.Context) error {
	log, err := os.Create(i.logName(i.runs + 1))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(i.w.program, "run", "--config", i.config, "--log-level", "debug")
	cmd.Dir, cmd.Stdout, cmd.Stderr = i.w.dir, log, log
	i.mu.Lock()
	if !i.wanted {
		i.mu.Unlock()
		return nil
	}
	proc, err := child.Start(cmd, nil, syscall.SIGKILL)
	if err != nil {
		i.mu.Unlock()
		return err
	}
	i.runs++
	exited := make(chan struct{})
	i.proc, i.ending, i.exited = proc, byItself, exited
	i.mu.Unlock()
	defer close(exited)
	begun := time.Now()
	select {
	case <-proc.Done():
	case <-ctx.Done():
		_ = proc.Signal(syscall.SIGKILL) // the run is over
		<-proc.Done()
		return nil
	}
	i.mu.Lock()
	how := i.ending
	i.proc = nil
	i.mu.Unlock()
	return i.judge(how, begun, proc.Err(), cmd.ProcessState)
}

func (i *instance) logName(run int) string {
	return filepath.Join(i.w.dir, fmt.Sprintf("bridge-%s-%04d.log", i.name, run))
}

// young is the age below which a process may not have its signal handler yet.
const young = time.Second

// judge says whether the contract lets a process end so: by 0 after SIGTERM; by
// 1 where no server could be reached at the start, or where the disk is full.
func (i *instance) judge(how ending, begun time.Time, err error, state *os.ProcessState) error {
	last := i.lastLine()
	i.w.note("bridge %s (run %d) ended: %v: %s", i.name, i.runs, state, last)
	code := state.ExitCode()
	away := strings.Contains(last, "startup_timeout") || strings.Contains(last, "open kafka: ") && strings.Contains(last, "deadline exceeded")
	full := strings.Contains(last, "no space left")
	switch {
	case how == killed && !state.Exited():
		return nil
	case how == told && (code == 0 || !state.Exited() && time.Since(begun) < young):
		return nil
	case code == 1 && (away || full) && i.w.broken(begun.Add(-startupTimeout)):
		return nil
	}
	return fmt.Errorf("bridge %s ended in run %d as it must not (%w): %s", i.name, i.runs, errors.Join(err, fmt.Errorf("exit code %d", code)), last)
}

func (i *instance) lastLine() string {
	text, err := os.ReadFile(i.logName(i.runs))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// end sends sig and waits until the process is judged.
func (i *instance) end(ctx context.Context, sig syscall.Signal, how ending) error {
	i.mu.Lock()
	proc, exited := i.proc, i.exited
	if proc != nil {
		i.ending = how
	}
	i.mu.Unlock()
	if proc == nil {
		return nil
	}
	if err := proc.Signal(sig); err != nil {
		return err
	}
	select {
	case <-exited:
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("bridge %s (run %d) did not end within a minute of %s", i.name, i.runs, sig)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (i *instance) kill(ctx context.Context) error { return i.end(ctx, syscall.SIGKILL, killed) }
func (i *instance) stop(ctx context.Context) error { return i.end(ctx, syscall.SIGTERM, told) }

// signal sends sig to the process, if there is one.
func (i *instance) signal(sig syscall.Signal) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.proc == nil {
		return nil
	}
	return i.proc.Signal(sig)
}

// status is the part of /status that the suite looks at.
type status struct {
	Phase     string `json:"phase"`
	Error     string `json:"error"`
	Confirmed string `json:"confirmed_lsn"`
	Tables    []struct {
		Again    int `json:"rows_to_read_again"`
		Backfill struct {
			Phase string `json:"phase"`
			Rows  int    `json:"rows"`
		} `json:"backfill"`
	} `json:"tables"`
}

func (i *instance) status(ctx context.Context) (s status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.http+"/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}
