package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"backstory/internal/pgserver"
)

// Bounds of waiting for a server.
const (
	startLimit = 3 * time.Minute // with a first download
	stopLimit  = 30 * time.Second
	sqlLimit   = 30 * time.Second
)

// PG is a Postgres with wal_level logical.
type PG struct {
	name   string // for messages
	url    *url.URL
	server *pgserver.Server // nil for BACKSTORY_TEST_POSTGRES
	fresh  bool
}

// PGOption says what Postgres a test needs.
type PGOption func(*pgOptions)

type pgOptions struct {
	fresh bool
	pgserver.Options
}

// Fresh asks for a private server, which the test may stop, kill and configure.
func Fresh() PGOption { return func(o *pgOptions) { o.fresh = true } }

// PGVersion asks for a major version, "10" to "18", or "19", which is wanted: until
// there is a build of it the test is skipped, and says so, also where a server is
// required.
func PGVersion(major string) PGOption { return func(o *pgOptions) { o.Version = major } }

// PGSetting sets a server setting, of a private server.
func PGSetting(name, value string) PGOption {
	return func(o *pgOptions) {
		o.fresh = true
		o.Settings[name] = value
	}
}

// Durable asks for a private server that calls fsync.
func Durable() PGOption {
	return func(o *pgOptions) { o.fresh, o.Fast = true, false }
}

// Postgres returns a server: the one that all tests of the process share, if no
// option asks for a private one. It skips the test where there is none (see the
// package comment).
func Postgres(tb TB, opts ...PGOption) *PG {
	tb.Helper()
	o := pgOptions{Options: pgserver.Options{
		Version: os.Getenv("BACKSTORY_TEST_PG_VERSION"), Fast: true, Settings: map[string]string{},
	}}
	for _, opt := range opts {
		opt(&o)
	}
	pg, err := o.postgres(tb)
	if errors.Is(err, pgserver.ErrNotServed) {
		note(tb, err.Error())
		tb.Skipf("needs a real postgres: %v", err)
	}
	if err != nil {
		unavailable(tb, "postgres", err)
	}
	note(tb, pg.name)
	return pg
}

func (o *pgOptions) postgres(tb TB) (*PG, error) {
	if o.fresh {
		pg, err := startPostgres(o.Options)
		if err == nil {
			pg.fresh = true
			tb.Cleanup(func() {
				if err := pg.Close(); err != nil {
					tb.Errorf("stop postgres: %v", err)
				}
			})
		}
		return pg, err
	}
	if dsn := os.Getenv("BACKSTORY_TEST_POSTGRES"); dsn != "" && o.Version == os.Getenv("BACKSTORY_TEST_PG_VERSION") {
		return givenPostgres(dsn)
	}
	return sharedServer("postgres "+o.Version, func() (*PG, error) { return startPostgres(o.Options) })
}

// startPostgres does not use a test's context: a shared server outlives the test.
func startPostgres(o pgserver.Options) (*PG, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	s, err := pgserver.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(s.DSN("postgres"))
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &PG{name: s.Installation().String(), url: u, server: s}, nil
}

func givenPostgres(dsn string) (*PG, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, fmt.Errorf("BACKSTORY_TEST_POSTGRES: %w", err)
	}
	return &PG{name: "Postgres at " + u.Host, url: u}, nil
}

// Close stops a server that this process has started. Tests need not call it.
func (p *PG) Close() error {
	if p.server == nil {
		return nil
	}
	return p.server.Close()
}

// DSN is the superuser's URL of a database.
func (p *PG) DSN(database string) string {
	u := *p.url
	u.Path = "/" + database
	return u.String()
}

// Addr is host:port.
func (p *PG) Addr() string { return p.url.Host }

// Server is the private server, for what PG has no method for.
func (p *PG) Server(tb TB) *pgserver.Server {
	tb.Helper()
	p.mustBeFresh(tb)
	return p.server
}

// Database makes an empty database for the test and returns its URL. When the
// test ends, its sessions, its slots and the database are removed.
func (p *PG) Database(tb TB) string {
	tb.Helper()
	return p.database(tb, "")
}

// DatabaseOf is Database with texts in the given encoding, as Postgres calls it, and
// the order of bytes, which suits them all. Sessions speak UTF-8.
func (p *PG) DatabaseOf(tb TB, encoding string) string {
	tb.Helper()
	dsn := p.database(tb, " TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' ENCODING '"+encoding+"'")
	p.Exec(tb, dsn, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET client_encoding = UTF8', current_database()); END $$`)
	return dsn
}

func (p *PG) database(tb TB, options string) string {
	tb.Helper()
	name := fmt.Sprintf("t%016x", rand.Uint64())
	p.Exec(tb, p.DSN("postgres"), "CREATE DATABASE "+name+options)
	tb.Cleanup(func() {
		if p.server != nil && p.server.PID() == 0 {
			return // the test has stopped its server
		}
		if err := p.drop(name); err != nil {
			tb.Errorf("drop database %s: %v", name, err)
		}
	})
	return p.DSN(name)
}

// drop repeats until nothing holds the database: a walsender that was told to
// end has its slot for a moment longer.
func (p *PG) drop(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), sqlLimit)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	tick := time.NewTicker(pollCondition)
	defer tick.Stop()
	for {
		err := dropOnce(ctx, conn, name)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func dropOnce(ctx context.Context, conn *pgx.Conn, name string) error {
	_, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1", name)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "DROP DATABASE "+name)
	return err
}

// Exec runs statements, each text in a transaction of its own if it has none.
func (p *PG) Exec(tb TB, dsn string, sql ...string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), sqlLimit)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, text := range sql {
		if _, err := conn.PgConn().Exec(ctx, text).ReadAll(); err != nil {
			tb.Fatalf("%s: %v", text, err)
		}
	}
}

// Kill9 ends a private server by SIGKILL, with all its sessions.
func (p *PG) Kill9(tb TB) {
	tb.Helper()
	p.do(tb, "kill", func(ctx context.Context) error { return p.server.Kill9(ctx) })
}

// Stop stops a private server in an orderly way.
func (p *PG) Stop(tb TB) {
	tb.Helper()
	p.do(tb, "stop", func(ctx context.Context) error { return p.server.Stop(ctx, pgserver.FastStop) })
}

// Restart starts a private server at its port again, stopped before if it runs.
func (p *PG) Restart(tb TB) {
	tb.Helper()
	p.do(tb, "restart", func(ctx context.Context) error { return p.server.Restart(ctx) })
}

func (p *PG) do(tb TB, what string, f func(context.Context) error) {
	tb.Helper()
	p.mustBeFresh(tb)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), startLimit)
	defer cancel()
	if err := f(ctx); err != nil {
		tb.Fatalf("%s postgres: %v", what, err)
	}
}

func (p *PG) mustBeFresh(tb TB) {
	tb.Helper()
	if !p.fresh {
		tb.Fatal("the server is shared by all tests of the process: ask for a private one by testenv.Fresh()")
	}
}
