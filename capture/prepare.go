package capture

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// Prepare runs the checks of Doctor and creates the publication and the slot
// where they are missing and may be created. If anything keeps the bridge from
// starting it returns all of it, each a *Refusal or *UsageError with its cure,
// joined, and leaves nothing behind. It never touches a slot that was there.
//
// Several instances may call it at the same time. Those that have something to
// make take turns; who finds everything made waits for none of them, since one of
// them may be frozen.
//
// All connections that follow reach the server of this call, until Unbind: one that
// leads to another is closed, and fails with a *ConnError.
func (d *Database) Prepare(ctx context.Context) (_ *Prepared, err error) {
	if len(d.tables) == 0 {
		return nil, &UsageError{Key: "tables", Problem: "the mapping names no table"}
	}
	d.Unbind()
	defer func() {
		if err != nil {
			d.Unbind()
		}
	}()
	conn, err := d.connect(ctx, false)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn) // also ends the turn
	d.bind(placeOf(conn))
	s, err := d.survey(ctx, conn)
	if err != nil {
		return nil, err
	}
	if s.report.Err() != nil || s.lacks() {
		if err := d.takeTurn(ctx, conn); err != nil {
			return nil, err
		}
		if s, err = d.survey(ctx, conn); err != nil {
			return nil, err
		}
	}
	if err := s.report.Err(); err != nil {
		return nil, err
	}
	for _, f := range s.report.Findings {
		if f.Level == LevelWarning {
			d.log.Warn("preflight", "check", f.Check, "found", f.Found, "cure", f.Cure)
		}
	}
	tables, err := d.describe(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	return d.establish(ctx, conn, s, tables)
}

// lacks reports whether publication or slot are to be made. Without findings in
// the report everything that it looks at is there.
func (s *survey) lacks() bool {
	return s.publication.oid == 0 || !s.slot.Exists || len(s.publication.uncovered(s.tables)) > 0
}

// takeTurn keeps two instances from creating, and undoing, the same things at
// the same time. The lock is the session's.
func (d *Database) takeTurn(ctx context.Context, conn *pgconn.PgConn) error {
	_, err := query(ctx, conn, "wait for another instance to prepare slot "+d.cfg.Slot,
		"SELECT pg_advisory_lock(hashtext('backstory'), hashtext($1))", d.cfg.Slot)
	if sqlState(err) == codeLockNotAvailable {
		return &ConnError{Step: "prepare slot " + d.cfg.Slot, Err: errors.New("another instance is preparing it")}
	}
	return err
}

// describe turns what the survey found into what the other stages need.
func (d *Database) describe(ctx context.Context, conn *pgconn.PgConn, s *survey) ([]TableInfo, error) {
	types, err := resolveTypes(ctx, conn, typesOf(s.tables))
	if err != nil {
		return nil, fmt.Errorf("resolve column types: %w", err)
	}
	tables := make([]TableInfo, len(s.tables))
	for i, t := range s.tables {
		tables[i] = TableInfo{TableRef: t.ref, Relation: t.relation(types), Rows: t.rows, Generated: t.generatedNames(),
			Shape: t.shape(types, s.publication.members[t.ref.String()])}
		if pk := t.primaryKey(); pk != nil {
			tables[i].PrimaryKey = pk.columns
		}
		if tables[i].Rows == 0 && s.major < 14 {
			tables[i].Rows = -1 // older servers say 0 for both empty and never analysed
		}
	}
	return tables, nil
}

// establish makes the publication, then the slot, and undoes what it made if it
// does not get to the end. The order matters: a slot decodes with the catalog as
// of each change, and cannot see a publication that was committed after it.
func (d *Database) establish(ctx context.Context, conn *pgconn.PgConn, s *survey, tables []TableInfo) (_ *Prepared, err error) {
	change, err := d.ensurePublication(ctx, conn, s)
	if err != nil {
		return nil, d.creationError("publication "+d.cfg.Publication, err)
	}
	created := false
	defer func() {
		if err != nil {
			err = errors.Join(err, d.undo(ctx, change, created))
		}
	}()
	if !s.slot.Exists {
		if err = d.createSlot(ctx, conn, d.wantsFailover(s.major) && !s.server.standby); err != nil {
			return nil, err
		}
		created = true
	}
	slot, err := d.readSlot(ctx, conn)
	if err != nil {
		return nil, err
	}
	base, err := d.baselineOf(ctx, conn, s.identity, tables)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.baseline = base
	d.mu.Unlock()
	d.bind(s.identity.place())
	return &Prepared{Identity: s.identity, Server: s.server.version, Slot: slot.info(created), Tables: tables, Seen: base.after}, nil
}

// baselineOf looks at the catalog once more, with everything made, and completes the
// tables that the survey found. Who has altered one of them since is told to start
// again.
func (d *Database) baselineOf(ctx context.Context, conn *pgconn.PgConn, id Identity, tables []TableInfo) (*baseline, error) {
	l, err := d.see(ctx, conn)
	if err != nil {
		return nil, err
	}
	base := &baseline{span: l.span, identity: id, tables: tables, publication: l.publication, shapes: l.shapes()}
	var errs []error
	for i, t := range l.tables {
		errs = append(errs, d.tableDifferences(t, tables[i].Relation, l.publication)...)
		tables[i].Lineage = l.publication.lineage(tables[i].TableRef, t.oid)
		tables[i].Relation, tables[i].Shape = t.relation(l.types), base.shapes[i]
		tables[i].PrimaryKey = nil
		if pk := t.primaryKey(); pk != nil {
			tables[i].PrimaryKey = pk.columns
		}
	}
	return base, errors.Join(errs...)
}

// undo takes back what establish made, on a session of its own: that of the
// caller may be the reason why.
func (d *Database) undo(ctx context.Context, change publicationChange, slot bool) error {
	if !slot && !change.created && len(change.added) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	conn, err := d.connect(ctx, false)
	if err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	defer closeConn(ctx, conn)
	var errs []error
	if slot {
		_, err := query(ctx, conn, "drop slot "+d.cfg.Slot, "SELECT pg_drop_replication_slot($1)", d.cfg.Slot)
		errs = append(errs, err)
	}
	errs = append(errs, d.undoPublication(ctx, conn, change))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// creationError turns the server's refusal to create something into a *Refusal.
func (d *Database) creationError(thing string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || lost(err) {
		return err
	}
	cure := "see the server's message"
	switch pg.Code {
	case codeLockNotAvailable:
		cure = "try again when no ALTER TABLE, VACUUM or CREATE INDEX runs on the mapped tables"
	case codeNoRight:
		cure = "let the owner of the tables create it"
	case codeDuplicateObject:
		cure = "try again"
	}
	return &Refusal{Thing: thing, Problem: "cannot be created: " + pg.Message, Cure: cure}
}
