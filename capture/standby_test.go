package capture_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"backstory/capture"
	"backstory/internal/child"
	"backstory/internal/pgserver"
	"backstory/internal/testenv"
)

// couple is a primary with a database, and a standby of it.
type couple struct {
	*legacy
	standby *pgserver.Server
}

// newCouple makes a private primary with a physical slot, runs sql in its database,
// and makes the standby of a copy. settings are the standby's.
func newCouple(t *testing.T, version string, settings map[string]string, sql ...string) *couple {
	t.Helper()
	pg := testenv.Postgres(t, testenv.Fresh(), testenv.PGVersion(version))
	l := newLegacy(t, pg, append([]string{`SELECT pg_create_physical_replication_slot('standby', true)`}, sql...)...)
	data := l.rows(t, `SHOW data_directory`)[0]
	scratch, err := child.NewScratch("pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := scratch.Remove(); err != nil {
			t.Error(err)
		}
	})
	pg.Stop(t)
	for _, args := range [][]string{
		{"cp", "-a", data, filepath.Join(scratch.Dir, "data")},
		{"cp", "-a", filepath.Join(data, "PG_VERSION"), filepath.Join(scratch.Dir, "data", "standby.signal")}, // any content will do
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	slots, err := filepath.Glob(filepath.Join(scratch.Dir, "data", "pg_replslot", "*")) // a backup has none
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if err := os.RemoveAll(slot); err != nil {
			t.Fatal(err)
		}
	}
	pg.Restart(t)
	host, port, _ := strings.Cut(pg.Addr(), ":")
	all := map[string]string{
		"primary_conninfo":  "host=" + host + " port=" + port + " user=postgres application_name=standby dbname=postgres",
		"primary_slot_name": "standby",
	}
	maps.Copy(all, settings)
	standby, err := pgserver.Start(t.Context(), pgserver.Options{Version: version, Dir: scratch.Dir, Fast: true, Settings: all})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Stop(context.Background(), pgserver.ImmediateStop); err != nil {
			t.Errorf("stop the standby: %v", err)
		}
	})
	return &couple{l, standby}
}

// onStandby is the standby's DSN.
func (c *couple) onStandby() string { return c.standby.DSN(c.name) }

// hosts is a DSN that names servers in this order, with further parameters.
func (c *couple) hosts(more string, addrs ...string) string {
	return fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable%s", strings.Join(addrs, ","), c.name, more)
}

// at is the capture side with a DSN.
func (c *couple) at(t *testing.T, dsn string) *capture.Database {
	t.Helper()
	cfg := c.config()
	cfg.DSN = dsn
	return c.open(t, cfg, table("p"))
}

// ask returns what the server at a DSN answers.
func ask(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var answer string
	if err := conn.QueryRow(t.Context(), sql).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

// caughtUp waits until the standby has replayed what the primary has written.
func (c *couple) caughtUp(t *testing.T) {
	t.Helper()
	end := c.rows(t, `SELECT pg_current_wal_lsn()::text`)[0]
	testenv.Eventually(t, patience, func() error {
		if at := ask(t, c.onStandby(), `SELECT (pg_last_wal_replay_lsn() >= '`+end+`')::text`); at != "true" {
			return errors.New("the standby is behind " + end)
		}
		return nil
	})
}

// promote makes the standby a primary.
func (c *couple) promote(t *testing.T) {
	t.Helper()
	if got := ask(t, c.onStandby(), `SELECT pg_promote(true, 180)::text`); got != "true" {
		t.Fatal("the standby was not promoted")
	}
}

// passing reports that an error asks for another try, says what it should, and is
// nothing that stops the bridge.
func passing(t *testing.T, what string, err error, want string) {
	t.Helper()
	var conn *capture.ConnError
	var refusal *capture.Refusal
	if !errors.As(err, &conn) || errors.As(err, &refusal) || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: got %v, want a broken connection that says %q", what, err, want)
	}
}

