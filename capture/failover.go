package capture

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// alterTimeout bounds the alteration of the slot, which waits while another
// session has it.
const alterTimeout = 10 * time.Second

// wantsFailover reports whether the slot is to be one that standbys copy.
func (d *Database) wantsFailover(major int) bool {
	return d.cfg.Failover != failoverOff && major >= versionFailover
}

// offerFailover makes the slot one that standbys copy, if that is wanted and it is
// not one yet. conn is a replication session, and nobody streams from the slot.
func (d *Database) offerFailover(ctx context.Context, conn *pgconn.PgConn) error {
	if !d.wantsFailover(serverMajor(conn)) {
		return nil
	}
	lacks, err := d.lacksFailover(ctx, conn)
	if err != nil || !lacks {
		return err
	}
	const step = "let standbys copy the slot"
	bounded, cancel := context.WithTimeout(ctx, alterTimeout)
	defer cancel()
	err = exec(bounded, conn, step, alterFailoverSQL(d.cfg.Slot))
	switch {
	case err == nil:
		d.log.Info("slot altered: standbys that synchronize slots copy it")
		return nil
	case bounded.Err() != nil && ctx.Err() == nil: // and the session is over with it
		return &ConnError{Step: step, Err: errors.New("another session was faster to take it")}
	}
	return d.notAltered(err)
}

// notAltered says what it means that the slot could not be altered: nothing to the
// stream, but to who has asked for it.
func (d *Database) notAltered(err error) error {
	code := sqlState(err)
	switch {
	case code == "", code == codeObjectInUse, lost(err):
		return err
	case d.cfg.Failover == failoverOn:
		return &Refusal{Thing: "slot " + d.cfg.Slot, Problem: "source.failover is on, and the server does not let standbys copy it: " + serverText(err),
			Cure: "do as the server says, or set source.failover: auto"}
	}
	d.log.Warn("standbys do not copy the slot: after a fail-over it will be missing", "err", serverText(err))
	return nil
}

// lacksFailover reports whether the slot is there and could be altered.
func (d *Database) lacksFailover(ctx context.Context, conn *pgconn.PgConn) (bool, error) {
	results, err := conn.Exec(ctx, "SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = "+quoteLiteral(d.cfg.Slot)+
		" AND NOT failover AND NOT temporary AND plugin IS NOT NULL AND NOT pg_catalog.pg_is_in_recovery()").ReadAll()
	if err != nil {
		return false, stepError(ctx, "look at slot "+d.cfg.Slot, err)
	}
	return len(results) == 1 && len(results[0].Rows) == 1, nil
}

// alterFailoverSQL is a command of replication sessions.
func alterFailoverSQL(slot string) string {
	return "ALTER_REPLICATION_SLOT " + quoteIdent(slot) + " (FAILOVER true)"
}

// failoverFacts is what the checks need to know of fail-over.
type failoverFacts struct {
	standbys []string // application names of those that receive WAL
	physical []string // their slots, as far as they have some
	waitsFor string   // synchronized_standby_slots; empty before 17
}

// read fills f. A role without pg_read_all_stats sees that there are standbys, and
// nothing of them.
func (f *failoverFacts) read(ctx context.Context, conn *pgconn.PgConn) error {
	rows, err := query(ctx, conn, "read the standbys", `
SELECT coalesce(nullif(r.application_name, ''), 'pid ' || r.pid), coalesce(s.slot_name, '')
  FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
 WHERE coalesce(r.state, 'streaming') IN ('streaming', 'catchup') AND coalesce(s.slot_type, 'physical') = 'physical'
 ORDER BY 1`)
	if err != nil {
		return err
	}
	for _, row := range rows {
		f.standbys = append(f.standbys, row[0])
		if row[1] != "" {
			f.physical = append(f.physical, row[1])
		}
	}
	row, err := queryRow(ctx, conn, "read synchronized_standby_slots", "SELECT coalesce(current_setting('synchronized_standby_slots', true), '')")
	if err != nil {
		return err
	}
	f.waitsFor = row[0]
	return nil
}

// checkFailover judges whether the slot would be there after a fail-over, and the
// standby have all that was published.
func (d *Database) checkFailover(s *survey) {
	r, f := &s.report, &s.failover
	check := "slot " + d.cfg.Slot + ", fail-over"
	if d.cfg.Failover == failoverOn && (s.major < versionFailover || s.server.standby) {
		problem := "slots are copied to standbys from Postgres 17 on"
		if s.server.standby {
			problem = "a slot of a standby is not copied to others"
		}
		r.fail(check, "set source.failover: auto", "source.failover is on, but %s", problem)
		return
	}
	if s.major < versionFailover || s.server.standby {
		return
	}
	if len(f.standbys) > 0 {
		d.checkCopied(s, check)
	}
	if d.wantsFailover(s.major) && len(f.standbys) > 0 && f.waitsFor == "" {
		r.warn("synchronized_standby_slots", "ALTER SYSTEM SET synchronized_standby_slots = '"+f.slots()+"'; then SELECT pg_reload_conf()",
			"it is empty: changes may be published that a standby does not have when it is promoted, and then the tables have to be compared")
	}
}

// checkCopied judges a slot on a server that has standbys.
func (d *Database) checkCopied(s *survey, check string) {
	r, standbys := &s.report, strings.Join(s.failover.standbys, ", ")
	switch {
	case s.slot.Failover, d.wantsFailover(s.major) && !s.slot.Exists:
		r.ok(check, "is copied to the standbys that synchronize slots (there are: %s)", standbys)
	case d.cfg.Failover == failoverOff:
		r.warn(check, "set source.failover: auto", "source.failover is off: the standbys (%s) do not copy the slot, and after a fail-over it will be missing", standbys)
	default:
		r.warn(check, "none if the bridge starts next: it alters the slot when it takes it; else start it anew, or on a replication connection: "+alterFailoverSQL(d.cfg.Slot),
			"the standbys (%s) do not copy it yet, and after a fail-over it would be missing", standbys)
	}
}

// slots is a value of synchronized_standby_slots: the slots that the standbys use.
func (f *failoverFacts) slots() string {
	if len(f.physical) == 0 {
		return "…" // a standby without a slot has to get one first
	}
	return strings.Join(f.physical, ", ")
}

// twoPhaseRefusal says that the slot sends transactions before they commit.
func twoPhaseRefusal(slot string, major int) *Refusal {
	cure := anewCure(slot)
	if major >= versionTwoPhaseOff {
		cure += fmt.Sprintf("; or, while pg_prepared_xacts is empty and nobody has streamed from it, on a replication connection: ALTER_REPLICATION_SLOT %s (TWO_PHASE false)",
			quoteIdent(slot))
	}
	return &Refusal{
		Thing:   "slot " + slot,
		Problem: "its two_phase is true: it sends prepared transactions before they commit, and the bridge would publish what may yet be rolled back",
		Cure:    cure,
	}
}
