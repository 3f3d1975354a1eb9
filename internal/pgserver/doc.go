// Package pgserver finds or fetches Postgres and runs throw-away clusters of it
// on the loopback address, ready for logical replication, for the demo and for
// tests.
//
// # Guarantees
//
//   - A cluster without a directory of its own leaves nothing behind, also when
//     its process is killed: the kernel ends the server (Linux), and the next
//     cluster sweeps the directory away.
//   - Every cluster has a system identifier of its own, also one that was copied
//     from the cached template.
//   - Root may use it: the servers run as postgres or nobody.
//
// Authentication is trust: whoever has an account on this machine can connect.
package pgserver