const setUpP = `CREATE TABLE p (id int PRIMARY KEY)`

// A standby is a broken connection, whatever was asked of it, until the DSN says
// that one will do.
func TestPrimaryIsDemanded(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"15", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := newCouple(t, version, nil, setUpP, `CREATE PUBLICATION $db FOR TABLE p`)
			c.caughtUp(t)
			primary, standby := c.pg.Addr(), c.standby.Addr()
			for _, more := range []string{"", "&target_session_attrs=read-write", "&target_session_attrs=primary"} {
				t.Run("a standby alone"+more, func(t *testing.T) { onlyStandby(t, c, more, standby) })
				t.Run("the standby first"+more, func(t *testing.T) { standbyFirst(t, c, c.hosts(more, standby, primary)) })
			}
			t.Run("the primary is away", func(t *testing.T) {
				_, err := c.at(t, c.hosts("", standby, "127.0.0.1:1")).Prepare(t.Context())
				passing(t, "Prepare", err, standby+" is a standby")
				passing(t, "Prepare", err, "127.0.0.1:1")
				passing(t, "Prepare", err, "; cure: it goes on once one of them is the primary")
			})
			t.Run("as pairs", func(t *testing.T) {
				standbyFirst(t, c, fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%s,%s user=postgres dbname=%s sslmode=prefer",
					standby[strings.Index(standby, ":")+1:], primary[strings.Index(primary, ":")+1:], c.name))
			})
			for _, more := range []string{"&target_session_attrs=any", "&target_session_attrs=standby", "&target_session_attrs=prefer-standby", "&target_session_attrs=read-only"} {
				t.Run("permitted"+more, func(t *testing.T) { permittedStandby(t, c, c.hosts(more, standby), major(t, version)) })
			}
			t.Run("prefer-standby takes the standby", func(t *testing.T) {
				permittedStandby(t, c, c.hosts("&target_session_attrs=prefer-standby", primary, standby), major(t, version))
			})
		})
	}
}

func onlyStandby(t *testing.T, c *couple, more, standby string) {
	db, want := c.at(t, c.hosts(more, standby)), standby+" is a standby; cure: name the primary in source.dsn"
	_, err := db.Prepare(t.Context())
	passing(t, "Prepare", err, want)
	_, err = db.Doctor(t.Context())
	passing(t, "Doctor", err, want)
	_, err = db.SlotStatus(t.Context())
	passing(t, "SlotStatus", err, want)
	_, err = db.Open(bounded(t), 0)
	passing(t, "Open", err, want)
	passing(t, "DropLost", db.DropLost(t.Context()), want)
	_, err = db.OpenReader(t.Context(), capture.TableInfo{TableRef: table("p")}, capture.ReadOptions{})
	passing(t, "OpenReader", err, want)
}

