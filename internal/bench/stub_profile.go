package main
import "github.com/spf13/cobra"
func profileCommand(c *common) *cobra.Command { return &cobra.Command{Use: "profile"} }
