package capture

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// baseline is what Prepare found and everything after it relies on.
type baseline struct {
	span
	identity    Identity
	tables      []TableInfo
	publication *publicationFacts
	shapes      []Shape // in the order of tables
}

// recheckTimeout bounds one round of the watch.
const recheckTimeout = 30 * time.Second

// watch looks every ten seconds whether publication, tables and slot are as
// Prepare found them, and hands each look on. It returns the *Refusal when they are
// not, a *UsageError when the mapping does not fit any more, a *ConnError when another
// server answers, and the context's error when ctx ends. Whether the server can be
// reached is not its business: it tries again, and the stream notices by itself.
func (d *Database) watch(ctx context.Context, found func(*look)) error {
	var conn *pgconn.PgConn
	defer func() {
		if conn != nil {
			closeConn(ctx, conn)
		}
	}()
	ticker := time.NewTicker(d.every)
	defer ticker.Stop()
	told := false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
		var err error
		if conn == nil {
			conn, err = d.connect(ctx, false) // refused or not: the stream may still be up
		}
		if err == nil {
			var l *look
			if l, err = d.check(ctx, conn); refused(err) || misused(err) {
				return err
			}
			if err == nil {
				found(l)
			}
		}
		if strayed(err) {
			return err
		}
		if err == nil {
			told = false
			continue
		}
		if conn != nil {
			closeConn(ctx, conn)
			conn = nil
		}
		if !told && ctx.Err() == nil {
			told = true
			d.log.Warn("publication and slot cannot be checked; trying again", "err", err)
		}
	}
}

// recheck compares the catalog with the baseline.
func (d *Database) recheck(ctx context.Context, conn *pgconn.PgConn) error {
	_, err := d.check(ctx, conn)
	return err
}

// check is recheck that returns what it saw.
func (d *Database) check(ctx context.Context, conn *pgconn.PgConn) (*look, error) {
	d.mu.Lock()
	was := d.baseline
	d.mu.Unlock()
	if was == nil {
		return nil, errors.New("check publication and slot: Prepare has not succeeded yet")
	}
	ctx, cancel := context.WithTimeout(ctx, recheckTimeout)
	defer cancel()
	if err := d.recheckCluster(ctx, conn, was); err != nil {
		return nil, err
	}
	slot, err := d.readSlot(ctx, conn)
	if err != nil {
		return nil, err
	}
	d.metrics.retained.Set(float64(slot.Retained))
	d.metrics.safe.Set(float64(slot.Safe))
	l, err := d.see(ctx, conn)
	if err != nil {
		return nil, err
	}
	return l, errors.Join(append(d.slotDifferences(&slot, was, serverMajor(conn)), d.differences(l, was, serverMajor(conn))...)...)
}

// recheckCluster makes sure that the session did not end up in another cluster,
// nor on a later timeline, as when the standby that it streams from was promoted:
// the next session then decides whether it can go on. What the role may not ask
// the stream's own check has to do.
func (d *Database) recheckCluster(ctx context.Context, conn *pgconn.PgConn, was *baseline) error {
	here, err := d.askPlace(ctx, conn)
	if err != nil {
		return err
	}
	if here.system != 0 && here.system != was.identity.System {
		return &Refusal{Thing: "server", Problem: "it is another cluster than the one the bridge prepared",
			Cure: "point source.dsn to the former one, or use a new slot name and state"}
	}
	if difference := here.differs(was.identity.place()); difference != "" {
		return &ConnError{Step: "check the server", Err: &strayError{addr: conn.Conn().RemoteAddr().String(),
			problem: difference + ", as the session's server", moved: true}}
	}
	return nil
}

// slotDifferences says what has become of the slot.
func (d *Database) slotDifferences(slot *SlotStatus, was *baseline, major int) []error {
	thing := "slot " + slot.Name
	switch {
	case !slot.Exists:
		return []error{&Refusal{Thing: thing, Problem: "it was dropped", Cure: repairCure}}
	case slot.Lost():
		return []error{&Refusal{Thing: thing, Problem: lostProblem(slot), Cure: repairCure}}
	case slot.Plugin != outputPlugin || slot.Database != was.identity.Database:
		return []error{&Refusal{Thing: thing, Problem: "it was replaced by another one", Cure: "set source.slot to a new name; then " + repairCure}}
	case slot.TwoPhase:
		return []error{twoPhaseRefusal(slot.Name, major)}
	}
	return nil
}

