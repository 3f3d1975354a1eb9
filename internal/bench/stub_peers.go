package main

import "github.com/spf13/cobra"

func peersCommand(c *common) *cobra.Command { return &cobra.Command{Use: "peers"} }
