package main
import "github.com/spf13/cobra"
func giantCommand(c *common) *cobra.Command { return &cobra.Command{Use: "giant"} }
