package capture

import (
	"context"
	"fmt"
)

// advanceMajor is the first version that can move a slot by itself.
const advanceMajor = 11

// SkipToEnd has the configured slot begin at the present end of WAL; with no slot it
// does nothing, as Prepare makes one there. For a slot of a server that rows were moved
// to: what it would still send may be, in part, what the former server's has sent. What
// is skipped has to come from a comparison of the tables, so nobody else should call
// it. A slot that is in use, or another's, is a *Refusal.
func (d *Database) SkipToEnd(ctx context.Context) error {
	conn, err := d.connect(ctx, false)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	slot, err := d.readSlot(ctx, conn)
	if err != nil || !slot.Exists {
		return err
	}
	if slot.ActivePID != 0 || slot.Plugin != outputPlugin || slot.Database != d.conn.Database && d.conn.Database != "" {
		return &Refusal{Thing: "slot " + slot.Name,
			Problem: fmt.Sprintf("it is to begin anew, and it is of database %s, with plugin %s, and used by session %d", slot.Database, slot.Plugin, slot.ActivePID),
			Cure:    "end that session, or choose another source.slot"}
	}
	sql := "SELECT end_lsn::text FROM pg_replication_slot_advance($1," +
		" CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)"
	if serverMajor(conn) < advanceMajor {
		sql = "SELECT pg_drop_replication_slot($1)::text" // Prepare makes it
	}
	row, err := queryRow(ctx, conn, "move slot "+slot.Name+" to the end of WAL", sql, slot.Name)
	if err != nil {
		return err
	}
	d.log.Info("slot begins at the end of WAL", "was", slot.Confirmed, "lsn", row[0])
	return nil
}