func standbyFirst(t *testing.T, c *couple, dsn string) {
	db := c.at(t, dsn)
	p := prepare(t, db)
	stream, err := db.Open(bounded(t), p.Slot.Confirmed)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if status, err := db.SlotStatus(t.Context()); err != nil || status.ActivePID == 0 {
		t.Errorf("got slot %+v and %v, want that of the primary, active", status, err)
	}
	reader, err := db.OpenReader(t.Context(), p.Tables[0], capture.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	chunk, err := reader.Chunk(t.Context(), nil, 10) // whose watermark only a primary takes
	if err != nil {
		t.Fatal(err)
	}
	chunk.Release()
}

// permittedStandby expects the preflight's own word on standbys.
func permittedStandby(t *testing.T, c *couple, dsn string, major int) {
	report := doctor(t, c.at(t, dsn))
	level := capture.LevelWarning
	if major < 16 {
		level = capture.LevelError
	}
	if got := findings(report, level); !strings.Contains(got, "server role: it is a standby") {
		t.Errorf("got %s, want a finding of level %s about the standby", got, level)
	}
}

// All connections of a session reach the server of its Prepare; where that is gone
// they break, and the next Prepare goes where the DSN leads.
func TestSessionStaysWithItsServer(t *testing.T) {
	t.Parallel()
	c := newCouple(t, "17", nil, setUpP)
	db := c.at(t, c.hosts("", c.pg.Addr(), c.standby.Addr()))
	p := prepare(t, db)
	stream := openStream(t, db, p.Slot.Confirmed)
	reader, err := db.OpenReader(t.Context(), p.Tables[0], capture.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	c.caughtUp(t)
	c.pg.Kill9(t)
	_, err = db.SlotStatus(t.Context())
	passing(t, "while there is no primary, SlotStatus", err, c.standby.Addr()+" is a standby")
	c.promote(t)

	const want = "is on timeline 2 and not 1, as the session's server"
	_, err = db.SlotStatus(t.Context())
	passing(t, "SlotStatus", err, want)
	_, err = reader.Chunk(t.Context(), nil, 10)
	passing(t, "Chunk", err, want)
	_, err = db.Open(bounded(t), p.Slot.Confirmed)
	passing(t, "Open", err, want)
	passing(t, "watch", db.Recheck(t.Context()), want)
	if _, err := stream.Next(bounded(t)); err == nil {
		t.Error("Next: got a batch of a server that is gone")
	} else {
		passing(t, "Next", err, "stream slot")
	}

	after := prepare(t, db)
	if after.Identity.Timeline != 2 || after.Identity.System != p.Identity.System {
		t.Errorf("got identity %+v, want system %d on timeline 2", after.Identity, p.Identity.System)
	}
	if _, err := db.SlotStatus(t.Context()); err != nil {
		t.Errorf("SlotStatus after Prepare: %v", err)
	}
	standby := c.standbyConn(t)
	if err := db.RecheckAt(t.Context(), standby.PgConn(), capture.Identity{System: p.Identity.System, Timeline: 1, Database: c.name}); err == nil {
		t.Error("a later timeline: got nil")
	} else {
		passing(t, "a later timeline", err, want)
	}
	var refusal *capture.Refusal
	if err := db.RecheckAt(t.Context(), standby.PgConn(), capture.Identity{System: 1, Timeline: 2}); !errors.As(err, &refusal) {
		t.Errorf("another system: got %v, want a refusal", err)
	}
}

// standbyConn is a connection to the former standby.
func (c *couple) standbyConn(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.onStandby())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Another cluster behind the second host is no way out, with and without the right
// to ask for the system identifier.
func TestSessionIsOfOneCluster(t *testing.T) {
	t.Parallel()
	one, other := testenv.Postgres(t, testenv.Fresh(), testenv.PGVersion("15")), testenv.Postgres(t, testenv.PGVersion("15"))
	for _, pg := range []*testenv.PG{one, other} {
		pg.Exec(t, pg.DSN("postgres"), `SELECT 1`)
	}
	one.Exec(t, one.DSN("postgres"), setUpP, `REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC`,
		`CREATE ROLE bare LOGIN REPLICATION`, `GRANT SELECT ON p TO bare`, `CREATE PUBLICATION one FOR TABLE p`)
	open := func(user string) *capture.Database {
		cfg := capture.DefaultConfig()
		cfg.DSN = fmt.Sprintf("postgres://%s@%s,%s/postgres?sslmode=disable", user, one.Addr(), other.Addr())
		cfg.Slot, cfg.Publication = "one_"+user, "one"
		db, err := capture.NewDatabase(cfg, []capture.TableRef{table("p")}, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	super, bare := open("postgres"), open("bare")
	for _, db := range []*capture.Database{super, bare} {
		p := prepare(t, db)
		if _, err := db.SlotStatus(t.Context()); err != nil {
			t.Error(err)
		}
		if err := db.Recheck(t.Context()); err != nil {
			t.Error(err)
		}
		stream, err := db.Open(bounded(t), p.Slot.Confirmed)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
	}
	one.Kill9(t)
	_, err := super.SlotStatus(t.Context())
	passing(t, "another system", err, other.Addr()+" is system ")
	_, err = bare.SlotStatus(t.Context()) // the role is not there either; the right server may come back
	passing(t, "a server without the role", err, "bare")
}

// What the DSN, and else the environment, say of the server decides whether a
// primary is demanded.
func TestDemandsPrimary(t *testing.T) {
	tests := []struct {
		dsn, env string
		want     bool
	}{
		{dsn: "postgres://u@h/d", want: true},
		{dsn: "host=a,b dbname=d", want: true},
		{dsn: "postgres://u@h/d?target_session_attrs=primary", want: true},
		{dsn: "host=a target_session_attrs='read-write'", want: true},
		{dsn: "postgres://u@h/d?sslmode=disable&target_session_attrs=any"},
		{dsn: "host=a target_session_attrs = any"},
		{dsn: "postgres://u@h/d?target_session_attrs=standby"},
		{dsn: "postgres://u@h/d?target_session_attrs=prefer-standby"},
		{dsn: "postgres://u@h/d?target_session_attrs=read-only"},
		{dsn: "postgres://u@h/d", env: "any"},
		{dsn: "postgres://u@h/d", env: "standby"},
		{dsn: "postgres://u@h/d", env: "primary", want: true},
		{dsn: "postgres://u@h/d?target_session_attrs=primary", env: "any", want: true},
		{dsn: "postgres://u:target_session_attrs=any@h/d", want: true},
	}
	for _, tt := range tests {
		t.Setenv("PGTARGETSESSIONATTRS", tt.env)
		if got := capture.DemandsPrimary(t, tt.dsn); got != tt.want {
			t.Errorf("%s, environment %q: got %t, want %t", tt.dsn, tt.env, got, tt.want)
		}
	}
}

// The slot is one that standbys copy: made so, or altered when it is taken.
func TestSlotFailover(t *testing.T) {
	t.Parallel()
	const made = `SELECT pg_create_logical_replication_slot('$db', 'pgoutput')`
	tests := []struct {
		name, failover string
		sql            []string
		prepared, open bool // is it one after Prepare, after Open
	}{
		{name: "made by auto", failover: "auto", prepared: true, open: true},
		{name: "made by on", failover: "on", prepared: true, open: true},
		{name: "made by off", failover: "off"},
		{name: "there, auto", failover: "auto", sql: []string{made}, open: true},
		{name: "there, on", failover: "on", sql: []string{made}, open: true},
		{name: "there, off", failover: "off", sql: []string{made}},
		{name: "there with failover, off", failover: "off", prepared: true, open: true,
			sql: []string{`SELECT pg_create_logical_replication_slot('$db', 'pgoutput', false, false, true)`}},
	}
	for _, version := range []string{"15", "17", "18", "19"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			pg := testenv.Postgres(t, testenv.PGVersion(version))
			can := major(t, version) >= 17
			for _, tt := range tests {
				if !can && (tt.failover == "on" || strings.Contains(strings.Join(tt.sql, ""), "true")) {
					continue
				}
				t.Run(tt.name, func(t *testing.T) {
					l := newLegacy(t, pg, append([]string{setUpP, `CREATE PUBLICATION $db FOR TABLE p`}, tt.sql...)...)
					cfg := l.config()
					cfg.Failover = tt.failover
					db := l.open(t, cfg, table("p"))
					check := func(when string, want bool) {
						t.Helper()
						if status, err := db.SlotStatus(t.Context()); err != nil || status.Failover != (want && can) || status.Synced || status.TwoPhase {
							t.Errorf("%s: got %+v, %v, want failover %t", when, status, err, want && can)
						}
					}
					p := prepare(t, db)
					check("after Prepare", tt.prepared)
					stream := openStream(t, db, p.Slot.Confirmed)
					check("while it is streamed", tt.open)
					if err := stream.Close(); err != nil {
						t.Error(err)
					}
					openStream(t, db, p.Slot.Confirmed)
					check("when it was taken again", tt.open)
				})
			}
		})
	}
}

// A second instance waits for the slot before it alters it.
func TestSlotFailoverWhileAnotherStreams(t *testing.T) {
	t.Parallel()
	l := newLegacy(t, testenv.Postgres(t, testenv.PGVersion("17")), setUpP)
	cfg := l.config()
	cfg.Failover = "off"
	first := l.open(t, cfg, table("p"))
	p := prepare(t, first)
	stream := openStream(t, first, p.Slot.Confirmed)
	second := l.open(t, l.config(), table("p"))
	prepare(t, second)
	taken := make(chan error, 1)
	go func() { // ends when the slot is free
		next, err := second.Open(bounded(t), p.Slot.Confirmed)
		if err == nil {
			err = next.Close()
		}
		taken <- err
	}()
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	if status, err := second.SlotStatus(t.Context()); err != nil || !status.Failover {
		t.Errorf("got %+v, %v, want a slot that standbys copy", status, err)
	}
}

// The doctor says what would go wrong at a fail-over, and its cures mend it.
func TestFailoverFindings(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"15", "17", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := newCouple(t, version, map[string]string{"primary_slot_name": ""}, setUpP, `CREATE PUBLICATION $db FOR TABLE p`,
				`SELECT pg_create_logical_replication_slot('$db', 'pgoutput')`)
			testenv.Eventually(t, patience, func() error {
				if len(c.rows(t, `SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'`)) == 0 {
					return errors.New("the standby does not stream")
				}
				return nil
			})
			if major(t, version) < 17 {
				noFailoverFindings(t, c)
				return
			}
			primaryFindings(t, c)
			standbyFindings(t, c)
		})
	}
}

