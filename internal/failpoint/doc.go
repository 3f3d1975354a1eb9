// Package failpoint kills the process at a named place, so that a test can see
// what a crash exactly there leaves. It does so only in programs built with the
// tag failpoints; in all others its functions are empty and leave no code.
//
// BACKSTORY_TEST_FAILPOINT=NAME or NAME:N arms one place: the process dies by
// SIGKILL when it passes it, for the Nth time.
package failpoint
