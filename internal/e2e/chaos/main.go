// Command chaos breaks everything around the bridge, and the bridge, while
// writers write, and then holds both topics and the state against what the
// writers committed.
//
//	go run ./internal/e2e/chaos -faults 500 -seed 7 -dir /tmp/chaos
//
// The seed decides which faults come in which order and for how long; the moment
// at which each one hits is the machine's. Exit code 1 says that something was
// lost, doubled, out of order or wrong, or that a process ended as it must not;
// the directory then has the logs of all processes and both topics as text.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"backstory/internal/testenv"
)

func main() {
	if err := command(); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// command reads the flags, starts servers and runs.
func command() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := defaultOptions()
	o.log = os.Stdout
	brokers, version := 1, os.Getenv("BACKSTORY_TEST_PG_VERSION")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano())%1_000_000, "order and length of the faults")
	flag.IntVar(&o.faults, "faults", o.faults, "number of faults")
	flag.IntVar(&o.check, "check", o.check, "faults between two comparisons")
	flag.BoolVar(&o.alter, "alter", o.alter, "change the table's columns meanwhile")
	flag.StringVar(&o.dir, "dir", "", "where states and logs go; default: a scratch directory, removed if all is well")
	flag.StringVar(&o.only, "only", "", "comma-separated names of the faults to choose from; default: all")
	flag.IntVar(&brokers, "brokers", brokers, "Kafka brokers")
	flag.StringVar(&version, "postgres", version, "major version of Postgres")
	flag.Parse()
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "backstory-chaos"); err != nil {
			return err
		}
		defer func() {
			if err == nil {
				err = os.RemoveAll(o.dir)
			}
		}()
	}
	return testenv.Program(ctx, os.Stdout, func(tb testenv.TB) {
		if err := run(tb.Context(), o, startServers(tb, version, brokers)); err != nil {
			tb.Fatal(err)
		}
	})
}

// startServers starts a Postgres and a Kafka that end with tb.
func startServers(tb testenv.TB, version string, brokers int) servers {
	options := []testenv.PGOption{testenv.Fresh()}
	if version != "" {
		options = append(options, testenv.PGVersion(version))
	}
	for name, value := range postgresSettings {
		options = append(options, testenv.PGSetting(name, value))
	}
	s := servers{brokers: brokers}
	s.pg = testenv.Postgres(tb, options...).Server(tb)
	s.kafka = testenv.Kafka(tb, testenv.KafkaBrokers(brokers), testenv.KafkaProxied())
	for i := range s.links {
		s.links[i] = testenv.Proxy(tb, s.pg.Addr())
	}
	return s
}
