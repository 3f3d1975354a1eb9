package main
import "github.com/spf13/cobra"
func stateCommand(c *common) *cobra.Command { return &cobra.Command{Use: "state"} }
