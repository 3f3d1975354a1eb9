package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"backstory/internal/pgserver"
	"backstory/internal/testenv"
)

// standbyOptions are the flags of standby.
type standbyOptions struct {
	rows, changes int
	version       string
}

func standbyCommand(c *common) *cobra.Command {
	var o standbyOptions
	cmd := &cobra.Command{
		Use:   "standby",
		Short: "What decoding costs on the primary, and on a standby in its place",
		Long: `Write a backlog of price updates, 100 to a transaction, on a primary with one
standby. Let pg_recvlogical read it from a slot of the primary, then from a slot of
the standby (Postgres 16 and later), and count the CPU time of both servers, and
what shipping and replaying the WAL takes by itself.`,
		Example: "  go run ./internal/bench standby --rows 100000 --changes 100000 --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.standby(r, c, o) })
		},
	}
	cmd.Flags().IntVar(&o.rows, "rows", 100_000, "rows of the table")
	cmd.Flags().IntVar(&o.changes, "changes", 100_000, "updates of one backlog")
	cmd.Flags().StringVar(&o.version, "postgres", "17", "major version of both servers, 16 or later")
	return cmd
}

// couple is a primary, as a lab of its own, and its standby.
type couple struct {
	*lab
	standby *pgserver.Server
	clients string // where the client programs of the first lab's Postgres are
}

func (l *lab) standby(r *report, c *common, o standbyOptions) error {
	two, err := l.couple(c.buffers, o)
	if err != nil {
		return err
	}
	for run := range c.runs {
		if err := two.measure(r, o, run*o.changes); err != nil {
			return err
		}
	}
	r.note("%d changes a run, 100 a transaction, table of %d rows, Postgres %s, %s.", o.changes, o.rows, o.version, plural(c.runs, "run"))
	return nil
}

