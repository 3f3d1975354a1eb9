package capture

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Level says how bad a Finding is.
type Level uint8

// The levels. Only LevelError keeps the bridge from starting.
const (
	LevelOK Level = iota
	LevelWarning
	LevelError
)

// String returns "ok", "warning" or "error".
func (l Level) String() string {
	switch l {
	case LevelOK:
		return "ok"
	case LevelWarning:
		return "warning"
	}
	return "error"
}

// MarshalText makes reports for programs carry the name.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is the outcome of one check.
type Finding struct {
	Check string `json:"check"` // what was looked at: "table public.products, primary key"
	Level Level  `json:"level"`
	Found string `json:"found"`          // what is so
	Cure  string `json:"cure,omitempty"` // what to do; a statement where one does it
	usage bool   // the configuration is wrong, not the database
}

// Report is the outcome of all checks, in a fixed order.
type Report struct {
	Server   string    `json:"server"` // version as the server writes it; empty if it could not be asked
	Findings []Finding `json:"findings"`

	// Identity and Tables are what Prepare would return; empty if a finding keeps
	// the bridge from starting.
	Identity Identity    `json:"-"`
	Tables   []TableInfo `json:"-"`
}

// Worst returns the highest level of the findings.
func (r *Report) Worst() Level {
	worst := LevelOK
	for _, f := range r.Findings {
		worst = max(worst, f.Level)
	}
	return worst
}

// Err returns nil if nothing keeps the bridge from starting, else one error for
// every finding that does, joined: a *UsageError where the mapping is wrong, a
// *Refusal where the database is.
func (r *Report) Err() error {
	var errs []error
	for _, f := range r.Findings {
		switch {
		case f.Level != LevelError:
		case f.usage:
			errs = append(errs, &UsageError{Key: f.Check, Problem: f.Found + "; " + f.Cure})
		default:
			errs = append(errs, &Refusal{Thing: f.Check, Problem: f.Found, Cure: f.Cure})
		}
	}
	return errors.Join(errs...)
}

func (r *Report) ok(check, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{Check: check, Level: LevelOK, Found: fmt.Sprintf(format, args...)})
}

func (r *Report) warn(check, cure, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{Check: check, Level: LevelWarning, Found: fmt.Sprintf(format, args...), Cure: cure})
}

func (r *Report) fail(check, cure, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{Check: check, Level: LevelError, Found: fmt.Sprintf(format, args...), Cure: cure})
}

func (r *Report) misuse(check, cure, format string, args ...any) {
	r.fail(check, cure, format, args...)
	r.Findings[len(r.Findings)-1].usage = true
}

// Doctor runs every check and changes nothing. The error says only that the
// checks could not be run; what they found is in the report.
func (d *Database) Doctor(ctx context.Context) (Report, error) {
	conn, err := d.connect(ctx, false)
	if err != nil {
		return refusedReport(err)
	}
	defer closeConn(ctx, conn)
	s, err := d.survey(ctx, conn)
	if err != nil {
		return Report{}, err
	}
	if s.report.Worst() == LevelError {
		return s.report, nil
	}
	s.report.Identity = s.identity
	if s.report.Tables, err = d.describe(ctx, conn, s); err != nil {
		return Report{}, err
	}
	return s.report, nil
}

// refusedReport makes a report of a connection that the server turned away.
func refusedReport(err error) (Report, error) {
	var report Report
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		return report, err
	}
	report.fail(refusal.Thing, refusal.Cure, "%s", refusal.Problem)
	return report, nil
}

// survey is one look at the server, the tables, the publication and the slot,
// and what is to be said of them.
type survey struct {
	server      serverFacts
	major       int
	identity    Identity
	tables      []*tableFacts // in the order of Database.tables
	publication *publicationFacts
	slot        SlotStatus
	failover    failoverFacts
	report      Report

	siblingsToMake int      // slots of the process's other bridges that are not there yet
	siblingsAsleep int      // of them and of those that are there, from which nobody streams
	leftSlots      []string // slots that its mapping does not use any more
}

// serverFacts is what the checks need to know of server, database and role.
type serverFacts struct {
	version      int // server_version_num
	walLevel     string
	effective    string // effective_wal_level; empty before 19
	slots        int    // max_replication_slots
	senders      int    // max_wal_senders
	slotsUsed    int
	sendersUsed  int
	standby      bool
	mayCreate    bool // CREATE on the database
	database     string
	role         string
	encoding     string
	keepSize     string // max_slot_wal_keep_size; empty before 13
	idleTimeout  string // idle_replication_slot_timeout; empty before 18
	writers      []string
	preparedTxns []string
}

