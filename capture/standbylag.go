package capture

import (
	"context"
	"fmt"
	"strconv"
)

// StandbyLag returns by how many bytes of WAL the slowest physical standby is
// behind in replay: 0 if there is none. A role without pg_monitor (or
// pg_read_all_stats) is not told of any.
func (r *Reader) StandbyLag(ctx context.Context) (int64, error) {
	if err := r.dial(ctx); err != nil {
		return 0, fmt.Errorf("read the lag of the standbys: %w", err)
	}
	// A logical walsender is the one that has a logical slot.
	row, err := queryRow(ctx, r.conn, "read the lag of the standbys", `
SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), 0)::int8::text
FROM pg_catalog.pg_stat_replication r
WHERE state = 'streaming' AND NOT EXISTS (
  SELECT 1 FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')`)
	if err != nil {
		return 0, err
	}
	lag, err := strconv.ParseInt(row[0], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the lag of the standbys: %w", err)
	}
	return lag, nil
}
