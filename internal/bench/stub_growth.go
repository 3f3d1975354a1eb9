package main
import "github.com/spf13/cobra"
func growthCommand(c *common) *cobra.Command { return &cobra.Command{Use: "growth"} }
