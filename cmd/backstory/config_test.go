package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"backstory/configs"
	"backstory/internal/settings"
	"backstory/transform"
)

// noDefault are the keys that only an example can stand for.
var noDefault = map[string]bool{"source.dsn": true, "kafka.brokers": true}

func TestReferenceConfigurationHasEveryKeyAtItsDefault(t *testing.T) {
	t.Parallel()
	cfg, err := loadConfig("../../configs/backstory.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg.Mapping = filepath.Base(cfg.Mapping) // it is relative to the file
	defaults := settings.Keys(defaultConfig())
	for i, k := range settings.Keys(cfg) {
		if !noDefault[k.Name] {
			if d := cmp.Diff(defaults[i].Value(), k.Value()); d != "" {
				t.Errorf("%s is not its default:\n%s", k.Name, d)
			}
		}
	}
}

func TestReferenceConfigurationSetsEveryKey(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../../configs/backstory.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(content, &tree); err != nil {
		t.Fatal(err)
	}
	for _, k := range settings.Keys(defaultConfig()) {
		node := any(tree)
		for part := range strings.SplitSeq(k.Name, ".") {
			section, _ := node.(map[string]any)
			var ok bool
			if node, ok = section[part]; !ok {
				t.Errorf("%s is not in configs/backstory.yaml", k.Name)
				break
			}
		}
	}
}

// The reference mapping has every key, and what it says of defaults is so: with
// nothing but the table's name and aggregate the mapping is the same, where the
// keys say that they are at their defaults.
func TestReferenceMappingHasEveryKeyWithItsDefault(t *testing.T) {
	t.Parallel()
	text := strings.Replace(string(configs.Products), "    # reason:", "    reason:", 1)
	full, err := transform.ParseMapping("products.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var notNamed []string
	for _, of := range []any{full.Tables[0], &full.Tables[0].Topics, &full.Tables[0].Rules[0]} {
		v := reflect.ValueOf(of).Elem()
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; v.Field(i).IsZero() {
				notNamed = append(notNamed, name)
			}
		}
	}
	// ID, Former and Adopts are the bridge's; the others are at defaults that are zero.
	if d := cmp.Diff([]string{"ID", "TypePrefix", "Replace", "Int64Text", "Former", "Adopts", "Retention"}, notNamed); d != "" {
		t.Error(d)
	}
	for _, key := range []string{"type_prefix: \"\"", "undecodable: refuse", "int64: number", "retention: forever"} {
		if !strings.Contains(text, "\n"+key) && !strings.Contains(text, " "+key) {
			t.Errorf("%s is not in configs/products.yaml", key)
		}
	}
	least, err := transform.ParseMapping("least.yaml", []byte("tables: [{table: products, aggregate: Product}]"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(least.Tables[0].Topics, full.Tables[0].Topics); d != "" {
		t.Errorf("topics (-default +reference):\n%s", d)
	}
	if got, want := least.Tables[0].String(), full.Tables[0].String(); got != want {
		t.Errorf("table: got %s, want %s", got, want)
	}
}

func TestGoodConfigurations(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.good.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no fixtures", err)
	}
	for _, file := range files {
		cfg, err := loadConfig(file, nil)
		if err == nil {
			err = cfg.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Each bad configuration begins with the comment "# error: " for each line of
// the message that it must give.
func TestBadConfigurations(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.bad.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no fixtures", err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for line := range strings.Lines(string(content)) {
			if text, ok := strings.CutPrefix(line, "# error: "); ok {
				want = append(want, strings.TrimSpace(text))
			}
		}
		cfg, err := loadConfig(file, nil)
		if err == nil {
			err = cfg.Validate()
		}
		if err == nil {
			t.Errorf("%s: no error", file)
			continue
		}
		if d := cmp.Diff(want, strings.Split(err.Error(), "\n")); d != "" {
			t.Errorf("%s:\n%s", file, d)
		}
		if got := exitCode(err); got != exitUsage {
			t.Errorf("%s: exit code %d, want %d", file, got, exitUsage)
		}
	}
}

func TestConnectionStringFromAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := filepath.Join(dir, "dsn")
	config := filepath.Join(dir, "backstory.yaml")
	write(t, secret, "postgres://u:pw@db/legacy\n")
	write(t, config, "source: {dsn_file: "+secret+"}\nkafka: {brokers: ['k:9092']}\n")
	cfg, err := loadConfig(config, nil)
	if err != nil || cfg.Source.DSN != "postgres://u:pw@db/legacy" {
		t.Errorf("got %v and %v, want the content of the file", cfg, err)
	}
	if got, want := cfg.Mapping, filepath.Join(dir, "products.yaml"); got != want {
		t.Errorf("mapping: got %s, want %s", got, want)
	}
	write(t, secret, "postgres://u:other@db/legacy\n")
	if dsn, err := cfg.forSlot(2).Source.ReadDSN(); err != nil || dsn != "postgres://u:other@db/legacy" {
		t.Errorf("read again: got %q and %v, want the content of now", dsn, err)
	}
	write(t, secret, "postgres://u:pw@db/legacy\n")
	write(t, config, "source: {dsn_file: "+secret+", standby_dsn_file: "+secret+"}\n")
	if cfg, err := loadConfig(config, nil); err != nil || cfg.Source.StandbyDSN != "postgres://u:pw@db/legacy" {
		t.Errorf("standby: got %v and %v, want the content of the file", cfg, err)
	}
	write(t, secret, "\n")
	if _, err := loadConfig(config, nil); exitCode(err) != exitUsage {
		t.Errorf("an empty file: got %v, want wrong configuration", err)
	}
	write(t, config, "source: {dsn: 'host=a', standby_dsn: 'host=b', standby_dsn_file: "+secret+"}\n")
	if _, err := loadConfig(config, nil); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "source.standby_dsn, source.standby_dsn_file: one of the two") {
		t.Errorf("both: got %v, want wrong configuration", err)
	}
}

// YAML 1.1 has booleans that are written on and off.
func TestFailoverIsText(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"auto", "on", "off", "'on'", "\"off\""} {
		config := filepath.Join(t.TempDir(), "backstory.yaml")
		write(t, config, "source: {dsn: 'host=a', failover: "+value+"}\nkafka: {brokers: ['k:9092']}\n")
		cfg, err := loadConfig(config, nil)
		if err == nil {
			err = cfg.Validate()
		}
		if want := strings.Trim(value, "'\""); err != nil || cfg.Source.Failover != want {
			t.Errorf("%s: got %v and %v, want %s", value, cfg, err, want)
		}
	}
}

func TestMappingFromTheEnvironmentIsRelativeToTheWorkingDirectory(t *testing.T) {
	t.Setenv("BACKSTORY_MAPPING", "other/products.yaml")
	cfg, err := loadConfig("../../configs/backstory.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Mapping != "other/products.yaml" {
		t.Errorf("got %s, want the path as it was given", cfg.Mapping)
	}
}

func TestVariablesOfOthersAreLeftAlone(t *testing.T) {
	for _, name := range []string{"TEST_KAFKA", "PG_BIN", "MAVEN_URL", "CACHE", "CONFIG", "SERVICE_HOST", "PORT", "PORT_8642_TCP_ADDR"} {
		t.Setenv(envPrefix+name, "x")
	}
	if _, err := loadConfig("", nil); err != nil {
		t.Error(err)
	}
	t.Setenv("BACKSTORY_SOURCE_DNS", "x")
	_, err := loadConfig("", nil)
	if err == nil || !strings.Contains(err.Error(), "did you mean BACKSTORY_SOURCE_DSN?") {
		t.Errorf("got %v, want the nearest variable", err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
