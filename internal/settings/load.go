package settings

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// Sources says where settings come from.
type Sources struct {
	File   string                 // path of the YAML file; empty: none
	Prefix string                 // of environment variables: "BACKSTORY_"
	Others func(name string) bool // variables with the prefix that are no settings; nil: none
	Flags  *pflag.FlagSet         // with what AddFlags added; nil: none
	Alias  map[string]string      // key → flag, where the flag is not called like the key
}

// AddFlags defines a flag for each key that flags does not have yet.
func AddFlags(flags *pflag.FlagSet, keys []Key, alias map[string]string) {
	for _, k := range keys {
		name := flagName(k, alias)
		if flags.Lookup(name) != nil {
			continue
		}
		flags.Var(&text{kind: k.Kind()}, name, "sets "+k.Name)
		if k.Kind() == "boolean" {
			flags.Lookup(name).NoOptDefVal = "true"
		}
	}
}

// text is a flag's value as it was typed; the key's type is applied by Load.
type text struct{ value, kind string }

func (t *text) String() string     { return t.value }
func (t *text) Set(s string) error { t.value = s; return nil }
func (t *text) Type() string       { return t.kind }

func flagName(k Key, alias map[string]string) string {
	if name := alias[k.Name]; name != "" {
		return name
	}
	return k.Name
}

// Load sets the fields of the struct that cfg points to. Its error joins
// everything that is wrong, each with file and line, variable or flag.
func Load(cfg any, src Sources) error {
	keys := Keys(cfg)
	v := viper.New()
	v.AllowEmptyEnv(true)
	v.SetConfigType("yaml")
	f, err := src.read(v, keys)
	if err != nil {
		return err
	}
	errs := append(f.errs, src.unknownVariables(keys)...)
	if len(f.errs) > 0 {
		return errors.Join(errs...)
	}
	for _, k := range keys {
		place, isText := src.bind(v, k, f)
		if place == "" {
			continue // not set: the default stays
		}
		if err := k.set(v.Get(k.Name), isText); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", place, err))
		}
	}
	return errors.Join(errs...)
}

// read gives the file to viper and to the checks of its keys.
func (src Sources) read(v *viper.Viper, keys []Key) (*file, error) {
	if src.File == "" {
		return &file{}, nil
	}
	data, err := os.ReadFile(src.File)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	f, err := parseFile(src.File, data, keys)
	if err != nil || len(f.errs) > 0 {
		return f, err
	}
	if err := v.ReadConfig(bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("%s: %w", src.File, err)
	}
	return f, nil
}

// bind tells viper of the key's variable and flag and returns the place that
// the key's value comes from, "" if nothing sets it, and whether it is text of
// a variable or flag.
func (src Sources) bind(v *viper.Viper, k Key, f *file) (place string, isText bool) {
	if line, ok := f.places[k.Name]; ok {
		place = fmt.Sprintf("%s:%d: %s", f.name, line, k.Name)
	}
	env := k.env(src.Prefix)
	if _, ok := os.LookupEnv(env); ok {
		place, isText = "environment: "+env, true
		_ = v.BindEnv(k.Name, env) // fails only without a name
	}
	if src.Flags == nil {
		return place, isText
	}
	if flag := src.Flags.Lookup(flagName(k, src.Alias)); flag != nil && flag.Changed {
		place, isText = "--"+flag.Name, true
		_ = v.BindPFlag(k.Name, flag) // fails only without a flag
	}
	return place, isText
}

// unknownVariables finds the misspelt among the environment variables.
func (src Sources) unknownVariables(keys []Key) (errs []error) {
	var known []string
	for _, k := range keys {
		known = append(known, k.env(src.Prefix))
	}
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, src.Prefix) || slices.Contains(known, name) || src.Others != nil && src.Others(name) {
			continue
		}
		errs = append(errs, fmt.Errorf("environment: %s: unknown key%s", name, hint(Nearest(name, known))))
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}
