package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
)

// slotsOptions are the flags of slots.
type slotsOptions struct {
	rows, changes int
}

func slotsCommand(c *common) *cobra.Command {
	var o slotsOptions
	cmd := &cobra.Command{
		Use:   "slots",
		Short: "Two tables on one slot and on two, and what a slot costs the server",
		Long: `Let the server decode one backlog of two tables' price updates, 100 to a
transaction, for slots of several kinds: with both tables, with one of them, with
the half of one table that a row filter picks, with nothing to send. Then let the
bridge empty such a backlog with both tables on one slot, and with a slot for each.`,
		Example: "  go run ./internal/bench slots --rows 300000 --changes 300000 --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.slots(r, c.runs, o) })
		},
	}
	cmd.Flags().IntVar(&o.rows, "rows", 100_000, "rows of each table")
	cmd.Flags().IntVar(&o.changes, "changes", 100_000, "updates of each table in a backlog, at most rows")
	return cmd
}

// twoTables makes a second table like the first, and the load over both: a
// transaction on one, then one on the other.
const twoTables = `
CREATE TABLE orders (LIKE products INCLUDING ALL);
INSERT INTO orders SELECT * FROM products;
VACUUM (ANALYZE, FREEZE) orders;
CREATE TABLE idle (id int PRIMARY KEY);
CREATE PUBLICATION both_tables FOR TABLE products, orders;
CREATE PUBLICATION first_table FOR TABLE products;
CREATE PUBLICATION second_table FOR TABLE orders;
CREATE PUBLICATION idle_table FOR TABLE idle;
CHECKPOINT`

const repriceTwo = `
CREATE OR REPLACE PROCEDURE reprice_two(n bigint, size bigint, span bigint, skip bigint) LANGUAGE plpgsql AS $$
BEGIN
	FOR offs IN 0 .. n - 1 BY size LOOP
		UPDATE products SET price = price + 0.01, updated_at = clock_timestamp()
		FROM generate_series(skip + offs, skip + least(offs + size, n) - 1) i
		WHERE id = 1 + i * 7919 % span;
		COMMIT;
		UPDATE orders SET price = price + 0.01, updated_at = clock_timestamp()
		FROM generate_series(skip + offs, skip + least(offs + size, n) - 1) i
		WHERE id = 1 + i * 7919 % span;
		COMMIT;
	END LOOP;
END $$`

// halves are the publications of a table that a row filter divides, which Postgres
// 15 and later can.
const halves = `
CREATE PUBLICATION first_half FOR TABLE products WHERE (hashint8(id) % 2 = 0), orders WHERE (hashint8(id) % 2 = 0);
CREATE PUBLICATION second_half FOR TABLE products WHERE (hashint8(id) % 2 <> 0), orders WHERE (hashint8(id) % 2 <> 0)`

// readers are slots that are read at the same time, each by its publication.
type readers struct {
	name         string
	publications []string
}

var (
	wholeReaders = []readers{
		{"server: one slot, both tables", []string{"both_tables"}},
		{"server: a slot for each table", []string{"first_table", "second_table"}},
		{"server: two slots, both tables on each", []string{"both_tables", "both_tables"}},
		{"server: one slot, nothing to send", []string{"idle_table"}},
	}
	halfReaders = []readers{
		{"server: one slot, half of each table", []string{"first_half"}},
		{"server: two slots, half of each table", []string{"first_half", "second_half"}},
	}
)

func (l *lab) slots(r *report, runs int, o slotsOptions) error {
	if o.changes > o.rows {
		return fmt.Errorf("--changes %d: at most --rows (%d), so that no key is changed twice in a backlog", o.changes, o.rows)
	}
	kinds, err := l.twoTables(o.rows)
	if err != nil {
		return err
	}
	one, err := l.newSlotsRig("one_slot", 1, 1)
	if err != nil {
		return err
	}
	two, err := l.newSlotsRig("two_slots", 1, 2)
	if err != nil {
		return err
	}
	for run := range runs {
		if err := l.slotsRun(r, o, run, kinds, []*slotsRig{one, two}); err != nil {
			return err
		}
		kinds = append(kinds[1:], kinds[0]) // each at each place
	}
	r.note("%d changes of each of two tables of %d rows, 100 a transaction, over a Unix socket, %s.", o.changes, o.rows, plural(runs, "run"))
	return nil
}

func (l *lab) twoTables(rows int) (kinds []readers, err error) {
	if err := l.products(rows); err != nil {
		return nil, err
	}
	if err := l.exec(append(statements(twoTables), repriceTwo)...); err != nil {
		return nil, err
	}
	kinds = wholeReaders
	if l.exec(statements(halves)...) == nil { // else the server is too old
		kinds = append(kinds, halfReaders...)
	}
	return kinds, nil
}

