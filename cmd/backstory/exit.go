package main

import (
	"context"
	"errors"
)

// Exit codes, the same for every command.
const (
	exitDone      = 0
	exitFailed    = 1 // something broke, or could not be reached
	exitUsage     = 2 // the command line or the configuration is wrong
	exitRefused   = 3 // going on would be wrong as things are: an operator decides
	exitDifferent = 4 // a verification found differences
)

// usageError is a wrong command line or configuration.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }
func (e usageError) Usage() bool   { return true }

// refusedError ends a command that has already said what it refuses.
type refusedError struct{ what string }

func (e refusedError) Error() string { return e.what }
func (e refusedError) Refused() bool { return true }

// differentError is the finding of a verification.
type differentError struct{ what string }

func (e differentError) Error() string   { return e.what }
func (e differentError) Different() bool { return true }

// exitCode classifies an error by what it says of itself. Wrong configuration
// comes first: it also explains a refusal that it caused.
func exitCode(err error) int {
	var usage interface{ Usage() bool }
	var refused interface{ Refused() bool }
	var different interface{ Different() bool }
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage) && usage.Usage():
		return exitUsage
	case errors.As(err, &refused) && refused.Refused():
		return exitRefused
	case errors.As(err, &different) && different.Different():
		return exitDifferent
	}
	return exitFailed
}

// ended reports whether err is only the end that a signal asked for.
func ended(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}
