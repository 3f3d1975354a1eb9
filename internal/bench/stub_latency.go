package main
import "github.com/spf13/cobra"
func latencyCommand(c *common) *cobra.Command { return &cobra.Command{Use: "latency"} }
