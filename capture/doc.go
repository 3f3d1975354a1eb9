// Package capture turns a Postgres logical replication slot into batches of
// committed changes, and a table into chunks of rows.
package capture
