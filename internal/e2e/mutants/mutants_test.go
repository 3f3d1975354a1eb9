package mutants_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"backstory/internal/e2e/named"
)

var build = flag.Bool("mutants", false, "build the mutants and run a suite against each (minutes)")

// limit bounds one mutant: its build, and the test that must find it.
const limit = 4 * time.Minute

// mutant is one mistake, and how it is found.
type mutant struct {
	name  string // what the bridge does wrong
	edits []edit
	pkg   string // of the test, below the module's root
	test  string // that must fail; a subtest is named behind a slash
	args  []string
	says  string // regular expression of what its failure must say
}

// edit replaces a passage that occurs once in a file.
type edit struct{ file, old, now string }

// The module's root, as seen from this package.
const root = "../../.."

// mutate returns the files of the mutant that differ, by their path in the tree.
func (m *mutant) mutate() (map[string]string, error) {
	files := make(map[string]string)
	for _, e := range m.edits {
		text, ok := files[e.file]
		if !ok {
			source, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				return nil, err
			}
			text = string(source)
		}
		if n := strings.Count(text, e.old); n != 1 {
			return nil, fmt.Errorf("%s has the passage %d times, want once:\n%s", e.file, n, e.old)
		}
		files[e.file] = strings.Replace(text, e.old, e.now, 1)
	}
	return files, nil
}

// overlay writes the files and what the go command reads to find them.
func overlay(dir string, files map[string]string) (string, error) {
	tree, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	var spec struct{ Replace map[string]string }
	spec.Replace = make(map[string]string)
	for file, text := range files {
		path := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", err
		}
		spec.Replace[filepath.Join(tree, file)] = path
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, text, 0o600)
}

// run builds the mutant's test and returns what it printed, and whether it failed.
func (m *mutant) run(ctx context.Context, overlay string) (output string, failed bool, err error) {
	pattern := "^" + strings.ReplaceAll(m.test, "/", "$/^") + "$"
	args := []string{"test", "-overlay", overlay, "-count=1", "-vet=off", "-timeout", limit.String(), "-run", pattern, "./" + m.pkg}
	cmd := exec.CommandContext(ctx, "go", append(args, m.args...)...)
	cmd.Dir = root
	// A server that is missing must not be taken for a mutant that survives.
	cmd.Env = append(os.Environ(), "BACKSTORY_TEST_REQUIRE=postgres,kafka")
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); errors.As(err, &exit) && ctx.Err() == nil {
		return string(out), true, nil
	}
	return string(out), false, err
}

// judge says why the run is not one that found the mutant.
func (m *mutant) judge(output string, failed bool) error {
	top, _, _ := strings.Cut(m.test, "/")
	switch {
	case !failed && strings.Contains(output, "no tests to run"):
		return errors.New("there is no such test")
	case !failed:
		return errors.New("it survives: the test passes with it")
	case strings.Contains(output, "[build failed]"), strings.Contains(output, "[setup failed]"):
		return errors.New("it does not build")
	case !strings.Contains(output, "--- FAIL: "+top):
		return errors.New("it was not the test that failed")
	case !regexp.MustCompile(m.says).MatchString(output):
		return fmt.Errorf("the test fails for another reason than %q", m.says)
	}
	return nil
}

// reason is the first line that says why the test failed, and how often a property
// was asked before.
func (m *mutant) reason(output string) string {
	asked := regexp.MustCompile(`failed after \d+ tests`).FindString(output)
	said := regexp.MustCompile(`.*(` + m.says + `).*`).FindString(output)
	return strings.TrimSpace(strings.TrimSpace(said) + " " + asked)
}

// excerpt is the beginning of an output, where the reasons are, and its end.
func excerpt(output string) string {
	const part = 3000
	if len(output) <= 2*part {
		return output
	}
	return output[:part] + "\n[…]\n" + output[len(output)-part:]
}

func TestMutants(t *testing.T) {
	t.Parallel()
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			files, err := m.mutate()
			if err != nil {
				t.Fatal(err)
			}
			if err := named.Check(root, m.pkg, m.test); err != nil {
				t.Fatal(err)
			}
			if !*build {
				return
			}
			path, err := overlay(t.TempDir(), files)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit+time.Minute)
			defer cancel()
			output, failed, err := m.run(ctx, path)
			if err == nil {
				err = m.judge(output, failed)
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, excerpt(output))
			}
			t.Logf("found by %s: %s", m.test, m.reason(output))
		})
	}
}

// A mistake that is in the table twice would be counted twice.
func TestMutantsDiffer(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, m := range mutants {
		text := fmt.Sprint(m.edits)
		if other, ok := seen[text]; ok {
			t.Errorf("%q is the same as %q", m.name, other)
		}
		seen[text] = m.name
		if slices.ContainsFunc(m.edits, func(e edit) bool { return e.old == e.now }) {
			t.Errorf("%q changes nothing", m.name)
		}
	}
}
