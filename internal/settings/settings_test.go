package settings_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"backstory/internal/settings"
)

type tree struct {
	Name  string `yaml:"name"`
	Store struct {
		Dir      string        `yaml:"dir"`
		Max      int64         `yaml:"max_bytes"`
		Parts    int16         `yaml:"parts"`
		Wait     time.Duration `yaml:"wait"`
		Create   bool          `yaml:"create"`
		Hosts    []string      `yaml:"hosts"`
		Rate     float64       `yaml:"rate"`
		Hidden   string
		Internal string `yaml:"-"`
	} `yaml:"store"`
	Extra extra `yaml:",inline"`
}

type extra struct {
	Deep struct {
		Secret string `yaml:"secret"`
	} `yaml:"deep"`
}

func defaults() *tree {
	t := &tree{Name: "default"}
	t.Store.Dir, t.Store.Create = "here", true
	return t
}

// load fills a tree from a file's content and command-line arguments.
func load(t *testing.T, content string, args ...string) (*tree, error) {
	t.Helper()
	cfg := defaults()
	src := settings.Sources{Prefix: "SETTINGSTEST_", Flags: pflag.NewFlagSet("test", pflag.ContinueOnError)}
	if content != "" {
		src.File = filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(src.File, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	settings.AddFlags(src.Flags, settings.Keys(cfg), nil)
	if err := src.Flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	err := settings.Load(cfg, src)
	return cfg, err
}

func TestKeysAreTaggedFields(t *testing.T) {
	t.Parallel()
	var got []string
	for _, k := range settings.Keys(defaults()) {
		got = append(got, k.Name+" "+k.Kind())
	}
	want := []string{"name text", "store.dir text", "store.max_bytes size", "store.parts number", "store.wait duration",
		"store.create boolean", "store.hosts list", "store.rate number", "deep.secret text"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestLoadValues(t *testing.T) {
	t.Parallel()
	got, err := load(t, `
name: a
store: {max_bytes: 64MiB, parts: 3, wait: 1m30s, create: false, hosts: [a, b], rate: 1.5}
deep: {secret: "s"}
`)
	want := defaults()
	want.Name, want.Extra.Deep.Secret = "a", "s"
	want.Store.Max, want.Store.Parts, want.Store.Wait = 64<<20, 3, 90*time.Second
	want.Store.Create, want.Store.Hosts, want.Store.Rate = false, []string{"a", "b"}, 1.5
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestEmptyFileKeepsDefaults(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"# nothing\n", "store:\n", "---\n"} {
		got, err := load(t, content)
		if err != nil {
			t.Errorf("%q: %v", content, err)
		}
		if d := cmp.Diff(defaults(), got); d != "" {
			t.Error(d)
		}
	}
}

func TestLaterSourcesWin(t *testing.T) {
	t.Setenv("SETTINGSTEST_NAME", "environment")
	t.Setenv("SETTINGSTEST_STORE_DIR", "environment")
	t.Setenv("SETTINGSTEST_STORE_HOSTS", "x:1, y:2")
	t.Setenv("SETTINGSTEST_DEEP_SECRET", "")
	got, err := load(t, "name: file\nstore: {dir: file, parts: 7}\ndeep: {secret: file}\n",
		"--store.dir=flag", "--store.create=false", "--store.max_bytes", "2KB")
	want := defaults()
	want.Name, want.Store.Dir, want.Store.Parts = "environment", "flag", 7
	want.Store.Create, want.Store.Max, want.Store.Hosts = false, 2000, []string{"x:1", "y:2"}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, content, want string }{
		{"misspelt key", "store:\n  drI: x\n", "f.yaml:2: store.drI: unknown key; did you mean store.dir?"},
		{"wrong section", "deep:\n  dir: x\n", "f.yaml:2: deep.dir: unknown key; did you mean store.dir?"},
		{"nothing like it", "zzzzzz: 1\n", "f.yaml:1: zzzzzz: unknown key"},
		{"twice", "name: a\nname: b\n", "f.yaml:2: name: already set in line 1"},
		{"dotted", "store.dir: a\n", "f.yaml:1: store.dir: write the key below its section, not with a dot"},
		{"no value", "name:\n", "f.yaml:1: name: no value; write one, or take the key out for its default"},
		{"section as value", "store: 5\n", `f.yaml:1: "store": want keys below it, got a value`},
		{"list as file", "- a\n", `f.yaml:1: "": want keys below it, got a value`},
		{"two documents", "name: a\n---\nname: b\n", "f.yaml: more than one YAML document; keep one"},
		{"number for text", "name: 5\n", "f.yaml:1: name: want text, got 5; put it in quotes"},
		{"text for number", "store: {parts: '5'}\n", `f.yaml:1: store.parts: want a number, got the text "5"`},
		{"too large", "store: {parts: 70000}\n", `f.yaml:1: store.parts: want a whole number of at most 16 bits, got "70000"`},
		{"fraction", "store: {parts: 1.5}\n", `f.yaml:1: store.parts: want a whole number of at most 16 bits, got "1.5"`},
		{"size overflow", "store: {max_bytes: 9223372036854775807KiB}\n", `f.yaml:1: store.max_bytes: want a size such as 67108864 or 64MiB, got "9223372036854775807"`},
		{"no unit", "store: {wait: 30}\n", "f.yaml:1: store.wait: want a duration, got 30 without a unit; write 30s or 30ms"},
		{"bad unit", "store: {wait: 3 days}\n", `f.yaml:1: store.wait: want a duration such as 30s, 5m or 100ms, got "3 days"`},
		{"yes", "store: {create: 'yes'}\n", "f.yaml:1: store.create: want true or false, got yes"},
		{"text for list", "store: {hosts: a}\n", `f.yaml:1: store.hosts: want a list, got the text "a"; write [a]`},
		{"number in list", "store: {hosts: [1]}\n", "f.yaml:1: store.hosts: want a list of texts, got 1 in it"},
		{"not a number", "store: {rate: .nan}\n", `f.yaml:1: store.rate: want a number, got "NaN"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := load(t, tt.content)
			if err == nil {
				t.Fatal("no error")
			}
			got := err.Error()
			if !strings.HasPrefix(got, "configuration") {
				got = filepath.Base(got[:strings.Index(got, ":")]) + got[strings.Index(got, ":"):]
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestAllThatIsWrongIsReported(t *testing.T) {
	t.Setenv("SETTINGSTEST_NMAE", "x")
	t.Setenv("SETTINGSTEST_STORE_PARTS", "many")
	_, err := load(t, "store: {wait: 1}\n", "--store.create=maybe")
	want := "environment: SETTINGSTEST_NMAE: unknown key; did you mean SETTINGSTEST_NAME?\n" +
		"environment: SETTINGSTEST_STORE_PARTS: want a whole number of at most 16 bits, got \"many\"\n" +
		"f.yaml:1: store.wait: want a duration, got 1 without a unit; write 1s or 1ms\n" +
		"--store.create: want true or false, got maybe"
	if err == nil {
		t.Fatal("no error")
	}
	var lines []string
	for line := range strings.Lines(err.Error()) {
		if strings.HasPrefix(line, "/") {
			line = filepath.Base(line)
		}
		lines = append(lines, line)
	}
	if d := cmp.Diff(want, strings.Join(lines, "")); d != "" {
		t.Error(d)
	}
}

func TestOtherVariablesAreLeftAlone(t *testing.T) {
	t.Setenv("SETTINGSTEST_TEST_KAFKA", "x")
	cfg := defaults()
	err := settings.Load(cfg, settings.Sources{Prefix: "SETTINGSTEST_",
		Others: func(name string) bool { return strings.HasPrefix(name, "SETTINGSTEST_TEST_") }})
	if err != nil {
		t.Error(err)
	}
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	err := settings.Load(defaults(), settings.Sources{File: filepath.Join(t.TempDir(), "absent.yaml"), Prefix: "SETTINGSTEST_"})
	if !os.IsNotExist(err) && (err == nil || !strings.Contains(err.Error(), "absent.yaml")) {
		t.Errorf("got %v, want the name of the file", err)
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	known := []string{"source.dsn", "source.slot", "kafka.brokers", "http.listen"}
	for name, want := range map[string]string{
		"source.dns": "source.dsn", "source.slots": "source.slot", "kafka.broker": "kafka.brokers",
		"kafka.listen": "http.listen", "xyz": "", "": "",
	} {
		if got := settings.Nearest(name, known); got != want {
			t.Errorf("nearest to %q: got %q, want %q", name, got, want)
		}
	}
}
