package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"backstory/internal/pgserver"
	"backstory/internal/testenv"
)

// couple is a legacy database with a standby beside it, on two ports that stay
// while the servers behind them change: bridge and writers have a DSN with both.
type couple struct {
	tb       testing.TB
	database string
	ports    [2]int
	servers  [2]*pgserver.Server
	primary  int // which of the two
}

// The name of the physical slot that the standby receives WAL through.
const standbySlot = "standby"

// syncSlots is what a standby needs to have the slot of the bridge.
var syncSlots = map[string]string{"sync_replication_slots": "on"}

// newCouple is newRig with a standby. The slot is there before the bridge, so that
// the standby has it: with failover it is one that the standby takes over.
func newCouple(tb testing.TB, version string, brokers []string, rows int, failover bool) (*couple, *rig) {
	tb.Helper()
	pg := testenv.Postgres(tb, testenv.Fresh(), testenv.PGVersion(version))
	r := newRig(tb, pg, brokers, rows)
	database, _, _ := strings.Cut(r.dsn[strings.LastIndexByte(r.dsn, '/')+1:], "?")
	c := &couple{tb: tb, database: database, servers: [2]*pgserver.Server{pg.Server(tb), nil}}
	c.ports = [2]int{port(tb, pg.Addr()), port(tb, freeAddr(tb))}
	r.exec("CREATE PUBLICATION backstory FOR TABLE products")
	r.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, false, $2)", r.slot(), failover)
	c.addStandby()
	r.dsn = fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/%s?sslmode=disable&target_session_attrs=read-write", c.ports[0], c.ports[1], database)
	r.configure()
	return c, r
}

func port(tb testing.TB, addr string) int {
	tb.Helper()
	_, text, err := net.SplitHostPort(addr)
	n, err2 := strconv.Atoi(text)
	if err := errors.Join(err, err2); err != nil {
		tb.Fatal(err)
	}
	return n
}

// do runs a step of one of the servers, within minutes.
func (c *couple) do(what string, step func(context.Context) error) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), 3*time.Minute)
	defer cancel()
	if err := step(ctx); err != nil {
		c.tb.Fatalf("%s: %v", what, err)
	}
}

// ask returns one value, as text, of the primary or the standby; exec runs
// statements there.
func (c *couple) ask(server int, sql string) (value string, err error) {
	ctx, cancel := context.WithTimeout(c.tb.Context(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.servers[server].DSN(c.database))
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	return value, conn.QueryRow(ctx, sql).Scan(&value)
}

func (c *couple) exec(server int, statements ...string) {
	c.tb.Helper()
	c.do(strings.Join(statements, "; "), func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, c.servers[server].DSN(c.database))
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		for _, sql := range statements {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *couple) standby() int { return 1 - c.primary }

// addStandby makes a standby of the primary at the other port.
func (c *couple) addStandby() {
	c.tb.Helper()
	c.do("add a standby", func(ctx context.Context) error {
		s, err := c.servers[c.primary].Standby(ctx, standbySlot, pgserver.Options{Port: c.ports[c.standby()], Fast: true, Settings: syncSlots})
		if err != nil {
			return err
		}
		c.servers[c.standby()] = s
		c.tb.Cleanup(func() {
			if err := s.Close(); err != nil {
				c.tb.Errorf("stop a standby: %v", err)
			}
		})
		return nil
	})
}

// synchronous lets the primary send nothing to the bridge that the standby lacks.
func (c *couple) synchronous() {
	c.tb.Helper()
	c.exec(c.primary, "ALTER SYSTEM SET synchronized_standby_slots = '"+standbySlot+"'", "SELECT pg_reload_conf()")
}

// synced waits until the standby has the bridge's slot for good: one that is
// temporary there is gone after a promotion.
func (c *couple) synced(slot string) {
	c.tb.Helper()
	testenv.Eventually(c.tb, 3*time.Minute, func() error {
		if _, err := c.ask(c.primary, "SELECT pg_log_standby_snapshot()::text"); err != nil {
			c.tb.Fatal(err)
		}
		state, err := c.ask(c.standby(), "SELECT coalesce((SELECT (synced AND NOT temporary)::text FROM pg_replication_slots WHERE slot_name = '"+slot+"'), 'none')")
		if err == nil && state != "true" {
			err = errors.New("slot on the standby: " + state)
		}
		return err
	})
}

// level waits until the standby has replayed all that the primary has written.
func (c *couple) level() {
	c.tb.Helper()
	end, err := c.ask(c.primary, "SELECT pg_current_wal_lsn()::text")
	if err != nil {
		c.tb.Fatal(err)
	}
	testenv.Eventually(c.tb, 3*time.Minute, func() error {
		state, err := c.ask(c.standby(), "SELECT (pg_last_wal_replay_lsn() >= '"+end+"')::text")
		if err == nil && state != "true" {
			err = errors.New("the standby has not replayed " + end)
		}
		return err
	})
}

// cut lets the standby receive nothing more: what the primary writes from now on is
// lost when it dies.
func (c *couple) cut() {
	c.tb.Helper()
	c.exec(c.standby(), "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
	testenv.Eventually(c.tb, 3*time.Minute, func() error {
		state, err := c.ask(c.standby(), "SELECT count(*)::text FROM pg_stat_wal_receiver")
		if err == nil && state != "0" {
			err = errors.New("the standby still receives WAL")
		}
		return err
	})
}

// stopSlots lets the copy of the slot stay where it is.
func (c *couple) stopSlots() {
	c.tb.Helper()
	c.exec(c.standby(), "ALTER SYSTEM SET sync_replication_slots = off", "SELECT pg_reload_conf()")
	testenv.Eventually(c.tb, 3*time.Minute, func() error {
		state, err := c.ask(c.standby(), "SELECT count(*)::text FROM pg_stat_activity WHERE backend_type = 'slotsync worker'")
		if err == nil && state != "0" {
			err = errors.New("the standby still copies slots")
		}
		return err
	})
}

// kill ends the primary by SIGKILL, for good.
func (c *couple) kill() {
	c.tb.Helper()
	c.do("kill the primary", c.servers[c.primary].Kill9)
}

// promote makes the standby the primary and returns where the timelines part.
func (c *couple) promote() pglogrepl.LSN {
	c.tb.Helper()
	c.do("promote the standby", c.servers[c.standby()].Promote)
	dead := c.servers[c.primary]
	c.primary = c.standby()
	c.do("remove the old primary", func(context.Context) error { return dead.Close() })
	var at pglogrepl.LSN
	c.do("ask where the timelines part", func(ctx context.Context) (err error) {
		at, err = branch(ctx, c.servers[c.primary].DSN(c.database))
		return err
	})
	return at
}

// branch is where the server's timeline began: the last line of its history, which
// has a timeline, the end of it and a reason, with tabs between them.
func branch(ctx context.Context, dsn string) (pglogrepl.LSN, error) {
	conn, err := pgconn.Connect(ctx, dsn+"&replication=database")
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	system, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return 0, err
	}
	history, err := pglogrepl.TimelineHistory(ctx, conn, system.Timeline)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(strings.TrimSpace(string(history.Content)), "\n")
	fields := strings.Split(lines[len(lines)-1], "\t")
	if len(fields) != 3 {
		return 0, fmt.Errorf("history %q", history.Content)
	}
	return pglogrepl.ParseLSN(fields[1])
}

// failOver kills the primary and promotes the standby.
func (c *couple) failOver() pglogrepl.LSN {
	c.tb.Helper()
	c.kill()
	return c.promote()
}
