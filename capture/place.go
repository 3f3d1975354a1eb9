package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// place is the server that a connection reached, as far as the role may ask.
type place struct {
	system   uint64 // system identifier; 0: not known
	timeline int32  // 0: not known, as on a standby
	standby  bool
}

// strayError says that a connection reached a server which is not the one that
// is wanted. It is closed, and the next host of the DSN is tried.
type strayError struct {
	addr    string
	problem string
	moved   bool // not the server of the session; else a standby
}

// Error reads "address problem".
func (e *strayError) Error() string { return e.addr + " " + e.problem }

// primaryCure is the way out where the DSN leads to a standby.
const primaryCure = "name the primary in source.dsn, or all servers (host=a,b), of which the primary is taken; " +
	"with target_session_attrs=any a standby would do"

// severalCure is the same where it names several hosts, none of them a primary now.
const severalCure = "it goes on once one of them is the primary; if that is another server, name it in source.dsn too"

// strayed reports whether err, or an error in it, means that another server than
// that of the session was reached: waiting does not bring the session back.
func strayed(err error) bool {
	var stray *strayError
	return errors.As(err, &stray) && stray.moved
}

// differs says how a server differs from another one, "" if it may be the same.
// What is not known of either is not compared.
func (p place) differs(from place) string {
	switch {
	case p.system != 0 && from.system != 0 && p.system != from.system:
		return fmt.Sprintf("is system %d and not %d", p.system, from.system)
	case p.timeline != 0 && from.timeline != 0 && p.timeline != from.timeline:
		return fmt.Sprintf("is on timeline %d and not %d", p.timeline, from.timeline)
	}
	return ""
}

// place is where the identity's positions belong.
func (id Identity) place() place { return place{system: id.System, timeline: id.Timeline} }

// sessionAttrs returns target_session_attrs as the connection string or the
// environment say it, "" if they do not. The driver does not tell, so it is asked
// again under a name that it passes through.
func sessionAttrs(dsn string) string {
	const key, probe = "target_session_attrs", "backstory.session_attrs"
	cfg, err := pgconn.ParseConfig(strings.ReplaceAll(dsn, key, probe))
	if err != nil {
		return "" // parseDSN says what is wrong
	}
	return cmp.Or(cfg.RuntimeParams[probe], os.Getenv("PGTARGETSESSIONATTRS"))
}

// demandsPrimary reports whether only a primary will do, which it is unless the
// operator has asked for something else. given is whether the driver has a check
// of its own: a service file may have asked for one, too.
func demandsPrimary(attrs string, given bool) bool {
	switch attrs {
	case "primary", "read-write":
		return true
	case "":
		return !given
	}
	return false
}

// Unbind lets the following connections reach whatever server source.dsn leads
// to. From the next Prepare on they have to reach the same one as that. It is
// called at the beginning of a session.
func (d *Database) Unbind() { d.bound.Store(nil) }

// Bind lets the following connections only reach the server that Doctor reported, for
// who needs no Prepare.
func (d *Database) Bind(to Identity) { d.bind(to.place()) }

// bind lets the following connections only reach the given server.
func (d *Database) bind(to place) { d.bound.Store(&to) }

// boundTo is the server that connections have to reach; zero: any.
func (d *Database) boundTo() place {
	if p := d.bound.Load(); p != nil {
		return *p
	}
	return place{}
}

// open opens a session with a server that is no standby, unless the DSN permits
// one, and that does not differ from the wanted one. Of several hosts it tries
// first the one that was right the last time.
func (d *Database) open(ctx context.Context, to destination, want place) (*pgconn.PgConn, error) {
	given := to.ValidateConnect
	to.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if err := d.checkPlace(ctx, conn, to.primary, want); err != nil {
			return err
		}
		if given == nil || to.primary {
			return nil
		}
		return given(ctx, conn)
	}
	hosts := []*pgconn.Config{to.Config} // the driver chooses among them by its own rules
	if to.primary {
		hosts = d.lastFirst(eachHost(to.Config))
	}
	letIn := d.preparedOnce()
	var errs []error
	for _, host := range hosts {
		conn, err := pgconn.ConnectConfig(ctx, host)
		if err == nil {
			d.lastHost.Store(hostOf(host))
			return conn, nil
		}
		err = connectError(ctx, host, letIn, err)
		if ctx.Err() != nil {
			return nil, err
		}
		errs = append(errs, err)
	}
	return nil, noneOf(errs)
}

// preparedOnce reports whether a Prepare has succeeded, and so the role was let in for
// all purposes.
func (d *Database) preparedOnce() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.baseline != nil
}

