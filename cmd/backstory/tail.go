package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"backstory/internal/screen"
	"backstory/internal/settings"
	"backstory/sink"
	"backstory/transform"
)

// tailOptions are the flags of tail.
type tailOptions struct {
	from    string
	follow  bool
	asJSON  bool
	key     string
	brokers []string
}

func tailCommand() *cobra.Command {
	o := &tailOptions{}
	cmd := &cobra.Command{
		Use:   "tail [TOPIC|TABLE…]",
		Short: "Watch both topics, readably",
		Long: `Show the records of topics as they come: time, key, version, type, the old and new
value of each field, and the reason. A table or an aggregate stands for its two
topics; without a name all topics of the mapping are shown. With --brokers and
names of topics no configuration is needed. Nothing is written, and no consumer
group is made.`,
		Example: `  backstory tail --config configs/backstory.yaml
  backstory tail -c configs/backstory.yaml product.events --from start --follow=false --key 42
  backstory tail --brokers 127.0.0.1:9092 product.events --json | jq .value.reason`,
		RunE: func(cmd *cobra.Command, args []string) error { return runTail(cmd, args, o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.from, "from", "end", "begin at: start, end, a time (RFC 3339) or an age (15m)")
	flags.BoolVarP(&o.follow, "follow", "f", true, "go on when the end is reached")
	flags.BoolVar(&o.asJSON, "json", false, "print one JSON object a line, for programs")
	flags.StringVar(&o.key, "key", "", "show this aggregate only")
	flags.StringSliceVar(&o.brokers, "brokers", nil, "host:port, instead of kafka.brokers")
	configFlags(cmd)
	return cmd
}

func runTail(cmd *cobra.Command, args []string, o *tailOptions) error {
	cfg, err := configOf(cmd)
	if err != nil {
		return err
	}
	if len(o.brokers) > 0 {
		cfg.Kafka.Brokers = o.brokers
	}
	if err := cfg.Kafka.Validate(); err != nil {
		return usageError{fmt.Errorf("kafka.%w", err)}
	}
	from, err := tailFrom(o, time.Now())
	if err != nil {
		return usageError{err}
	}
	topics, err := topicsOf(cfg.Mapping, args, len(o.brokers) > 0)
	if err != nil {
		return err
	}
	if err := reachable(cmd.Context(), cfg.Kafka.Brokers); err != nil {
		return err
	}
	out := &recordWriter{out: cmd.OutOrStdout(), asJSON: o.asJSON, screen: newScreen(os.Stdout)}
	log := cfg.Log.logger()
	err = sink.Tail(cmd.Context(), cfg.Kafka, topics, from, o.follow, log, func(r *transform.Stored) error {
		if cmd.Flags().Changed("key") && string(r.Key) != o.key {
			return nil
		}
		return out.write(r)
	})
	if ended(cmd.Context(), err) {
		return nil
	}
	return err
}

func newScreen(f *os.File) *screen.Screen {
	return &screen.Screen{Style: screen.StyleOf(f), Zone: time.Local}
}

// dialTimeout bounds the attempt to reach one broker.
const dialTimeout = 5 * time.Second

// reachable returns nil if a broker takes connections. Who watches a screen
// wants to know at once; sink.Tail would wait for brokers without an end.
func reachable(ctx context.Context, brokers []string) error {
	var errs []error
	dialer := &net.Dialer{Timeout: dialTimeout}
	for _, broker := range brokers {
		conn, err := dialer.DialContext(ctx, "tcp", broker)
		if err == nil {
			return conn.Close()
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("no broker can be reached: %w", errors.Join(errs...))
}

// tailFrom reads --from.
func tailFrom(o *tailOptions, now time.Time) (sink.TailFrom, error) {
	switch o.from {
	case "start":
		return sink.FromStart(), nil
	case "end":
		if !o.follow {
			return sink.TailFrom{}, errors.New("--from end --follow=false shows nothing; write --from start, or a time")
		}
		return sink.FromEnd(), nil
	}
	if age, err := time.ParseDuration(o.from); err == nil && age >= 0 {
		return sink.FromTime(now.Add(-age)), nil
	}
	if t, err := time.Parse(time.RFC3339, o.from); err == nil {
		return sink.FromTime(t), nil
	}
	return sink.TailFrom{}, fmt.Errorf("--from: start, end, a time such as 2026-01-31T12:00:00Z or an age such as 15m, not %q", o.from)
}

// topicsOf finds the topics that the arguments mean. Without a mapping, which is
// fine where brokers were given by hand, they are names of topics.
func topicsOf(mappingFile string, args []string, byHand bool) ([]string, error) {
	if _, err := os.Stat(mappingFile); byHand && errors.Is(err, fs.ErrNotExist) {
		if len(args) == 0 {
			return nil, usageError{errors.New("name a topic, or give --config for those of its mapping")}
		}
		return args, nil
	}
	mapping, err := transform.LoadMapping(mappingFile)
	if err != nil {
		return nil, err
	}
	if len(args) == 0 {
		for _, t := range mapping.Tables {
			args = append(args, t.String())
		}
	}
	var topics []string
	for _, arg := range args {
		found := meant(mapping, arg)
		switch {
		case len(found) > 0:
			topics = append(topics, found...)
		case byHand:
			topics = append(topics, arg)
		default:
			return nil, usageError{unknownTopic(mapping, arg)}
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics), nil
}

// meant returns the topics of a topic's, table's or aggregate's name.
func meant(m *transform.Mapping, name string) []string {
	for _, t := range m.Tables {
		switch name {
		case t.Topics.Events, t.Topics.Latest:
			return []string{name}
		case t.String(), t.Name, t.Aggregate:
			return []string{t.Topics.Events, t.Topics.Latest}
		}
	}
	return nil
}

func unknownTopic(m *transform.Mapping, name string) error {
	var known []string
	for _, t := range m.Tables {
		known = append(known, t.Topics.Events, t.Topics.Latest, t.String(), t.Aggregate)
	}
	if near := settings.Nearest(name, known); near != "" {
		return fmt.Errorf("%s: no topic or table of the mapping; did you mean %s?", name, near)
	}
	return fmt.Errorf("%s: no topic or table of the mapping, which has %s", name, strings.Join(known, ", "))
}

// recordWriter prints records, for people or for programs.
type recordWriter struct {
	out    io.Writer
	asJSON bool
	screen *screen.Screen
}

func (w *recordWriter) write(r *transform.Stored) error {
	topic := r.Table.Topics.Events // a tailed record's table has the name of its topic only
	if !w.asJSON {
		_, err := fmt.Fprintln(w.out, w.screen.Render(topic, r))
		return err
	}
	line, err := screen.JSON(topic, r)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w.out, line)
	return err
}
