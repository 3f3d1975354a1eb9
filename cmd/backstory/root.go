package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"backstory/configs"
	"backstory/internal/settings"
)

const about = `backstory reads what a legacy database overwrites and keeps it: every change of a
mapped Postgres table becomes a domain event in one Kafka topic, and the newest
state of each row stands in another.`

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "backstory",
		Short:         "A history of domain events for a legacy Postgres table",
		Long:          about,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(helpCommand(root))
	root.AddCommand(runCommand(), demoCommand(), doctorCommand(), backfillCommand(), statusCommand(), tailCommand(), verifyCommand(), versionCommand(), configTopic())
	for _, cmd := range append(root.Commands(), root) {
		if cmd.Args != nil {
			cmd.Args = usageArgs(cmd.Args)
		}
	}
	return root
}

// helpCommand refuses what there is no help on, where cobra's own would show that
// of the program.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Help about a command",
		Example: "  backstory help run\n  backstory help config",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err == nil && len(rest) == 0 {
				return cmd.Help()
			}
			var known []string
			for _, c := range root.Commands() {
				known = append(known, c.Name())
			}
			text := fmt.Sprintf("no help on %q", strings.Join(args, " "))
			if near := settings.Nearest(args[0], known); near != "" {
				text += "; did you mean " + near + "?"
			}
			return usageError{errors.New(text)}
		},
	}
}

// configTopic is "backstory help config": every key with unit and default.
func configTopic() *cobra.Command {
	return &cobra.Command{Use: "config", Short: "Every key of the configuration, with unit and default", Long: configHelp()}
}

func configHelp() string {
	return `Every key can be set in the file that --config names, in the environment and by a
flag, the later over the earlier:

    source: {dsn: …}        BACKSTORY_SOURCE_DSN=…        --source.dsn=…

This is the file with every key at its default (configs/backstory.yaml):

` + string(configs.Backstory)
}

// configFlags gives a command --config and a flag for every key; the latter are
// not listed in its help, which would be hidden behind them.
func configFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringP("config", "c", os.Getenv(envPrefix+"CONFIG"), "configuration `file`, YAML; see 'backstory help config'")
	flags.String("log-level", "", "debug, info, warn or error (default info)")
	flags.String("log-format", "", "text or json (default text)")
	keys := settings.Keys(defaultConfig())
	settings.AddFlags(flags, keys, flagAlias)
	for _, k := range keys {
		if flagAlias[k.Name] == "" {
			flags.Lookup(k.Name).Hidden = true
		}
	}
}

// configOf loads what configFlags defined.
func configOf(cmd *cobra.Command) (*Config, error) {
	file, err := cmd.Flags().GetString("config")
	if err != nil {
		return nil, err
	}
	cfg, err := loadConfig(file, cmd.Flags())
	if err != nil {
		return nil, err
	}
	if err := cfg.Log.Validate(); err != nil {
		return nil, usageError{fmt.Errorf("log.%w", err)}
	}
	return cfg, nil
}

// flagError adds the nearest known flag to the message about an unknown one.
func flagError(cmd *cobra.Command, err error) error {
	_, name, unknown := strings.Cut(err.Error(), "unknown flag: --")
	if !unknown {
		return usageError{fmt.Errorf("%w; see 'backstory %s --help'", err, cmd.Name())}
	}
	var known []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
	if near := settings.Nearest(name, known); near != "" {
		return usageError{fmt.Errorf("--%s: unknown flag; did you mean --%s?", name, near)}
	}
	return usageError{fmt.Errorf("--%s: unknown flag; see 'backstory %s --help'", name, cmd.Name())}
}

// usageArgs makes the errors of an argument check wrong use.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			return usageError{fmt.Errorf("%w; did you mean %s?", err, near[0])}
		}
		return usageError{err}
	}
}