// survey reads all facts and runs all checks.
func (d *Database) survey(ctx context.Context, conn *pgconn.PgConn) (*survey, error) {
	s := &survey{major: serverMajor(conn)}
	s.report.Server = conn.ParameterStatus("server_version")
	if s.major < oldestMajor {
		d.checkServer(s)
		return s, nil // older catalogs have no publications to read
	}
	if err := s.server.read(ctx, conn); err != nil {
		return nil, err
	}
	var err error
	if s.slot, err = d.readSlot(ctx, conn); err != nil { // first of all
		return nil, err
	}
	if err := s.failover.read(ctx, conn); err != nil {
		return nil, err
	}
	if err := d.readSiblings(ctx, conn, s); err != nil {
		return nil, err
	}
	if err := s.readTables(ctx, conn, d.tables); err != nil {
		return nil, err
	}
	if s.publication, err = d.readPublication(ctx, conn); err != nil {
		return nil, err
	}
	d.checkServer(s)
	if err := d.checkReplication(ctx, s, placeOf(conn)); err != nil {
		return nil, err
	}
	d.checkSlot(s)
	d.checkFailover(s)
	d.checkLeftSlots(s)
	d.checkPublication(s)
	for _, t := range s.tables {
		if t.oid == 0 {
			if err := s.reportMissing(ctx, conn, t.ref); err != nil {
				return nil, err
			}
			continue
		}
		d.checkTable(s, t)
	}
	return s, nil
}