// couple makes the primary with its table, and a standby out of a copy of it.
func (l *lab) couple(buffers string, o standbyOptions) (*couple, error) {
	primary := *l
	primary.pg = testenv.Postgres(l.tb, testenv.Durable(), testenv.PGVersion(o.version), testenv.PGSetting("shared_buffers", buffers),
		testenv.PGSetting("max_wal_size", "32GB"), testenv.PGSetting("checkpoint_timeout", "30min"), testenv.PGSetting("autovacuum", "off"))
	conn, err := primary.connectTo("postgres")
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(l.ctx(), "CREATE DATABASE "+database); err != nil {
		return nil, err
	}
	if err := primary.products(o.rows); err != nil {
		return nil, err
	}
	if err := primary.exec("CREATE PUBLICATION "+publication+" FOR TABLE products", "SELECT pg_create_physical_replication_slot('standby', true)"); err != nil {
		return nil, err
	}
	var data string
	if err := conn.QueryRow(l.ctx(), "SHOW data_directory").Scan(&data); err != nil {
		return nil, err
	}
	dir := filepath.Join(l.dir, "standby")
	primary.pg.Stop(l.tb)
	for _, args := range [][]string{
		{"mkdir", dir}, {"cp", "-a", data, filepath.Join(dir, "data")},
		{"cp", "-a", filepath.Join(data, "PG_VERSION"), filepath.Join(dir, "data", "standby.signal")}, // any content will do
	} {
		if out, err := exec.CommandContext(l.ctx(), args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	primary.pg.Restart(l.tb)
	host, port, _ := strings.Cut(primary.pg.Addr(), ":")
	standby, err := pgserver.Start(l.ctx(), pgserver.Options{Version: o.version, Dir: dir, Settings: map[string]string{
		"shared_buffers": buffers, "primary_conninfo": "host=" + host + " port=" + port + " user=postgres application_name=standby",
		"primary_slot_name": "standby", "hot_standby_feedback": "on",
	}})
	if err != nil {
		return nil, err
	}
	l.tb.Cleanup(func() {
		if err := standby.Close(); err != nil {
			l.tb.Errorf("stop the standby: %v", err)
		}
	})
	return &couple{&primary, standby, l.pg.Server(l.tb).Installation().Bin}, nil
}

// The slots that are read.
const (
	onPrimary = "on_primary"
	onStandby = "on_standby"
)

// measure writes one backlog and reads it on either side.
func (c *couple) measure(r *report, o standbyOptions, skip int) error {
	if err := c.exec("SELECT pg_create_logical_replication_slot('" + onPrimary + "', 'pgoutput')"); err != nil {
		return err
	}
	if err := c.slotOnStandby(); err != nil {
		return err
	}
	log, err := c.ship(r, o, skip)
	if err != nil {
		return err
	}
	for _, side := range []struct {
		row, slot string
		server    *pgserver.Server
	}{
		{"slot on the primary", onPrimary, c.pg.Server(c.tb)},
		{"slot on the standby", onStandby, c.standby},
	} {
		first, err := c.servers()
		if err != nil {
			return err
		}
		began := time.Now()
		if err := c.recv(side.server, side.slot, log.end); err != nil {
			return err
		}
		took := time.Since(began)
		if err := ended(c.ctx(), side.server, side.slot); err != nil {
			return err
		}
		last, err := c.servers()
		if err != nil {
			return err
		}
		n := float64(o.changes)
		row := r.row(side.row)
		row.add("changes/s", n/took.Seconds())
		row.add("primary µs", (last[0]-first[0])/n*1e6)
		row.add("standby µs", (last[1]-first[1])/n*1e6)
		c.logf("%s: %.0f changes/s, primary %.2f µs, standby %.2f µs", side.row, n/took.Seconds(), (last[0]-first[0])/n*1e6, (last[1]-first[1])/n*1e6)
	}
	return nil
}

// servers is the CPU time of primary and standby so far.
func (c *couple) servers() (times [2]float64, err error) {
	if times[0], err = cpuOfTree(c.pg.Server(c.tb).PID()); err != nil {
		return times, err
	}
	times[1], err = cpuOfTree(c.standby.PID())
	return times, err
}

// slotOnStandby makes a slot on the standby, which waits until the primary says which
// transactions run.
func (c *couple) slotOnStandby() error {
	made := make(chan error, 1)
	go func() { // ends with the statement
		made <- one(c.ctx(), c.standby, "SELECT pg_create_logical_replication_slot('"+onStandby+"', 'pgoutput')::text", new(string))
	}()
	for {
		select {
		case err := <-made:
			return err
		case <-time.After(100 * time.Millisecond):
			if err := c.exec("SELECT pg_log_standby_snapshot()"); err != nil {
				return err
			}
		}
	}
}

// ship writes the backlog and waits until the standby has replayed it: the walsender
// of the standby, and the standby as a whole.
func (c *couple) ship(r *report, o standbyOptions, skip int) (backlog, error) {
	var pid int
	if err := one(c.ctx(), c.pg.Server(c.tb), "SELECT pid FROM pg_stat_replication WHERE application_name = 'standby'", &pid); err != nil {
		return backlog{}, err
	}
	sender, err := cpuOf(pid)
	if err != nil {
		return backlog{}, err
	}
	first, err := c.servers()
	if err != nil {
		return backlog{}, err
	}
	log, err := c.writeBacklog(o.changes, 100, o.rows, skip)
	if err != nil {
		return log, err
	}
	for replayed := false; !replayed; time.Sleep(pollEnds) {
		if err := one(c.ctx(), c.standby, "SELECT pg_last_wal_replay_lsn() >= '"+log.end.String()+"'", &replayed); err != nil {
			return log, err
		}
	}
	last, err := c.servers()
	if err != nil {
		return log, err
	}
	after, err := cpuOf(pid)
	if err != nil {
		return log, err
	}
	n := float64(o.changes)
	row := r.row("shipping and replaying")
	row.add("walsender µs", (after-sender)/n*1e6)
	row.add("standby µs", (last[1]-first[1])/n*1e6)
	row.add("WAL MB", log.mb)
	return log, nil
}

// recv lets pg_recvlogical read a slot to /dev/null.
func (c *couple) recv(server *pgserver.Server, slot string, end pglogrepl.LSN) error {
	program := filepath.Join(c.recvlogical(), "pg_recvlogical")
	host, port, _ := strings.Cut(server.Addr(), ":")
	if s := server.Socket(); s != "" {
		host = s
	}
	cmd := exec.CommandContext(c.ctx(), program, "-h", host, "-p", port, "-U", "postgres", "-d", database, "-S", slot,
		"--start", "-n", "-o", "proto_version=1", "-o", "publication_names="+publication, "--endpos="+end.String(), "-f", "/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return nil
}

// recvlogical is where the client programs are: fetched servers come without them.
func (c *couple) recvlogical() string {
	bin := c.pg.Server(c.tb).Installation().Bin
	if _, err := exec.LookPath(filepath.Join(bin, "pg_recvlogical")); err == nil {
		return bin
	}
	return c.clients
}

// ended drops the slot once nobody streams from it: a walsender that is just ending is
// in nobody's account of CPU time.
func ended(ctx context.Context, server *pgserver.Server, slot string) error {
	for deadline := time.Now().Add(transient); ; time.Sleep(pollEnds) {
		var active bool
		if err := one(ctx, server, "SELECT active FROM pg_replication_slots WHERE slot_name = "+quote(slot), &active); err != nil {
			return err
		}
		if !active {
			return one(ctx, server, "SELECT pg_drop_replication_slot("+quote(slot)+")::text", new(string))
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("somebody still streams from slot %s", slot)
		}
	}
}

func quote(name string) string { return "'" + name + "'" }

// one asks a server for one value.
func one(ctx context.Context, server *pgserver.Server, sql string, to any) error {
	conn, err := pgx.Connect(ctx, server.DSN(database))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if err := conn.QueryRow(ctx, sql).Scan(to); err != nil {
		return fmt.Errorf("%s: %w", strconv.Quote(sql), err)
	}
	return nil
}
