// Command bench measures the bridge: the real program between a real Postgres and
// a real Kafka that it starts itself. README.md says what each subcommand measures
// and how, and has the figures.
//
//	go run ./internal/bench catchup --rows 200000 --changes 200000 --runs 5
//	go run ./internal/bench latency --json
//
// Figures of one run are compared only with what was measured in the same run: the
// limit (pg_recvlogical, COPY) is taken seconds before the bridge, over the same
// transport, from the same WAL or rows. CPU is that of /proc, which a busy machine
// distorts less than the time; what the machine did besides is printed as foreign
// cores.
package main