// readTables reads the facts of all tables in one snapshot.
func (s *survey) readTables(ctx context.Context, conn *pgconn.PgConn, refs []TableRef) error {
	if err := exec(ctx, conn, "begin", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err != nil {
		return err
	}
	for _, ref := range refs {
		t, err := readTable(ctx, conn, ref)
		if err != nil {
			return err
		}
		s.tables = append(s.tables, t)
	}
	return exec(ctx, conn, "commit", "COMMIT")
}

// read fills f. A role without rights sees the sessions of others, but not
// since when their transactions run; those count as old.
func (f *serverFacts) read(ctx context.Context, conn *pgconn.PgConn) error {
	const step = "read settings of the server"
	row, err := queryRow(ctx, conn, step, `
SELECT current_setting('server_version_num'), current_setting('wal_level'),
       current_setting('max_replication_slots'), current_setting('max_wal_senders'),
       (SELECT count(*) FROM pg_replication_slots)::text, (SELECT count(*) FROM pg_stat_replication)::text,
       pg_is_in_recovery(), has_database_privilege(current_database(), 'CREATE'), current_database(),
       current_user, current_setting('server_encoding'),
       coalesce(current_setting('max_slot_wal_keep_size', true), ''),
       coalesce(current_setting('idle_replication_slot_timeout', true), ''),
       coalesce(current_setting('effective_wal_level', true), '')`)
	if err != nil {
		return err
	}
	numbers := []*int{&f.version, nil, &f.slots, &f.senders, &f.slotsUsed, &f.sendersUsed}
	for i, to := range numbers {
		if to == nil {
			continue
		}
		if *to, err = strconv.Atoi(row[i]); err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
	}
	f.walLevel, f.standby, f.mayCreate = row[1], row[6] == "t", row[7] == "t"
	f.database, f.role, f.encoding, f.keepSize, f.idleTimeout = row[8], row[9], row[10], row[11], row[12]
	f.effective = row[13]
	return f.readWriters(ctx, conn)
}

// readWriters lists what may keep the creation of a slot waiting.
func (f *serverFacts) readWriters(ctx context.Context, conn *pgconn.PgConn) error {
	rows, err := query(ctx, conn, "read running transactions", `
SELECT 's', 'pid ' || pid || coalesce(' of ' || usename, '') || coalesce(' in database ' || datname, '')
  FROM pg_stat_activity
 WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
   AND (xact_start IS NULL OR xact_start < clock_timestamp() - interval '1 minute')
UNION ALL
SELECT 'p', quote_literal(gid) || ' of ' || owner || ' in database ' || database FROM pg_prepared_xacts
 ORDER BY 1, 2`)
	for _, row := range rows {
		if row[0] == "s" {
			f.writers = append(f.writers, row[1])
		} else {
			f.preparedTxns = append(f.preparedTxns, row[1])
		}
	}
	return err
}

// Versions that the package knows.
const (
	oldestMajor = 10
	newestMajor = 18

	versionEffectiveLevel = 19 // effective_wal_level: the first logical slot raises it
)

// checkServer judges version, settings and rights.
func (d *Database) checkServer(s *survey) {
	r, f := &s.report, &s.server
	switch {
	case s.major < oldestMajor:
		r.fail("server version", "upgrade the server to Postgres 10 or later", "%s has no logical replication with pgoutput", r.Server)
		return
	case s.major > newestMajor:
		r.warn("server version", "test before relying on it", "%s is newer than %d, the newest that was tried", r.Server, newestMajor)
	default:
		r.ok("server version", "%s", r.Server)
	}
	if s.major < versionTruncate {
		r.warn("server version", "do not TRUNCATE mapped tables, or upgrade; a backfill finds the deleted rows",
			"Postgres 10 does not replicate TRUNCATE")
	}
	s.checkWALLevel()
	d.checkStandby(s)
	s.checkEncoding()
	if s.publication.oid == 0 && d.cfg.Create && !f.mayCreate {
		r.fail("role "+f.role+", right to create", "GRANT CREATE ON DATABASE "+quoteIdent(f.database)+" TO "+
			quoteIdent(f.role)+"; or let the owner run: "+d.createSQL(s.existing(), s.major),
			"may not create a publication in database %s", f.database)
	}
	d.checkRetention(s)
}

// checkEncoding says what becomes of texts that are not UTF-8.
func (s *survey) checkEncoding() {
	const replace = "leave a column that may hold other bytes out with omit, or have them replaced by U+FFFD with undecodable: replace"
	switch c, known := charsetOf(s.server.encoding); {
	case !known:
		s.report.warn("encoding", "have texts in it that have UTF-8 only",
			"only the server can convert %s: a text that it cannot convert ends the stream without saying in which column, "+
				"and context messages keep their ASCII characters only", s.server.encoding)
	case c == nil:
	case c.name == sqlASCII:
		s.report.warn("encoding", "let the application write UTF-8 only; "+replace,
			"the database is SQL_ASCII and does not know what its bytes mean: they are taken for UTF-8, and a captured text that is not stops the bridge")
	default:
		s.report.ok("encoding", "%s; a captured text with a byte that is no character of it stops the bridge: then %s", c.name, replace)
	}
}

// checkWALLevel judges whether WAL has what decoding needs. From 19 on the first
// logical slot raises the level of a server that is at replica.
func (s *survey) checkWALLevel() {
	r, f := &s.report, &s.server
	switch {
	case f.walLevel == "logical", f.effective == "logical":
		r.ok("wal_level", "logical")
	case s.major >= versionEffectiveLevel && f.walLevel == "replica":
		r.ok("wal_level", "replica; it will be raised to logical when the slot is made")
	default:
		r.fail("wal_level", "ALTER SYSTEM SET wal_level = 'logical'; then restart the server", "%s", f.walLevel)
	}
}

func (d *Database) checkStandby(s *survey) {
	switch {
	case !s.server.standby:
	case s.major < 16:
		s.report.fail("server role", "name the primary in source.dsn", "it is a standby, which cannot decode WAL before Postgres 16")
	default:
		s.report.warn("server role", "name the primary in source.dsn",
			"it is a standby: a backfill cannot write its watermarks there, and the publication must come from the primary")
	}
}

// checkRetention judges how long the server keeps WAL for a bridge that stands still.
func (d *Database) checkRetention(s *survey) {
	r := &s.report
	switch s.server.keepSize {
	case "":
		r.warn("WAL retention", "watch the server's disk, or upgrade to Postgres 13 or later",
			"WAL is kept without limit while the bridge is down")
	case "-1":
		r.warn("max_slot_wal_keep_size", "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; then SELECT pg_reload_conf(); with a size that the disk can hold",
			"no limit: WAL fills the disk if the bridge stays down")
	default:
		r.ok("max_slot_wal_keep_size", "%s: a bridge that falls further behind loses its slot and needs a backfill", s.server.keepSize)
	}
	if t := s.server.idleTimeout; t != "" && t != "0" {
		r.warn("idle_replication_slot_timeout", "ALTER SYSTEM SET idle_replication_slot_timeout = 0; then SELECT pg_reload_conf()",
			"%s: a bridge that is down for longer loses its slot", t)
	}
}

// checkReplication opens a replication session: only that shows whether the role
// may stream, since managed servers grant it in ways of their own. It is one with
// the server whose catalog was read.
func (d *Database) checkReplication(ctx context.Context, s *survey, here place) error {
	r, f := &s.report, &s.server
	if f.sendersUsed+s.siblingsAsleep >= f.senders {
		r.fail("max_wal_senders", fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d; then restart the server", f.sendersUsed+s.siblingsAsleep+4),
			"%d of %d are in use, and %d are needed", f.sendersUsed, f.senders, s.siblingsAsleep+1)
		return nil
	}
	r.ok("max_wal_senders", "%d of %d are in use", f.sendersUsed, f.senders)
	conn, err := d.dialAt(ctx, forStreaming, here)
	var refusal *Refusal
	if errors.As(err, &refusal) {
		r.fail("role "+f.role+", replication", refusal.Cure, "%s", refusal.Problem)
		return nil
	}
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	if s.identity, _, err = identify(ctx, conn); err != nil {
		return err
	}
	r.ok("role "+f.role+", replication", "may stream")
	return nil
}

// checkSlot judges the slot, or the room for one.
func (d *Database) checkSlot(s *survey) {
	if s.slot.Exists {
		d.checkExistingSlot(s)
		return
	}
	r, f := &s.report, &s.server
	check := "slot " + d.cfg.Slot
	switch {
	case f.slotsUsed+s.siblingsToMake >= f.slots:
		r.fail("max_replication_slots", fmt.Sprintf("drop a slot that nobody reads (SELECT slot_name FROM pg_replication_slots WHERE NOT active), "+
			"or ALTER SYSTEM SET max_replication_slots = %d; then restart the server", f.slotsUsed+s.siblingsToMake+4),
			"%d of %d are in use, and %d are to be made", f.slotsUsed, f.slots, s.siblingsToMake+1)
	case !d.cfg.Create:
		r.fail(check, fmt.Sprintf("SELECT pg_create_logical_replication_slot(%s, '%s'); or set source.create: true",
			quoteLiteral(d.cfg.Slot), outputPlugin), "there is none, and source.create is false")
	default:
		r.ok(check, "will be created")
	}
	if len(f.writers) > 0 {
		r.warn(check, "let them end, or SELECT pg_terminate_backend(pid)",
			"its creation waits for transactions that have been writing for more than a minute: %s", strings.Join(f.writers, ", "))
	}
	if len(f.preparedTxns) > 0 {
		r.warn(check, "COMMIT PREPARED or ROLLBACK PREPARED each of them",
			"its creation waits for prepared transactions: %s", strings.Join(f.preparedTxns, ", "))
	}
}

// checkExistingSlot judges whether the slot is one that can be streamed from.
func (d *Database) checkExistingSlot(s *survey) {
	r, slot := &s.report, &s.slot
	check := "slot " + slot.Name
	other := "set source.slot to another name, or, if nobody reads it, SELECT pg_drop_replication_slot(" + quoteLiteral(slot.Name) + ")"
	switch {
	case slot.Plugin == "":
		r.fail(check, other, "it is a physical slot")
	case slot.Plugin != outputPlugin:
		r.fail(check, other, "its output plugin is %s, not %s", slot.Plugin, outputPlugin)
	case slot.Database != s.server.database:
		r.fail(check, other, "it belongs to database %s, not %s", slot.Database, s.server.database)
	case slot.Temporary:
		r.fail(check, "set source.slot to another name", "it is a temporary slot of session %d", slot.ActivePID)
	case slot.Lost():
		r.fail(check, repairCure, "%s", lostProblem(slot))
	case slot.TwoPhase:
		refusal := twoPhaseRefusal(slot.Name, s.major)
		r.fail(check, refusal.Cure, "%s", refusal.Problem)
	case slot.ActivePID != 0:
		r.warn(check, "none if that is another instance of the bridge: this one stands by",
			"session %d streams from it", slot.ActivePID)
	case slot.Status == walUnreserved || slot.Status == walExtended:
		r.warn(check, "start the bridge soon; raise max_slot_wal_keep_size",
			"wal_status is %s: %d bytes of WAL are kept, %d more until it is lost", slot.Status, slot.Retained, slot.Safe)
	default:
		r.ok(check, "confirmed %s, %d bytes of WAL are kept", slot.Confirmed, slot.Retained)
	}
}

func lostProblem(slot *SlotStatus) string {
	reason := "wal_status is " + slot.Status
	if slot.Invalidation != "" {
		reason = "invalidated: " + slot.Invalidation
	}
	return "the server gave it up (" + reason + "); the changes since " + slot.Confirmed.String() + " cannot be streamed"
}