// publicationDifferences says what has become of the publication as a whole and
// of the mapped tables in it.
func (d *Database) publicationDifferences(now *publicationFacts, was *baseline, major int) []error {
	thing := "publication " + d.cfg.Publication
	switch {
	case now.oid == 0:
		return []error{&Refusal{Thing: thing, Problem: "it was dropped; changes made meanwhile cannot be streamed", Cure: anewCure(d.cfg.Slot)}}
	case now.oid != was.publication.oid:
		return []error{&Refusal{Thing: thing, Problem: "it was dropped and made anew; changes made meanwhile cannot be streamed", Cure: anewCure(d.cfg.Slot)}}
	case len(now.lacks) > 0:
		return []error{&Refusal{Thing: thing, Problem: "it no longer publishes " + strings.Join(now.lacks, ", "),
			Cure: d.publishSQL(major) + "; then " + againCure}}
	case now.version != was.publication.version:
		return []error{&Refusal{Thing: thing, Problem: "it was altered; changes made meanwhile may be missing", Cure: againCure}}
	}
	var errs []error
	for _, ref := range d.tables {
		before, after := was.publication.members[ref.String()], now.members[ref.String()]
		switch {
		case after.same(before):
		case !after.covered:
			errs = append(errs, &Refusal{Thing: "table " + ref.String(), Problem: "it was taken out of publication " + d.cfg.Publication,
				Cure: "ALTER PUBLICATION " + quoteIdent(d.cfg.Publication) + " ADD TABLE ONLY " + quoteTable(ref.Schema, ref.Name) + "; then " + againCure})
		default:
			errs = append(errs, &Refusal{Thing: "table " + ref.String(), Problem: "its entry in publication " + d.cfg.Publication + " was changed; changes made meanwhile may be missing",
				Cure: againCure})
		}
	}
	return errs
}

// againCure ends what only a comparison mends: a start that finds another
// TableInfo.Lineage than the state remembers makes one.
const againCure = "start again: the preflight says what is wrong still, then the tables are compared with the state"

// repairCure is the way out where the slot is gone or lost.
const repairCure = "run `backstory backfill --reconcile`: it makes the slot anew, compares the tables with the state and publishes the differences"

// anewCure is the way out where the slot is there but of no use any more.
func anewCure(slot string) string {
	return "SELECT pg_drop_replication_slot(" + quoteLiteral(slot) + "); then " + repairCure
}

// tableDifferences says whether a table is still the one that was prepared and
// still identifies its rows. Other changes of its columns arrive with the stream.
func (d *Database) tableDifferences(now *tableFacts, was *Relation, publication *publicationFacts) []error {
	thing := "table " + now.ref.String()
	if now.oid != was.ID {
		problem := "it was dropped or renamed"
		if now.oid != 0 {
			problem = "it was dropped and made anew, or another one has its name"
		}
		return []error{&Refusal{Thing: thing, Problem: problem, Cure: "restore it, or correct the mapping; then " + againCure}}
	}
	var errs []error
	if now.persistence != persistent {
		errs = append(errs, &Refusal{Thing: thing, Problem: "it is unlogged: its changes are not in WAL",
			Cure: "ALTER TABLE " + now.sql() + " SET LOGGED; then " + repairCure})
	}
	if !containsAll(now.identityColumns(), now.key()) || now.key() == nil {
		errs = append(errs, &Refusal{Thing: thing, Problem: "its replica identity no longer has the key: UPDATE and DELETE fail, or do not say which row they met",
			Cure: "run `backstory doctor`"})
	}
	member := publication.members[now.ref.String()]
	if lacks := missing(member.columns, now.captured()); member.list && len(lacks) > 0 {
		errs = append(errs, &Refusal{Thing: thing, Problem: "the publication's column list lacks " + strings.Join(lacks, ", "),
			Cure: "run `backstory doctor`"})
	}
	return errs
}

// misused reports whether err, or an error in it, is a *UsageError.
func misused(err error) bool {
	var usage *UsageError
	return errors.As(err, &usage)
}

// refused reports whether err, or an error in it, is a *Refusal.
func refused(err error) bool {
	var refusal *Refusal
	return errors.As(err, &refusal)
}
