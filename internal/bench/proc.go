package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ticksPerSecond is USER_HZ, in which /proc counts on every Linux.
const ticksPerSecond = 100

// procStat is one line of /proc/PID/stat.
type procStat struct {
	parent int
	cpu    float64 // seconds of user and system time, reaped children included
}

func readStat(pid int) (procStat, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(text)
}

func parseStat(text []byte) (procStat, error) {
	var err error
	words := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const parent, userTime, childSystemTime = 1, 11, 14
	if len(words) <= childSystemTime {
		return procStat{}, fmt.Errorf("stat of a process: %q", text)
	}
	s := procStat{}
	s.parent, err = strconv.Atoi(words[parent])
	for _, word := range words[userTime : childSystemTime+1] {
		n, werr := strconv.ParseInt(word, 10, 64)
		err = errors.Join(err, werr)
		s.cpu += float64(n) / ticksPerSecond
	}
	return s, err
}

// cpuOf is the CPU time of a process so far, in seconds.
func cpuOf(pid int) (float64, error) {
	s, err := readStat(pid)
	return s.cpu, err
}

// cpuOfTree adds the CPU time of all direct children: of a postmaster its
// backends. Those that have ended are in its own account.
func cpuOfTree(pid int) (float64, error) {
	root, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	sum := root.cpu
	for _, dir := range dirs {
		child, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if s, err := readStat(child); err == nil && s.parent == pid { // else it has just ended
			sum += s.cpu
		}
	}
	return sum, nil
}

// compilersOf is the CPU time so far of the threads of a Java process that compile,
// in seconds. What a thread had that has ended is not in it.
func compilersOf(pid int) (float64, error) {
	files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(text, []byte("CompilerThre")) {
			continue // it has just ended, or does something else
		}
		s, err := parseStat(text)
		if err != nil {
			return 0, err
		}
		sum += s.cpu
	}
	return sum, nil
}

// memory are the resident bytes of a process, now and at most.
type memory struct{ now, peak float64 }

// memoryOf reads them in MB (10⁶ bytes).
func memoryOf(pid int) (m memory, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		kib, err := strconv.ParseFloat(words[1], 64)
		switch {
		case words[0] == "VmHWM:" && err == nil:
			m.peak = kib * 1024 / 1e6
		case words[0] == "VmRSS:" && err == nil:
			m.now = kib * 1024 / 1e6
		}
	}
	if m.peak == 0 {
		return m, fmt.Errorf("no memory in the status of process %d", pid)
	}
	return m, nil
}

// resetPeak makes the peak begin anew at what is resident now.
func resetPeak(pid int) error {
	return os.WriteFile("/proc/"+strconv.Itoa(pid)+"/clear_refs", []byte("5"), 0)
}

// readCalls is how many system calls of a process have read something so far.
func readCalls(pid int) (float64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/io")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "syscr: "); ok {
			return strconv.ParseFloat(strings.TrimSpace(n), 64)
		}
	}
	return 0, fmt.Errorf("no reads in /proc/%d/io", pid)
}

// busy is the CPU time that the whole machine has worked so far, in seconds.
func busy() (float64, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	const idle, ioWait, guest = 3, 4, 8 // a guest's time is in user time already
	var sum float64
	for i, word := range strings.Fields(line)[1:] {
		if i == idle || i == ioWait || i >= guest {
			continue
		}
		n, err := strconv.ParseFloat(word, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		sum += n / ticksPerSecond
	}
	return sum, nil
}
