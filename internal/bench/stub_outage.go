package main
import "github.com/spf13/cobra"
func outageCommand(c *common) *cobra.Command { return &cobra.Command{Use: "outage"} }
