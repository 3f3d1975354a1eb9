package capture

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Refusal says that capturing would be wrong or impossible as the database is
// now, and what mends it.
type Refusal struct {
	Thing   string // what it is about: "table public.products"
	Problem string // what is wrong with it
	Cure    string // what to do; a statement where one does it
}

// Error reads "thing: problem; cure: …".
func (r *Refusal) Error() string {
	if r.Cure == "" {
		return r.Thing + ": " + r.Problem
	}
	return r.Thing + ": " + r.Problem + "; cure: " + r.Cure
}

// Refused tells callers in other packages what kind of error it is.
func (r *Refusal) Refused() bool { return true }

// UsageError says that a configuration key has an unusable value.
type UsageError struct {
	Key     string // below the section of this package: "slot"
	Problem string
}

// Error reads "key: problem".
func (e *UsageError) Error() string { return e.Key + ": " + e.Problem }

// Usage tells callers in other packages what kind of error it is.
func (e *UsageError) Usage() bool { return true }

// ConnError says that a connection to Postgres could not be made or was lost.
// The work can be taken up again from what is durable.
type ConnError struct {
	Step string // what was going on: "connect to 127.0.0.1:5432"
	Err  error
	Cure string // what to do if it stays; empty where that is plain
}

// Error reads "step: cause", with "; cure: …" where there is one.
func (e *ConnError) Error() string {
	text := e.Step + ": " + e.Err.Error()
	if e.Cure != "" {
		text += "; cure: " + e.Cure
	}
	return text
}

// Unwrap returns the cause.
func (e *ConnError) Unwrap() error { return e.Err }

// Restart tells callers in other packages what kind of error it is.
func (e *ConnError) Restart() bool { return true }

// SQLSTATE codes that decide what happens next.
const (
	codeObjectInUse        = "55006" // the slot is active
	codeNotInState         = "55000" // the slot is invalidated, wal_level is too low, …
	codeLockNotAvailable   = "55P03" // lock_timeout
	codeQueryCanceled      = "57014" // statement_timeout
	classData              = "22"    // a text is no value of its type, or is out of range
	codeUndefinedTable     = "42P01"
	codeUndefinedColumn    = "42703"
	codeUndefinedObject    = "42704"
	codeDuplicateObject    = "42710"
	codeNoRight            = "42501"
	codeTooManyConnections = "53300"
	codeNoDatabase         = "3D000"
	codeSlotsFull          = "53400" // all replication slots are in use
	codeNotInRepertoire    = "22021" // bytes that are no text of their encoding
	codeUntranslatable     = "22P05" // a character that the other encoding does not have
)

// sqlState returns the SQLSTATE that err carries, or "".
func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// lost reports whether err means that the connection is gone, or could not be
// had for a passing reason, rather than that the server refused a statement.
func lost(err error) bool {
	code := sqlState(err)
	switch {
	case code == "":
		return true
	case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "57P"), code == codeTooManyConnections:
		return true
	}
	return false
}

// stepError wraps an error of the driver: a *ConnError if the connection is
// lost, the plain cause if ctx ended, else the server's refusal of the step.
func stepError(ctx context.Context, step string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", step, context.Cause(ctx))
	}
	if lost(err) {
		return &ConnError{Step: step, Err: err}
	}
	return fmt.Errorf("%s: %w", step, err)
}
