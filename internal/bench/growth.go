package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func growthCommand(c *common) *cobra.Command {
	var rows int
	var products []int
	cmd := &cobra.Command{
		Use:   "growth",
		Short: "Cost of a change with more and more products in the state",
		Long: `Let the bridge empty the same kind of backlog with a larger state each time: the
table's products, to which synthetic ones are added.`,
		Example: "  go run ./internal/bench growth --rows 1000000 --products 1000000,10000000,50000000",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.growth(r, c.runs, rows, products) })
		},
	}
	cmd.Flags().IntVar(&rows, "rows", 200_000, "rows of the table, all of which change")
	cmd.Flags().IntSliceVar(&products, "products", []int{200_000, 2_000_000}, "products in the state, ascending")
	return cmd
}

func (l *lab) growth(r *report, runs, rows int, products []int) error {
	rig, err := l.primed("growth", rows)
	if err != nil {
		return err
	}
	skip, have := 0, rows
	for _, n := range products {
		if err := rig.enlarge(have-rows, n-have); err != nil {
			return err
		}
		have = max(have, n)
		for range runs {
			if err := rig.pair(r.row(fmt.Sprintf("%d products", have)), unixSocket, 100, rows, rows, skip); err != nil {
				return err
			}
			skip += rows
		}
	}
	r.note("%d changes a run, 100 a transaction, over a Unix socket; images of synthetic products have %d bytes.", rows, syntheticBytes)
	return nil
}
