// Package demo has what the demonstration needs beside a Postgres: an embedded
// broker, a small shop that writes its table of products as a legacy application
// would, and a ledger that reads both topics like a consumer and tells whether
// they agree with the table.
package demo
