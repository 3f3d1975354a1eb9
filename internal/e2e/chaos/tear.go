package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What the state's files look like, as far as a lost machine needs it: SYNCED
// says which group was durable and in which file; a file is a header and groups,
// each with its number and length (internal/state/format.go).
const (
	segmentHeader = 48
	groupHeader   = 40
)

// tear does to a state what the loss of the machine does: of what was written
// and not synced, any part may be missing or wrong. It reports how many bytes it
// touched.
func tear(dir string, rng *rand.Rand) (int64, error) {
	mark, err := os.ReadFile(filepath.Join(dir, "SYNCED"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(mark) < 48 {
		return 0, nil // nothing was synced yet: where the log may be torn is not known
	}
	if err != nil {
		return 0, err
	}
	seq, number := binary.LittleEndian.Uint64(mark[32:]), binary.LittleEndian.Uint64(mark[40:])
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(logs) == 0 {
		return 0, err
	}
	slices.Sort(logs)
	last := logs[len(logs)-1]
	if !strings.Contains(filepath.Base(last), fmt.Sprintf("%d.", number)) {
		return 0, nil // a file was begun since; which of its names are durable is not known
	}
	return tearFile(last, seq, rng)
}

// tearFile cuts the file at any place behind group seq, or spoils bytes there.
func tearFile(path string, seq uint64, rng *rand.Rand) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	durable := int64(-1)
	for at := int64(segmentHeader); at+groupHeader <= int64(len(text)); {
		at2 := at + groupHeader + int64(binary.LittleEndian.Uint32(text[at+24:]))
		if binary.LittleEndian.Uint64(text[at+8:]) <= seq {
			durable = at2
		}
		at = at2
	}
	left := int64(len(text)) - durable
	if durable < 0 || left <= 0 {
		return 0, nil
	}
	at := durable + rng.Int64N(left)
	if rng.IntN(2) == 0 {
		return int64(len(text)) - at, os.Truncate(path, at)
	}
	for i := at; i < int64(len(text)) && i < at+1000; i++ {
		text[i] = 0
	}
	return int64(len(text)) - at, os.WriteFile(path, text, 0o600)
}
