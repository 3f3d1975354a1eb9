package capture

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// firstNormalXID is the lowest id of a real transaction; those below stand for
// what every snapshot sees.
const firstNormalXID = 3

// Visible reports whether the snapshot sees the committed transaction xid, whose
// epoch is taken from Xmax: of all transactions with these 32 bits it is the one
// within 2³¹ of Xmax, as Postgres itself compares them.
func (s *Snapshot) Visible(xid uint32) bool {
	if xid < firstNormalXID {
		return true
	}
	ahead := int32(xid - uint32(s.Xmax)) //nolint:gosec // modular distance is meant
	if ahead >= 0 {
		return false
	}
	back := uint64(-int64(ahead))
	if back > s.Xmax {
		return true // before the first transaction of the cluster's first epoch
	}
	full := s.Xmax - back
	if full < s.Xmin {
		return true
	}
	_, running := slices.BinarySearch(s.Running, full)
	return !running
}

// parseSnapshot parses what pg_current_snapshot prints: "xmin:xmax:xid,xid,…".
func parseSnapshot(text string) (Snapshot, error) {
	var s Snapshot
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return s, fmt.Errorf("%q is no snapshot", text)
	}
	var err error
	if s.Xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return s, fmt.Errorf("%q is no snapshot", text)
	}
	if s.Xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return s, fmt.Errorf("%q is no snapshot", text)
	}
	if parts[2] == "" {
		return s, nil
	}
	for _, part := range strings.Split(parts[2], ",") {
		xid, err := strconv.ParseUint(part, 10, 64)
		if err != nil {
			return s, fmt.Errorf("%q is no snapshot", text)
		}
		s.Running = append(s.Running, xid)
	}
	slices.Sort(s.Running)
	return s, nil
}

// snapshotFunction prints the snapshot of the running statement.
func snapshotFunction(major int) string {
	if major >= 13 {
		return "pg_current_snapshot()"
	}
	return "txid_current_snapshot()"
}
