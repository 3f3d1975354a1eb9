package capture

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// standbyFacts is what a standby says of itself and of its copy of the slot.
type standbyFacts struct {
	major     int
	place     place
	syncs     string // sync_replication_slots; empty before 17
	feedback  string // hot_standby_feedback
	physical  string // primary_slot_name
	conninfo  string // primary_conninfo; empty where the role may not know it
	exists    bool
	synced    bool
	temporary bool
}

// ExamineStandby looks at the server of Config.StandbyDSN whether a fail-over to it
// would find the slot. Whatever it finds is a warning: the bridge runs without.
// Without such a DSN it finds nothing. from is where Doctor was; the zero value if
// that is not known.
func (d *Database) ExamineStandby(ctx context.Context, from Identity) []Finding {
	if d.cfg.StandbyDSN == "" {
		return nil
	}
	var r Report
	f, err := d.askStandby(ctx)
	if err != nil {
		r.warn("standby", "check source.standby_dsn, and that the server is up", "cannot be asked: %s", err)
		return r.Findings
	}
	d.checkStandbyServer(&r, f, from.place())
	return r.Findings
}

// askStandby reads the facts on a session of its own.
func (d *Database) askStandby(ctx context.Context) (*standbyFacts, error) {
	cfg, err := parseDSN(d.cfg.StandbyDSN)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"statement_timeout": milliseconds(catalogTimeout), "default_transaction_read_only": "on",
	} {
		cfg.RuntimeParams[name] = value
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, connectError(ctx, cfg, false, err)
	}
	defer closeConn(ctx, conn)
	f := &standbyFacts{major: serverMajor(conn)}
	if f.major < oldestMajor {
		return nil, fmt.Errorf("it is Postgres %s", conn.ParameterStatus("server_version"))
	}
	if f.place, err = d.askPlace(ctx, conn); err != nil {
		return nil, err
	}
	return f, f.read(ctx, conn, d.cfg.Slot)
}

// read fills what the catalog says. pg_settings hides what a role may not know.
func (f *standbyFacts) read(ctx context.Context, conn *pgconn.PgConn, slot string) error {
	synced := "false"
	if f.major >= versionFailover {
		synced = "coalesce(s.synced, false)"
	}
	row, err := queryRow(ctx, conn, "read settings and slot of the standby", `
SELECT coalesce(current_setting('sync_replication_slots', true), ''), current_setting('hot_standby_feedback'),
       coalesce((SELECT setting FROM pg_settings WHERE name = 'primary_slot_name'), ''),
       coalesce((SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'), ''),
       s.slot_name IS NOT NULL, `+synced+`, coalesce(s.temporary, false)
  FROM (SELECT) one LEFT JOIN pg_replication_slots s ON s.slot_name = $1`, slot)
	if err != nil {
		return err
	}
	f.syncs, f.feedback, f.physical, f.conninfo = row[0], row[1], row[2], row[3]
	f.exists, f.synced, f.temporary = row[4] == "t", row[5] == "t", row[6] == "t"
	return nil
}

// checkStandbyServer judges the facts.
func (d *Database) checkStandbyServer(r *Report, f *standbyFacts, from place) {
	switch difference := (place{system: f.place.system}).differs(from); {
	case difference != "":
		r.warn("standby", "name a standby of the server of source.dsn in source.standby_dsn", "it is of another cluster: it %s", difference)
		return
	case !f.place.standby:
		r.warn("standby", "name the standby in source.standby_dsn, and the primary in source.dsn", "it is no standby")
		return
	}
	if f.major >= versionFailover {
		f.checkSyncSettings(r)
	}
	f.checkCopy(r, d.cfg.Slot)
}

// checkSyncSettings judges what a standby needs to copy slots.
func (f *standbyFacts) checkSyncSettings(r *Report) {
	const reload = "; then SELECT pg_reload_conf(), on the standby"
	for _, setting := range []struct {
		name, found, cure string
		bad               bool
	}{
		{"sync_replication_slots", "off: it copies no slots", "ALTER SYSTEM SET sync_replication_slots = on", f.syncs == "off"},
		{"hot_standby_feedback", "off: it copies no slots without", "ALTER SYSTEM SET hot_standby_feedback = on", f.feedback == "off"},
		{"primary_slot_name", "empty: it copies no slots without a physical slot on the primary",
			"SELECT pg_create_physical_replication_slot('standby') on the primary; then ALTER SYSTEM SET primary_slot_name = 'standby'", f.physical == ""},
		{"primary_conninfo", "without dbname: it copies no slots", "add dbname=postgres to primary_conninfo", f.conninfo != "" && !hasDatabase(f.conninfo)},
	} {
		if setting.bad {
			r.warn("standby, "+setting.name, setting.cure+reload, "%s", setting.found)
		} else {
			r.ok("standby, "+setting.name, "lets it copy slots")
		}
	}
}

// hasDatabase reports whether a connection string names a database, as far as it
// can be parsed.
func hasDatabase(conninfo string) bool {
	cfg, err := pgconn.ParseConfig(conninfo)
	return err != nil || cfg.Database != ""
}

// checkCopy judges the standby's copy of the slot. Before 17 others make it, such as
// Patroni or pg_failover_slots.
func (f *standbyFacts) checkCopy(r *Report, slot string) {
	check := "standby, slot " + slot
	switch {
	case !f.exists && f.major < versionFailover:
		r.warn(check, "let Patroni or the extension pg_failover_slots copy it, or upgrade to Postgres 17",
			"it is not there: after a fail-over to this server the tables have to be compared")
	case !f.exists:
		r.warn(check, "see the other findings of the standby; a slot that was just made appears with the next look, or SELECT pg_log_standby_snapshot() on the primary",
			"it is not there: after a fail-over to this server the tables have to be compared")
	case f.temporary:
		r.warn(check, "let the bridge run, and run SELECT pg_log_standby_snapshot() on the primary: the copy waits until the standby has what the slot needs",
			"its copy is still temporary, and would be gone after a promotion")
	case f.major >= versionFailover && !f.synced:
		r.warn(check, "SELECT pg_drop_replication_slot("+quoteLiteral(slot)+") on the standby, which then copies the primary's",
			"it is not synced, but was made there: it does not follow the primary's")
	default:
		r.ok(check, "is there")
	}
}
