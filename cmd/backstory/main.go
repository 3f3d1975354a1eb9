// Command backstory carries the changes of a Postgres table into two Kafka
// topics, exactly once: every change as a domain event, and the newest state of
// each aggregate.
//
// This file has signals and exit codes; each command has a file of its own.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:]))
}

// run executes one command. The first SIGINT or SIGTERM asks it to end in order;
// the second ends the process at once.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	root := rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "backstory: "+err.Error())
	}
	return exitCode(err)
}
