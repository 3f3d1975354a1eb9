package capture

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// slotTimeout bounds the creation of the slot, which waits for every
	// transaction that is writing, in any database of the server.
	slotTimeout = 60 * time.Second
	slotPoll    = time.Second
	undoTimeout = 10 * time.Second
)

// createSlot makes the slot on a session of its own, so that side, the caller's
// session, can tell meanwhile what it waits for. When it returns an error there
// is no slot. With failover it is one that standbys copy.
func (d *Database) createSlot(ctx context.Context, side *pgconn.PgConn, failover bool) error {
	conn, err := d.connect(ctx, false)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	step := "set timeout of slot creation"
	if err := exec(ctx, conn, step, "SET statement_timeout = "+milliseconds(d.slotTimeout)+"; SET lock_timeout = 0"); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { // ends with the statement: by itself, its timeout, or the cancel request below
		_, err := query(context.WithoutCancel(ctx), conn, "create slot "+d.cfg.Slot, createSlotQuery(failover), d.cfg.Slot)
		done <- err
	}()
	blockers, err := d.awaitSlot(ctx, conn, side, done)
	switch {
	case ctx.Err() != nil:
		if err == nil { // it was made in the moment of the cancel
			_, err = query(context.WithoutCancel(ctx), conn, "drop slot "+d.cfg.Slot, "SELECT pg_drop_replication_slot($1)", d.cfg.Slot)
		}
		return errors.Join(fmt.Errorf("create slot %s: %w", d.cfg.Slot, context.Cause(ctx)), ignoreCanceled(err))
	case err != nil:
		return slotError(d.cfg.Slot, d.slotTimeout, blockers, err)
	}
	d.log.Info("slot created", "failover", failover)
	return nil
}

// createSlotQuery makes a slot that outlives the session and sends transactions
// when they commit.
func createSlotQuery(failover bool) string {
	if failover {
		return "SELECT pg_create_logical_replication_slot($1, '" + outputPlugin + "', false, false, true)"
	}
	return "SELECT pg_create_logical_replication_slot($1, '" + outputPlugin + "')"
}

// awaitSlot waits for the creation to end, one way or the other, and returns
// what it was last seen to wait for. If ctx ends it asks the server to cancel,
// and still waits: only then is it known whether there is a slot.
func (d *Database) awaitSlot(ctx context.Context, conn, side *pgconn.PgConn, done <-chan error) (string, error) {
	ticker := time.NewTicker(slotPoll)
	defer ticker.Stop()
	blockers, stop := "", ctx.Done()
	for {
		select {
		case err := <-done:
			return blockers, err
		case <-stop:
			stop = nil
			cancelCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeConnTimeout)
			_ = conn.CancelRequest(cancelCtx) // if it gets lost, the statement's timeout ends the wait
			cancel()
		case <-ticker.C:
			if stop == nil {
				continue
			}
			now, err := slotBlockers(ctx, side, conn.PID())
			if err == nil && now != "" {
				if blockers == "" {
					d.log.Warn("slot creation waits for running transactions", "blockers", now)
				}
				blockers = now
			}
		}
	}
}

// slotBlockers names the sessions that pid waits for. A prepared transaction
// has no session; pg_blocking_pids calls it 0.
func slotBlockers(ctx context.Context, conn *pgconn.PgConn, pid uint32) (string, error) {
	rows, err := query(ctx, conn, "read what the slot waits for", `
SELECT CASE WHEN b.pid = 0 THEN 'prepared transaction ' || coalesce((SELECT string_agg(quote_literal(gid), ', ') FROM pg_prepared_xacts), '')
            ELSE 'pid ' || b.pid || coalesce(' of ' || a.usename, '') || coalesce(' in database ' || a.datname, '') END
  FROM (SELECT DISTINCT unnest(pg_blocking_pids($1::int4))) b(pid)
  LEFT JOIN pg_stat_activity a ON a.pid = b.pid
 ORDER BY 1`, formatOID(pid))
	names := make([]string, len(rows))
	for i, row := range rows {
		names[i] = row[0]
	}
	return strings.Join(names, ", "), err
}

// slotError turns the server's refusal into one with a cure.
func slotError(slot string, timeout time.Duration, blockers string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || lost(err) {
		return err
	}
	r := &Refusal{Thing: "slot " + slot, Problem: "cannot be created: " + pg.Message}
	switch pg.Code {
	case codeQueryCanceled:
		r.Problem = fmt.Sprintf("its creation still waits after %s for transactions that are writing: %s", timeout, blockers)
		r.Cure = "let them end, SELECT pg_terminate_backend(pid), or COMMIT PREPARED / ROLLBACK PREPARED; then start again"
	case codeNoRight:
		r.Cure = "ALTER ROLE … REPLICATION for the role of source.dsn"
	case codeSlotsFull:
		r.Cure = "drop a slot that nobody reads, or raise max_replication_slots and restart the server"
	case codeDuplicateObject:
		r.Cure = "start again"
	case codeNotInState:
		r.Cure = "ALTER SYSTEM SET wal_level = 'logical'; then restart the server"
	}
	return r
}

// ignoreCanceled drops the error that a cancel request asked for.
func ignoreCanceled(err error) error {
	if sqlState(err) == codeQueryCanceled {
		return nil
	}
	return err
}

// DropLost removes the configured slot if the server gave it up, so that Prepare
// can make it anew; with no slot it does nothing. It refuses to drop one that
// can still be streamed from. What was not confirmed then has to come from a
// repairing backfill: nobody else should call it.
func (d *Database) DropLost(ctx context.Context) error {
	conn, err := d.connect(ctx, false)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	slot, err := d.readSlot(ctx, conn)
	if err != nil || !slot.Exists {
		return err
	}
	if !slot.Lost() || slot.Plugin != outputPlugin || slot.Database != d.conn.Database && d.conn.Database != "" {
		return &Refusal{Thing: "slot " + slot.Name, Problem: "it is not lost", Cure: "stream from it"}
	}
	if _, err := query(ctx, conn, "drop slot "+slot.Name, "SELECT pg_drop_replication_slot($1)", slot.Name); err != nil {
		return err
	}
	d.log.Info("lost slot dropped", "lsn", slot.Confirmed)
	return nil
}

// info is the part of the status that Prepare hands out.
func (s *SlotStatus) info(created bool) SlotInfo {
	return SlotInfo{Name: s.Name, Created: created, Active: s.ActivePID != 0,
		Confirmed: s.Confirmed, Restart: s.Restart, Status: s.Status}
}
