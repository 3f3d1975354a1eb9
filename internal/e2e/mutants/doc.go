// Package mutants shows that the suites can fail: it plants mistakes in the
// bridge, one at a time, and wants a test to find each. It has nothing but tests.
//
// A mutant is a source file with one passage replaced, given to the go command as
// an overlay, so that nothing in the tree changes. `make mutants` builds each one
// and runs the fastest test that must fail with it. Without the -mutants flag the
// table is only checked against the sources, so that it can't rot unseen: every
// passage must be there exactly once, and every test that is named must exist.
package mutants