// eachHost divides a configuration by server. The driver's fallbacks of one
// server are its ways to connect, with TLS and without.
func eachHost(cfg *pgconn.Config) []*pgconn.Config {
	ways := append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...)
	var hosts []*pgconn.Config
	for _, way := range ways {
		i := slices.IndexFunc(hosts, func(h *pgconn.Config) bool { return h.Host == way.Host && h.Port == way.Port })
		if i >= 0 {
			hosts[i].Fallbacks = append(hosts[i].Fallbacks, way)
			continue
		}
		host := cfg.Copy()
		host.Host, host.Port, host.TLSConfig, host.Fallbacks = way.Host, way.Port, way.TLSConfig, nil
		hosts = append(hosts, host)
	}
	return hosts
}

// lastFirst puts the host that was right the last time in front, so that one that
// is away costs its timeout once and not at every connection.
func (d *Database) lastFirst(hosts []*pgconn.Config) []*pgconn.Config {
	last, _ := d.lastHost.Load().(string)
	slices.SortStableFunc(hosts, func(a, b *pgconn.Config) int {
		return cmp.Compare(rank(hostOf(a) == last), rank(hostOf(b) == last))
	})
	return hosts
}

// rank orders what is so before what is not.
func rank(so bool) int {
	if so {
		return 0
	}
	return 1
}

// noneOf is the error of a connection for which no host would do. It is final
// only if each of them turned it away: else the right one may be the one that
// could not be asked.
func noneOf(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	all := &ConnError{Step: "connect to one of the hosts"}
	passing := false
	var reasons []error
	for _, err := range errs {
		var conn *ConnError
		if errors.As(err, &conn) {
			passing = true
			cure := conn.Cure
			if cure == primaryCure {
				cure = severalCure
			}
			all.Cure = cmp.Or(all.Cure, cure)
			err = &ConnError{Step: conn.Step, Err: conn.Err} // the cure is said once
		} else {
			err = errors.New(err.Error()) // and is no refusal as long as another host may do
		}
		reasons = append(reasons, err)
	}
	if !passing {
		return errors.Join(errs...)
	}
	all.Err = &flatError{errors.Join(reasons...)}
	return all
}

// checkPlace asks the server where it is, in one statement of the simple protocol,
// since a walsender knows no other.
func (d *Database) checkPlace(ctx context.Context, conn *pgconn.PgConn, primary bool, want place) error {
	if serverMajor(conn) < oldestMajor {
		return nil // the preflight refuses it
	}
	here, err := d.askPlace(ctx, conn)
	if err != nil {
		return err
	}
	conn.CustomData()[placeKey] = here
	stray := &strayError{addr: conn.Conn().RemoteAddr().String()}
	switch difference := here.differs(want); {
	case here.standby && primary:
		stray.problem = "is a standby"
	case difference != "":
		stray.problem, stray.moved = difference+", as the session's server", true
	default:
		return nil
	}
	return stray
}

// placeKey is where a connection keeps its place.
const placeKey = "backstory.place"

// placeOf returns the server that a connection reached.
func placeOf(conn *pgconn.PgConn) place {
	p, _ := conn.CustomData()[placeKey].(place)
	return p
}

// askPlace asks for the place. A role that may not know the system identifier is
// asked no more for it.
func (d *Database) askPlace(ctx context.Context, conn *pgconn.PgConn) (place, error) {
	here, err := readPlace(ctx, conn, !d.noSystem.Load())
	if sqlState(err) == codeNoRight {
		d.noSystem.Store(true)
		return readPlace(ctx, conn, false)
	}
	return here, err
}

// readPlace reads the timeline from the name of the WAL file that is being
// written: after a promotion the control file still has the former one.
func readPlace(ctx context.Context, conn *pgconn.PgConn, system bool) (place, error) {
	const step = "ask which server this is"
	id := "''"
	if system {
		id = "(SELECT system_identifier::text FROM pg_catalog.pg_control_system())"
	}
	results, err := conn.Exec(ctx, `
SELECT pg_catalog.pg_is_in_recovery(), `+id+`, CASE WHEN pg_catalog.pg_is_in_recovery() THEN ''
       ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END`).ReadAll()
	if err != nil {
		return place{}, stepError(ctx, step, err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 3 {
		return place{}, fmt.Errorf("%s: got another answer than one row", step)
	}
	here, err := scanPlace(results[0].Rows[0])
	if err != nil {
		return place{}, fmt.Errorf("%s: %w", step, err)
	}
	return here, nil
}

// scanPlace parses a row of readPlace. The server prints the identifier, which
// has 64 bits, as a signed number.
func scanPlace(row [][]byte) (here place, err error) {
	here.standby = string(row[0]) == "t"
	if text := string(row[1]); text != "" {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return here, fmt.Errorf("system identifier: %w", err)
		}
		here.system = uint64(id) //nolint:gosec // see above
	}
	if text := string(row[2]); text != "" {
		timeline, err := strconv.ParseUint(text, 16, 31)
		if err != nil {
			return here, fmt.Errorf("timeline: %w", err)
		}
		here.timeline = int32(timeline) //nolint:gosec // of 31 bits
	}
	return here, nil
}
