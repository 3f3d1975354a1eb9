// Package transform turns row changes into domain events: pure and deterministic.
package transform
