package main
import "github.com/spf13/cobra"
func startupCommand(c *common) *cobra.Command { return &cobra.Command{Use: "startup"} }