// failoverDatabase is the capture side with source.failover and the standby's DSN.
func (c *couple) failoverDatabase(t *testing.T, failover, standby string) *capture.Database {
	t.Helper()
	cfg := c.config()
	cfg.Failover, cfg.StandbyDSN = failover, standby
	return c.open(t, cfg, table("p"))
}

// noFailoverFindings: before 17 only what the standby's DSN is for can be said.
func noFailoverFindings(t *testing.T, c *couple) {
	db := c.failoverDatabase(t, "auto", c.onStandby())
	report := doctor(t, db)
	for _, level := range []capture.Level{capture.LevelOK, capture.LevelWarning, capture.LevelError} {
		if got := findings(report, level); strings.Contains(got, "fail-over") || strings.Contains(got, "synchronized_standby_slots") {
			t.Errorf("got %s, want nothing of what the server does not know", got)
		}
	}
	warned(t, db.ExamineStandby(t.Context(), report.Identity), "standby, slot "+c.name+": it is not there", "pg_failover_slots")
}

// warned expects one warning for each text, and nothing worse.
func warned(t *testing.T, found []capture.Finding, wants ...string) {
	t.Helper()
	all := findings(capture.Report{Findings: found}, capture.LevelWarning)
	for _, want := range wants {
		if !strings.Contains(all, want) {
			t.Errorf("warnings: got %s, want %q", all, want)
		}
	}
	if slices.ContainsFunc(found, func(f capture.Finding) bool {
		return f.Level == capture.LevelError || f.Cure == "" && f.Level != capture.LevelOK
	}) {
		t.Errorf("got %+v, want warnings with cures, and no error", found)
	}
}

