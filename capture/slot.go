package capture

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5/pgconn"
)

// outputPlugin is the only plugin whose messages the package decodes.
const outputPlugin = "pgoutput"

// Postgres versions from which a slot can be what it says.
const (
	versionTwoPhase    = 14 // two_phase
	versionFailover    = 17 // failover, synced, ALTER_REPLICATION_SLOT
	versionTwoPhaseOff = 18 // two_phase can be switched off
)

// Values of SlotStatus.Status that decide something.
const (
	walExtended   = "extended"   // more than max_wal_size is kept
	walUnreserved = "unreserved" // may be lost at the next checkpoint
	walLost       = "lost"
)

// SlotStatus is what the server says of the slot now.
type SlotStatus struct {
	Name      string
	Exists    bool   // false: the fields below are zero, Current excepted
	Plugin    string // "pgoutput" if the slot is of use
	Database  string
	Temporary bool
	ActivePID int // of the session that streams from it; 0 if none does
	Confirmed LSN // everything below is durable for the bridge
	Restart   LSN // oldest WAL that the server keeps for the slot
	Current   LSN // end of WAL, of the replayed WAL on a standby
	Retained  int64
	// Status is wal_status: reserved, extended, unreserved or lost. Empty before
	// Postgres 13.
	Status string
	// Safe is the number of bytes of WAL that may still be written before the slot
	// is in danger of being lost; −1 if there is no limit.
	Safe int64
	// Invalidation is the server's reason for having given up the slot; Postgres 17
	// and later.
	Invalidation string
	// TwoPhase says that prepared transactions are sent when they are prepared, and
	// not when they commit; Postgres 14 and later.
	TwoPhase bool
	// Failover says that standbys copy the slot, Synced that it is such a copy, or was
	// one before the standby was promoted; Postgres 17 and later.
	Failover bool
	Synced   bool
}

// Lost reports whether the server gave up the WAL that the slot stands for.
func (s *SlotStatus) Lost() bool { return s.Status == walLost || s.Invalidation != "" }

// Lag is the number of bytes of WAL above what is confirmed.
func (s *SlotStatus) Lag() int64 {
	if !s.Exists || s.Confirmed > s.Current {
		return 0
	}
	return int64(s.Current - s.Confirmed)
}

// SlotStatus reads the state of the configured slot. A missing slot is no error.
func (d *Database) SlotStatus(ctx context.Context) (SlotStatus, error) {
	conn, err := d.connect(ctx, false)
	if err != nil {
		return SlotStatus{}, err
	}
	defer closeConn(ctx, conn)
	return d.readSlot(ctx, conn)
}

// readSlot is SlotStatus on an open session.
func (d *Database) readSlot(ctx context.Context, conn *pgconn.PgConn) (SlotStatus, error) {
	status := SlotStatus{Name: d.cfg.Slot}
	row, err := queryRow(ctx, conn, "read slot "+d.cfg.Slot, slotQuery(serverMajor(conn)), d.cfg.Slot)
	if err != nil {
		return status, err
	}
	if err := status.scan(row); err != nil {
		return status, fmt.Errorf("read slot %s: %w", d.cfg.Slot, err)
	}
	return status, nil
}

// slotQuery yields one row, whether the slot exists or not.
func slotQuery(major int) string {
	status, safe, reason, twoPhase, failover, synced := "''", "'-1'", "''", "'f'", "'f'", "'f'"
	if major >= 13 {
		status, safe = "coalesce(s.wal_status, '')", "coalesce(s.safe_wal_size, -1)::text"
	}
	if major >= versionTwoPhase {
		twoPhase = "coalesce(s.two_phase, false)"
	}
	if major >= versionFailover {
		reason = "coalesce(s.invalidation_reason, '')"
		failover, synced = "coalesce(s.failover, false)", "coalesce(s.synced, false)"
	}
	return `
SELECT w.lsn::text, s.slot_name IS NOT NULL, coalesce(s.plugin, ''), coalesce(s.database, ''),
       coalesce(s.temporary, false), coalesce(s.active_pid, 0), coalesce(s.confirmed_flush_lsn, '0/0')::text,
       coalesce(s.restart_lsn, '0/0')::text, ` + status + `, ` + safe + `, ` + reason + `,
       ` + twoPhase + `, ` + failover + `, ` + synced + `
  FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn) w
  LEFT JOIN pg_replication_slots s ON s.slot_name = $1`
}

// scan fills s from a row of slotQuery.
func (s *SlotStatus) scan(row []string) error {
	lsns, err := parseLSNs(row[0], row[6], row[7])
	if err != nil {
		return err
	}
	s.Current, s.Confirmed, s.Restart = lsns[0], lsns[1], lsns[2]
	s.Exists, s.Plugin, s.Database, s.Temporary = row[1] == "t", row[2], row[3], row[4] == "t"
	if s.ActivePID, err = strconv.Atoi(row[5]); err != nil {
		return fmt.Errorf("active_pid: %w", err)
	}
	s.Status, s.Invalidation = row[8], row[10]
	s.TwoPhase, s.Failover, s.Synced = row[11] == "t", row[12] == "t", row[13] == "t"
	if s.Safe, err = strconv.ParseInt(row[9], 10, 64); err != nil {
		return fmt.Errorf("safe_wal_size: %w", err)
	}
	if s.Restart > 0 && s.Restart < s.Current {
		s.Retained = int64(s.Current - s.Restart)
	}
	return nil
}

// parseLSNs parses positions as Postgres prints them.
func parseLSNs(texts ...string) ([]LSN, error) {
	lsns := make([]LSN, len(texts))
	for i, text := range texts {
		high, low, ok := strings.Cut(text, "/")
		h, err1 := strconv.ParseUint(high, 16, 32)
		l, err2 := strconv.ParseUint(low, 16, 32)
		if !ok || err1 != nil || err2 != nil {
			return nil, fmt.Errorf("%q is no LSN", text)
		}
		lsns[i] = LSN(h<<32 | l)
	}
	return lsns, nil
}

// serverMajor is the server's major version, from its greeting: 15 of
// "15.13 (Debian)", 18 of "18beta1".
func serverMajor(conn *pgconn.PgConn) int {
	version := conn.ParameterStatus("server_version")
	end := strings.IndexFunc(version, func(r rune) bool { return !unicode.IsDigit(r) })
	if end >= 0 {
		version = version[:end]
	}
	major, _ := strconv.Atoi(version) // 0 for a server that does not say: the oldest queries
	return major
}