// slotsRun writes one backlog and lets everybody read it.
func (l *lab) slotsRun(r *report, o slotsOptions, run int, kinds []readers, rigs []*slotsRig) error {
	const probe = "probe"
	if err := l.exec("SELECT pg_create_logical_replication_slot('" + probe + "', 'pgoutput')"); err != nil {
		return err
	}
	log, err := l.writeTwo(o, run*o.changes)
	if err != nil {
		return err
	}
	n := float64(2 * o.changes)
	for _, kind := range kinds {
		d, err := l.read(probe, kind.publications, log.end)
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		row := r.row(kind.name)
		row.add("changes/s", n/d.seconds)
		row.add("postgres µs", d.usage.postgres/n*1e6)
		row.add("ns a WAL byte", d.usage.postgres/log.mb*1e3)
		row.add("foreign cores", d.foreign)
		l.logf("%s: %.0f changes/s, %.2f µs of Postgres a change, foreign %.2f cores", kind.name, n/d.seconds, d.usage.postgres/n*1e6, d.foreign)
	}
	if err := l.exec("SELECT pg_drop_replication_slot('" + probe + "')"); err != nil {
		return err
	}
	if run%2 == 1 {
		rigs = []*slotsRig{rigs[1], rigs[0]}
	}
	for _, rig := range rigs {
		if err := rig.measure(r, log); err != nil {
			return fmt.Errorf("%s: %w", rig.name, err)
		}
	}
	return nil
}

// writeTwo makes the backlog of both tables.
func (l *lab) writeTwo(o slotsOptions, skip int) (backlog, error) {
	b, err := l.write(fmt.Sprintf("CALL reprice_two(%d, 100, %d, %d)", o.changes, o.rows, skip), "products, orders")
	b.changes = 2 * o.changes
	l.logf("backlog of 2 × %d changes, %.0f MB", o.changes, b.mb)
	return b, err
}

// read lets a pg_recvlogical for each publication write the backlog to /dev/null, all
// at the same time, each from a copy of the slot.
func (l *lab) read(slot string, publications []string, end pglogrepl.LSN) (d drained, err error) {
	program := filepath.Join(l.pg.Server(l.tb).Installation().Bin, "pg_recvlogical")
	host, port, err := l.host(unixSocket)
	if err != nil {
		return d, err
	}
	cmds := make([]*exec.Cmd, len(publications))
	for i, p := range publications {
		copied := fmt.Sprintf("%s_%d", slot, i)
		if err := l.exec(fmt.Sprintf("SELECT pg_copy_logical_replication_slot('%s', '%s')", slot, copied)); err != nil {
			return d, err
		}
		defer func() { err = errors.Join(err, l.exec("SELECT pg_drop_replication_slot('"+copied+"')")) }()
		cmds[i] = exec.CommandContext(l.ctx(), program, "-h", host, "-p", port, "-U", "postgres", "-d", database, "-S", copied,
			"--start", "-n", "-o", "proto_version=1", "-o", "publication_names="+p, "--endpos="+end.String(), "-f", "/dev/null")
	}
	before, err := l.usage(0)
	if err != nil {
		return d, err
	}
	outs, errs := make([]strings.Builder, len(cmds)), make([]error, len(cmds))
	var all sync.WaitGroup
	for i, cmd := range cmds {
		cmd.Stdout, cmd.Stderr = &outs[i], &outs[i]
		all.Go(func() { errs[i] = cmd.Run() })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			return d, fmt.Errorf("%s: %w: %s", program, err, outs[i].String())
		}
	}
	d.seconds = time.Since(before.at).Seconds()
	if err := l.unread(slot); err != nil {
		return d, err
	}
	after, err := l.usage(0)
	if err != nil {
		return d, err
	}
	d.usage = after.since(before) // of self, those that have ended are a part
	d.foreign = d.usage.foreign(after.at.Sub(before.at))
	return d, nil
}

// unread returns when no walsender streams from a copy of the slot any more: one
// that is just ending is in nobody's account of CPU time.
func (l *lab) unread(slot string) error {
	for deadline := time.Now().Add(transient); ; time.Sleep(pollEnds) {
		conn, err := pgx.Connect(l.ctx(), l.pg.DSN(database))
		if err != nil {
			return err
		}
		var busy bool
		err = conn.QueryRow(l.ctx(), `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name LIKE $1 AND active)
			OR EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walsender')`, slot+`\_%`).Scan(&busy)
		if err = errors.Join(err, conn.Close(l.ctx())); err != nil || !busy {
			time.Sleep(pollEnds) // the postmaster reaps it
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("a walsender still streams from a copy of slot %s", slot)
		}
	}
}
