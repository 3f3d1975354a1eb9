//go:build unix && !linux

package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"syscall"
)

// diesWithParent does nothing where the kernel has no such signal.
func diesWithParent(*syscall.SysProcAttr, syscall.Signal) {}

// children lists the direct children of pid.
func children(ctx context.Context, pid int) ([]int, error) {
	out, err := exec.CommandContext(ctx, "ps", "-axo", "pid=,ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var kids []int
	for line := range bytes.Lines(out) {
		words := bytes.Fields(line)
		if len(words) != 2 || string(words[1]) != strconv.Itoa(pid) {
			continue
		}
		id, err := strconv.Atoi(string(words[0]))
		if err != nil {
			return nil, fmt.Errorf("list processes: %w", err)
		}
		kids = append(kids, id)
	}
	return kids, nil
}

func ended(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
