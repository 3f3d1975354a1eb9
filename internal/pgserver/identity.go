package pgserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// The system identifier stands in two places. In global/pg_control it is the
// first field; a CRC-32C of all fields follows the last one, at an offset that
// depends on the version. In each WAL segment it is a field of the first page's
// header, which has no checksum.
const (
	walIdentity   = 24 // offset in a segment
	controlCRCMin = 128
	controlCRCMax = 512
)

// stamp gives a copied cluster, which has never run, a system identifier of its
// own: two clusters must not take each other's positions for theirs.
func stamp(data string) error {
	id := uint64(time.Now().Unix())<<32 | uint64(rand.Uint32())
	former, err := stampControl(filepath.Join(data, "global", "pg_control"), id)
	if err != nil {
		return fmt.Errorf("new system identifier: %w", err)
	}
	segments, err := filepath.Glob(filepath.Join(data, "pg_wal", "????????????????????????"))
	if err != nil || len(segments) == 0 {
		return errors.Join(fmt.Errorf("new system identifier: no WAL in %s", data), err)
	}
	for _, s := range segments {
		if err := stampSegment(s, former, id); err != nil {
			return fmt.Errorf("new system identifier: %w", err)
		}
	}
	return nil
}

func stampControl(path string, id uint64) (former uint64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	end, err := controlCRC(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	former = binary.LittleEndian.Uint64(b)
	binary.LittleEndian.PutUint64(b, id)
	binary.LittleEndian.PutUint32(b[end:], checksum(b[:end]))
	return former, os.WriteFile(path, b, 0o600)
}

// controlCRC finds the checksum: the place that holds the CRC of all before it.
func controlCRC(b []byte) (int, error) {
	for end := controlCRCMin; end <= controlCRCMax && end+4 <= len(b); end += 4 {
		if binary.LittleEndian.Uint32(b[end:]) == checksum(b[:end]) {
			return end, nil
		}
	}
	return 0, errors.New("no checksum found")
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func stampSegment(path string, former, id uint64) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var b [8]byte
	if _, err := f.ReadAt(b[:], walIdentity); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if got := binary.LittleEndian.Uint64(b[:]); got != former {
		return fmt.Errorf("%s: it belongs to system %d, the cluster to %d", path, got, former)
	}
	binary.LittleEndian.PutUint64(b[:], id)
	_, err = f.WriteAt(b[:], walIdentity)
	return err
}
