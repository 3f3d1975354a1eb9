package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
)

func diesWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

// children lists the direct children of pid.
func children(_ context.Context, pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var kids []int
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, parent, err := stat(id); err == nil && parent == pid {
			kids = append(kids, id)
		}
	}
	return kids, nil
}

// ended counts a zombie as ended: it only waits for its new parent, which in a
// container may never ask.
func ended(pid int) bool {
	state, _, err := stat(pid)
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || state == 'Z'
}

// stat reads state and parent of a process: "pid (name) S ppid …", where the
// name may hold anything.
func stat(pid int) (state byte, parent int, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	words := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(words) < 2 || len(words[0]) != 1 {
		return 0, 0, fmt.Errorf("stat of %d: %q", pid, text)
	}
	parent, err = strconv.Atoi(string(words[1]))
	return words[0][0], parent, err
}
