package main
import "github.com/spf13/cobra"
func backfillCommand(c *common) *cobra.Command { return &cobra.Command{Use: "backfill"} }
