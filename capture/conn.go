package capture

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Bounds of what a connection may wait for. Every wait also ends with its context.
const (
	connectTimeout   = 10 * time.Second
	keepAlive        = 15 * time.Second
	catalogTimeout   = 30 * time.Second // statement_timeout of catalog queries
	lockTimeout      = 5 * time.Second
	idleInTxTimeout  = time.Minute // a stuck client must not hold back vacuum
	closeConnTimeout = 3 * time.Second
)

// pinned are the session settings of every connection, whether it streams or
// reads: nobody sets one of them for a while. The first group decides how Postgres
// prints values, which must not depend on server, database or role (search_path:
// the names that a regclass or regtype has); the second keeps literals, row filters
// and the flush of a watermark from depending on them.
//
// Of the encodings, see charset.go. lc_numeric and lc_time serve to_char only,
// xmlbinary and xmloption only make xml, which is printed as it is stored.
var pinned = map[string]string{
	"client_encoding":       "UTF8",
	"TimeZone":              "UTC",
	"DateStyle":             "ISO",
	"IntervalStyle":         "iso_8601",
	"bytea_output":          "hex",
	"extra_float_digits":    "3",
	"lc_monetary":           "C",
	"search_path":           "pg_catalog",
	"quote_all_identifiers": "off",

	"standard_conforming_strings":   "on",
	"array_nulls":                   "on",
	"row_security":                  "off", // an error instead of rows that are silently missing
	"default_transaction_read_only": "off",
	"synchronous_commit":            "local", // flushed here; no wait for a standby
}

// purpose says what a connection is for, which decides its timeouts.
type purpose uint8

const (
	forCatalog purpose = iota
	forStreaming
)

// parseDSN parses a connection string and pins the session settings. The error
// never repeats any part of the string that may be a password.
func parseDSN(dsn string) (*pgconn.Config, error) {
	if strings.TrimSpace(dsn) == "" {
		return nil, &UsageError{Key: "dsn", Problem: "a connection string is needed, such as postgres://user@host:5432/database"}
	}
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, &UsageError{Key: "dsn", Problem: dsnProblem(err)}
	}
	if cfg.ConnectTimeout <= 0 || cfg.ConnectTimeout > connectTimeout {
		cfg.ConnectTimeout = connectTimeout
	}
	cfg.DialFunc = (&net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: keepAlive}).DialContext
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "backstory"
	}
	for name := range cfg.RuntimeParams {
		for pin := range pinned {
			if strings.EqualFold(name, pin) {
				delete(cfg.RuntimeParams, name)
			}
		}
	}
	maps.Copy(cfg.RuntimeParams, pinned)
	return cfg, nil
}

// dsnProblem says why the driver did not accept a connection string. The
// driver puts the string in front of the reason, and quotes pieces of it where
// it could not be taken apart: both are left out.
func dsnProblem(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, "`: "); i >= 0 {
		text = text[i+len("`: "):]
	}
	if strings.HasPrefix(text, "failed to parse as") || strings.HasPrefix(text, "invalid port") {
		return "is no connection string: use postgres://user:password@host:5432/database," +
			" with special characters of user and password percent-encoded"
	}
	return strings.TrimPrefix(text, "failed to ")
}

// connect opens a session with the pinned settings, for catalog queries or, with
// replication, for the commands of the streaming protocol. The caller closes it.
// It fails with a *Refusal where waiting cannot help, a *UsageError where the
// DSN asks for something unknown, else with a *ConnError.
func (d *Database) connect(ctx context.Context, replication bool) (*pgconn.PgConn, error) {
	if replication {
		return d.dial(ctx, forStreaming)
	}
	return d.dial(ctx, forCatalog)
}

// dial opens a session for the given purpose, with the server of the bridge's
// session if there is one.
func (d *Database) dial(ctx context.Context, why purpose) (*pgconn.PgConn, error) {
	return d.dialAt(ctx, why, d.boundTo())
}

// dialAt is dial with the server that is wanted.
func (d *Database) dialAt(ctx context.Context, why purpose, want place) (*pgconn.PgConn, error) {
	to, err := d.destination(why)
	if err != nil {
		return nil, err
	}
	return d.open(ctx, to, want)
}

// dialReader opens a session whose statements may take so long.
func (d *Database) dialReader(ctx context.Context, timeout time.Duration) (*pgconn.PgConn, error) {
	to, err := d.destination(forCatalog)
	if err != nil {
		return nil, err
	}
	to.RuntimeParams["statement_timeout"] = milliseconds(timeout)
	return d.open(ctx, to, d.boundTo())
}

// destination is where a connection leads to, and whether a standby will not do.
type destination struct {
	*pgconn.Config
	primary bool
}

// destination parses the connection string as it is now, with the settings of a
// purpose: files that it names, of passwords and certificates, are read each time.
// The walsender measures no statements; its session has no timeouts.
func (d *Database) destination(why purpose) (destination, error) {
	dsn := d.cfg.DSN
	if d.cfg.ReadDSN != nil {
		var err error
		if dsn, err = d.cfg.ReadDSN(); err != nil {
			return destination{}, &ConnError{Step: "read the connection string", Err: err}
		}
	}
	cfg, err := parseDSN(dsn)
	if err != nil { // it was right at the start, and may be half written now
		return destination{}, &ConnError{Step: "read the connection string", Err: errors.New(err.Error())}
	}
	statement, lock, idle := catalogTimeout, lockTimeout, idleInTxTimeout
	if why == forStreaming {
		statement, lock, idle = 0, 0, 0
		cfg.RuntimeParams["replication"] = "database"
	}
	cfg.RuntimeParams["statement_timeout"] = milliseconds(statement)
	cfg.RuntimeParams["lock_timeout"] = milliseconds(lock)
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = milliseconds(idle)
	return destination{cfg, demandsPrimary(sessionAttrs(dsn), cfg.ValidateConnect != nil)}, nil
}

