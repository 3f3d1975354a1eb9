package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/settings"
	"backstory/internal/state"
	"backstory/internal/web"
	"backstory/sink"
)

// envPrefix begins the names of all environment variables of the program.
const envPrefix = "BACKSTORY_"

// Config is the whole configuration: a section for each room. configs/backstory.yaml
// documents every key.
type Config struct {
	Source   sourceConfig          `yaml:"source"`
	Kafka    sink.Config           `yaml:"kafka"`
	State    state.Config          `yaml:"state"`
	Backfill bridge.BackfillConfig `yaml:"backfill"`
	Bridge   bridge.Config         `yaml:"bridge"`
	HTTP     web.Config            `yaml:"http"`
	Log      logConfig             `yaml:"log"`

	// Mapping is the file that says which tables become which aggregates. In the
	// configuration file it is relative to that file, elsewhere to the working
	// directory. Default products.yaml.
	Mapping string `yaml:"mapping"`
}

// sourceConfig is the database, with the connection string or a file that has it.
type sourceConfig struct {
	capture.Config `yaml:",inline"`

	// DSNFile has the connection string on its first line, so that the password
	// is in no environment and no list of processes.
	DSNFile string `yaml:"dsn_file"`

	// StandbyDSNFile is the same for the standby's connection string.
	StandbyDSNFile string `yaml:"standby_dsn_file"`
}

// logConfig says what the log on standard error is like.
type logConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn or error. Default info.
	Format string `yaml:"format"` // text or json. Default text.
}

// flagAlias names the flags that are not called like their keys.
var flagAlias = map[string]string{"log.level": "log-level", "log.format": "log-format"}

func defaultConfig() *Config {
	return &Config{
		Source:   sourceConfig{Config: capture.DefaultConfig()},
		Kafka:    sink.DefaultConfig(),
		State:    state.Config{Dir: "./data", SegmentBytes: state.DefaultSegmentBytes},
		Backfill: bridge.DefaultBackfillConfig(),
		Bridge:   bridge.DefaultConfig(),
		HTTP:     web.DefaultConfig(),
		Log:      logConfig{Level: "info", Format: "text"},
		Mapping:  "products.yaml",
	}
}

// loadConfig reads the file (empty: none), the environment and the flags over
// the defaults. It checks names and types; what the values mean is checked by
// the validation of the sections that a command needs.
func loadConfig(file string, flags *pflag.FlagSet) (*Config, error) {
	cfg := defaultConfig()
	err := settings.Load(cfg, settings.Sources{File: file, Prefix: envPrefix, Others: notOurs, Flags: flags, Alias: flagAlias})
	if err != nil {
		return nil, usageError{err}
	}
	if err := cfg.readDSN(); err != nil {
		return nil, usageError{err}
	}
	if _, env := os.LookupEnv(envPrefix + "MAPPING"); !env && !changed(flags, "mapping") && !filepath.IsAbs(cfg.Mapping) {
		cfg.Mapping = filepath.Join(filepath.Dir(file), cfg.Mapping)
	}
	return cfg, nil
}

func changed(flags *pflag.FlagSet, name string) bool {
	return flags != nil && flags.Changed(name)
}

// readDSN takes the connection strings from their files. That of the source is read
// again for each connection, since somebody may change the password in it.
func (c *Config) readDSN() error {
	errs := []error{
		fromFile("source.dsn", &c.Source.DSN, c.Source.DSNFile),
		fromFile("source.standby_dsn", &c.Source.StandbyDSN, c.Source.StandbyDSNFile),
	}
	if file := c.Source.DSNFile; file != "" {
		c.Source.ReadDSN = func() (string, error) { return readDSNFile("source.dsn", file) }
	}
	return errors.Join(errs...)
}

// fromFile sets a connection string to the content of its file, if it has one.
func fromFile(key string, dsn *string, file string) (err error) {
	switch {
	case file == "":
		return nil
	case *dsn != "":
		return fmt.Errorf("%s, %s_file: one of the two", key, key)
	}
	*dsn, err = readDSNFile(key, file)
	return err
}

// readDSNFile reads the connection string of a key from a file.
func readDSNFile(key, file string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s_file: %w", key, err)
	}
	dsn := strings.TrimSpace(string(content))
	if dsn == "" {
		return "", fmt.Errorf("%s_file: %s is empty; write the connection string into it", key, file)
	}
	return dsn, nil
}

// notOurs reports whether a variable with our prefix is no setting: those of
// tests and of the throw-away servers, the place of the configuration file, and
// what Kubernetes sets in every pod where a service is called backstory.
func notOurs(name string) bool {
	name = strings.TrimPrefix(name, envPrefix)
	switch name {
	case "CONFIG", "CACHE", "PG_BIN", "MAVEN_URL", "PORT":
		return true
	}
	for _, prefix := range []string{"TEST_", "SERVICE_", "PORT_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// Validate reports everything that is wrong, by key.
func (c *Config) Validate() error {
	var errs []error
	for _, section := range []struct {
		name string
		err  error
	}{
		{"source", c.Source.Validate()},
		{"kafka", c.Kafka.Validate()},
		{"state", c.State.Validate()},
		{"backfill", c.Backfill.Validate()},
		{"bridge", c.Bridge.Validate()},
		{"http", c.HTTP.Validate()},
		{"log", c.Log.Validate()},
	} {
		for _, err := range each(section.err) {
			errs = append(errs, fmt.Errorf("%s.%w", section.name, err))
		}
	}
	if c.Mapping == "" {
		errs = append(errs, errors.New("mapping: the path of the mapping file is needed"))
	}
	if err := errors.Join(errs...); err != nil {
		return usageError{err}
	}
	return nil
}

// each takes a section's findings apart, so that each gets the section's name.
func each(err error) []error {
	var kafka *sink.ConfigError
	if errors.As(err, &kafka) {
		var errs []error
		for _, p := range kafka.Problems {
			errs = append(errs, errors.New(p))
		}
		return errs
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, err := range joined.Unwrap() {
			errs = append(errs, each(err)...)
		}
		return errs
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// Validate reports what is wrong, by key.
func (c logConfig) Validate() error {
	var errs []error
	var level slog.Level
	if level.UnmarshalText([]byte(c.Level)) != nil {
		errs = append(errs, fmt.Errorf("level: debug, info, warn or error, not %q", c.Level))
	}
	if c.Format != "text" && c.Format != "json" {
		errs = append(errs, fmt.Errorf("format: text or json, not %q", c.Format))
	}
	return errors.Join(errs...)
}

// logger writes to standard error, which leaves standard output to results.
func (c logConfig) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // Validate has seen it
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}
