package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// pollGone is how often a process that is no child of ours is looked at.
const pollGone = 5 * time.Millisecond

// Process is a running child, the leader of its own process group, so that the
// terminal's interrupt does not reach it before its parent has decided.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; valid once done is closed
}

// Start starts cmd as user (nil: the same as ours). When this process dies,
// the kernel sends death to the child (Linux).
func Start(cmd *exec.Cmd, user *User, death syscall.Signal) (*Process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: user.credential()}
	diesWithParent(cmd.SysProcAttr, death)
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go p.run(started) // ends with the child
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// run keeps one OS thread for the child's life: the kernel watches the thread
// that started the child, not the process.
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

// PID of the child.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the child ended; nil for exit code 0, and while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Signal sends sig to the child; a child that has ended is no error.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s to %d: %w", sig, p.PID(), err)
	}
	return nil
}

// Stop sends sig and waits for the end; when ctx is done first, it kills the
// child and its descendants.
func (p *Process) Stop(ctx context.Context, sig os.Signal) error {
	if err := p.Signal(sig); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		err := fmt.Errorf("process %d did not end after %s: %w", p.PID(), sig, context.Cause(ctx))
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return errors.Join(err, p.Kill(grace))
	}
}

// Kill ends the child and its direct children by SIGKILL, as a crash would, and
// returns when all of them are gone. The child is stopped first, so that it can
// neither start another nor see one die.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	kids, err := children(ctx, p.PID())
	if err != nil {
		return err
	}
	for _, pid := range append(kids, p.PID()) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %d: %w", p.PID(), context.Cause(ctx))
	}
	for _, pid := range kids {
		if err := gone(ctx, pid); err != nil {
			return err
		}
	}
	return nil
}

// gone waits until there is no process pid.
func gone(ctx context.Context, pid int) error {
	tick := time.NewTicker(pollGone)
	defer tick.Stop()
	for !ended(pid) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of %d: %w", pid, context.Cause(ctx))
		}
	}
	return nil
}