func milliseconds(d time.Duration) string {
	return strconv.FormatInt(d.Milliseconds(), 10)
}

// connectError tells what cannot get better by waiting from what can. A role that
// was let in before is perhaps given another password just now.
func connectError(ctx context.Context, cfg *pgconn.Config, letIn bool, err error) error {
	server := hostOf(cfg)
	step := fmt.Sprintf("connect to %s as %s", server, cfg.User)
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", step, context.Cause(ctx))
	}
	var stray *strayError
	if errors.As(err, &stray) {
		conn := &ConnError{Step: step, Err: oneLine(err)}
		if !stray.moved {
			conn.Cure = primaryCure
		}
		return conn
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return &ConnError{Step: step, Err: oneLine(err)}
	}
	switch {
	case strings.HasPrefix(pg.Code, "28") && letIn:
		return &ConnError{Step: step, Err: errors.New(pg.Message), Cure: loginCure(cfg)}
	case strings.HasPrefix(pg.Code, "28"):
		return &Refusal{Thing: "server " + server, Problem: pg.Message, Cure: loginCure(cfg)}
	case pg.Code == codeNoDatabase:
		return &Refusal{Thing: "server " + server, Problem: pg.Message, Cure: "name an existing database in source.dsn"}
	case pg.Code == codeNoRight:
		return &Refusal{Thing: "role " + cfg.User, Problem: pg.Message, Cure: rightCure(cfg)}
	case pg.Code == codeUndefinedObject, pg.Code == "22023":
		return &UsageError{Key: "dsn", Problem: pg.Message}
	}
	return &ConnError{Step: step, Err: pg}
}

// loginCure says what to do when the server does not let the role in.
func loginCure(cfg *pgconn.Config) string {
	if cfg.RuntimeParams["replication"] != "" {
		return fmt.Sprintf("check the password, and permit the connection in pg_hba.conf: "+
			"host %s %s <address of this machine>/32 scram-sha-256", quoteIdent(cfg.Database), quoteIdent(cfg.User))
	}
	return "check user and password in source.dsn and the rules of pg_hba.conf"
}

// rightCure says what to grant when the server turns the role away.
func rightCure(cfg *pgconn.Config) string {
	if cfg.RuntimeParams["replication"] != "" {
		return fmt.Sprintf("ALTER ROLE %s REPLICATION", quoteIdent(cfg.User))
	}
	return fmt.Sprintf("GRANT CONNECT ON DATABASE %s TO %s", quoteIdent(cfg.Database), quoteIdent(cfg.User))
}

// hostOf is the server that a configuration leads to, as host:port.
func hostOf(cfg *pgconn.Config) string {
	return net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))
}

// oneLine strips the driver's heading and line breaks from a connect error, and
// what it puts before a reason of ours.
func oneLine(err error) error {
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		err = connect.Unwrap()
	}
	tries, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return &flatError{err: err}
	}
	var reasons []error
	for _, err := range tries.Unwrap() {
		var stray *strayError
		if errors.As(err, &stray) {
			err = stray
		}
		reasons = append(reasons, err)
	}
	return &flatError{err: errors.Join(reasons...)}
}

// flatError prints an error of several lines as one, each different line once.
type flatError struct{ err error }

func (e *flatError) Error() string {
	var lines []string
	for line := range strings.Lines(e.err.Error()) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.Contains(strings.Join(lines, "\n"), line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

func (e *flatError) Unwrap() error { return e.err }

// closeConn ends a session in good order, or at least within a bound, also when
// ctx is done.
func closeConn(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeConnTimeout)
	defer cancel()
	_ = conn.Close(ctx) // the session ends in either case
}

// query runs one statement with text parameters and returns all rows as text.
// NULL is the empty string: queries say coalesce where that matters.
func query(ctx context.Context, conn *pgconn.PgConn, step, sql string, args ...string) ([][]string, error) {
	params := make([][]byte, len(args))
	for i, arg := range args {
		params[i] = []byte(arg)
	}
	result := conn.ExecParams(ctx, sql, params, nil, nil, nil).Read()
	if result.Err != nil {
		return nil, stepError(ctx, step, result.Err)
	}
	rows := make([][]string, len(result.Rows))
	for i, values := range result.Rows {
		row := make([]string, len(values))
		for j, value := range values {
			row[j] = string(value)
		}
		rows[i] = row
	}
	return rows, nil
}

// queryRow is query for a statement that yields exactly one row.
func queryRow(ctx context.Context, conn *pgconn.PgConn, step, sql string, args ...string) ([]string, error) {
	rows, err := query(ctx, conn, step, sql, args...)
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 {
		return nil, fmt.Errorf("%s: got %d rows, want 1", step, len(rows))
	}
	return rows[0], nil
}

// exec runs statements of the simple protocol and drops their results.
func exec(ctx context.Context, conn *pgconn.PgConn, step, sql string) error {
	if err := conn.Exec(ctx, sql).Close(); err != nil {
		return stepError(ctx, step, err)
	}
	return nil
}

// quoteIdent quotes an identifier for SQL.
func quoteIdent(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// quoteTable quotes a qualified table name for SQL.
func quoteTable(schema, name string) string {
	return quoteIdent(schema) + "." + quoteIdent(name)
}

// quoteLiteral quotes a string for SQL under standard_conforming_strings.
func quoteLiteral(s string) string {
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}
