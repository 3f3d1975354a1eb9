// Package e2e holds the end-to-end tests: the real binary between a real
// Postgres and a real Kafka, its output compared with what package audit says
// must be there. It has nothing but tests.
package e2e
