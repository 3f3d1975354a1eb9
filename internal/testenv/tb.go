package testenv

import "context"

// TB is what this package needs of a [testing.TB]. A program that is no test,
// the chaos suite or a benchmark, has one of its own, made by [Program].
type TB interface {
	Helper()
	Log(args ...any)
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	// Fatal and its like end the goroutine of the test.
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	// Cleanup registers what is done when the test ends, the last first.
	Cleanup(f func())
	// Context ends before the cleanup begins.
	Context() context.Context
	TempDir() string
	Failed() bool
}
