package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func giantCommand(c *common) *cobra.Command {
	var changes int
	cmd := &cobra.Command{
		Use:   "giant",
		Short: "Memory of one very large transaction, beside a hundred times smaller ones",
		Long: `Let the bridge read the same number of changes as transactions of a hundredth of
them and as a single one. Memory must not depend on it.`,
		Example: "  go run ./internal/bench giant --changes 1000000",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.giant(r, c.runs, changes) })
		},
	}
	cmd.Flags().IntVar(&changes, "changes", 200_000, "changes of the transaction, and rows of the table")
	return cmd
}

func (l *lab) giant(r *report, runs, changes int) error {
	rig, err := l.primed("giant", changes)
	if err != nil {
		return err
	}
	skip := 0
	for range runs {
		for _, size := range []int{max(1, changes/100), changes} {
			row := r.row(fmt.Sprintf("%d a transaction", size))
			if err := rig.pair(row, unixSocket, size, changes, changes, skip); err != nil {
				return err
			}
			skip += changes
		}
	}
	r.note("%d changes a run over a Unix socket.", changes)
	return nil
}