// primaryFindings: what the primary knows.
func primaryFindings(t *testing.T, c *couple) {
	check := "slot " + c.name + ", fail-over"
	warned(t, doctor(t, c.failoverDatabase(t, "off", "")).Findings, check+": source.failover is off: the standbys (standby) do not copy the slot")
	db := c.failoverDatabase(t, "auto", "")
	report := doctor(t, db)
	warned(t, report.Findings, check+": the standbys (standby) do not copy it yet", "synchronized_standby_slots: it is empty",
		"ALTER SYSTEM SET synchronized_standby_slots = '…'") // the standby has no slot yet

	p := prepare(t, db)
	if err := openStream(t, db, p.Slot.Confirmed).Close(); err != nil {
		t.Error(err)
	}
	if got := findings(doctor(t, db), capture.LevelOK); !strings.Contains(got, check+": is copied to the standbys") {
		t.Errorf("after the slot was taken: got %s", got)
	}
}

// run streams and confirms until the test ends, as a bridge does.
func (c *couple) run(t *testing.T, db *capture.Database) {
	t.Helper()
	stream := openStream(t, db, prepare(t, db).Slot.Confirmed)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			batch, err := stream.Next(ctx)
			if err != nil {
				return
			}
			stream.Confirm(batch.End)
		}
	})
	t.Cleanup(func() { // before the stream is closed
		cancel()
		running.Wait()
	})
}

