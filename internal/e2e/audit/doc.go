// Package audit is the oracle of the end-to-end suites. It knows nothing of the
// bridge's code: triggers in the legacy database write down every committed row
// version, a plain Kafka client reads both topics, and a comparison says which
// row, event, old value, version or partition is not as it must be.
//
// The triggers stand in the test database only. Row locks order the notes of one
// key as its transactions commit.
package audit