// standbyFindings: what only the standby knows. Each cure is run.
func standbyFindings(t *testing.T, c *couple) {
	db := c.failoverDatabase(t, "on", c.onStandby())
	identity := doctor(t, db).Identity
	warned(t, db.ExamineStandby(t.Context(), identity), "standby, sync_replication_slots: off", "standby, hot_standby_feedback: off",
		"standby, primary_slot_name: empty", "standby, slot "+c.name+": it is not there")
	c.pg.Exec(t, c.onStandby(), `ALTER SYSTEM SET sync_replication_slots = on`, `ALTER SYSTEM SET hot_standby_feedback = on`,
		`ALTER SYSTEM SET primary_slot_name = 'standby'`, `SELECT pg_reload_conf()`)
	c.exec(t, `ALTER SYSTEM SET synchronized_standby_slots = 'standby'`, `SELECT pg_reload_conf()`)
	c.run(t, db)
	n := 0
	testenv.Eventually(t, 3*time.Minute, func() error {
		n++
		c.exec(t, fmt.Sprintf(`INSERT INTO p VALUES (%d)`, n), `SELECT pg_log_standby_snapshot()`)
		if got := findings(capture.Report{Findings: db.ExamineStandby(t.Context(), identity)}, capture.LevelWarning); got != "" {
			return errors.New(got)
		}
		return nil
	})
	if got := findings(doctor(t, db), capture.LevelWarning); strings.Contains(got, "synchronized_standby_slots") {
		t.Errorf("with synchronized_standby_slots: got %s", got)
	}
	status, err := c.failoverDatabase(t, "auto", "").SlotStatus(t.Context())
	if err != nil || !status.Failover || status.Synced {
		t.Errorf("on the primary: got %+v, %v", status, err)
	}
	cfg := c.config()
	cfg.DSN = c.hosts("&target_session_attrs=any", c.standby.Addr())
	if status, err := c.open(t, cfg, table("p")).SlotStatus(t.Context()); err != nil || !status.Synced {
		t.Errorf("on the standby: got %+v, %v, want a synced copy", status, err)
	}

	warned(t, c.failoverDatabase(t, "auto", c.dsn).ExamineStandby(t.Context(), identity), "standby: it is no standby")
	other := testenv.Postgres(t)
	warned(t, c.failoverDatabase(t, "auto", other.DSN("postgres")).ExamineStandby(t.Context(), identity), "standby: it is of another cluster")
	away := c.hosts("", "127.0.0.1:1")
	warned(t, c.failoverDatabase(t, "auto", away).ExamineStandby(t.Context(), identity), "standby: cannot be asked: connect to 127.0.0.1:1")
	if got := c.failoverDatabase(t, "auto", "").ExamineStandby(t.Context(), identity); got != nil {
		t.Errorf("without standby_dsn: got %+v", got)
	}
}
