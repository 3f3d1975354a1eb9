package pgserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"backstory/internal/cache"
)

// Installation is a Postgres that can be run.
type Installation struct {
	Bin     string // directory with initdb and postgres
	Version string // as postgres says it: "15.13 (Debian 15.13-0+deb12u1)"
	Major   int
}

// String is for messages to people.
func (i Installation) String() string { return fmt.Sprintf("Postgres %s in %s", i.Version, i.Bin) }

// installed are the places where systems put Postgres, besides PATH.
var installed = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/usr/local/pgsql/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*.*)`)

// Find returns a Postgres of the major version ("10" to "18"; empty: the newest
// there is): that of BACKSTORY_PG_BIN, an installed one, else one that it
// fetches into the cache, about 15 MB.
func Find(ctx context.Context, version string) (Installation, error) {
	want, err := parseMajor(version)
	if err != nil {
		return Installation{}, err
	}
	if inst, ok, err := configured(ctx, want); ok || err != nil {
		return inst, err
	}
	if inst, ok := newest(ctx, want); ok {
		return inst, nil
	}
	if want == 0 {
		want = Default
	}
	return fetch(ctx, want)
}

// Installed is Find without fetching; ok is false if there is none.
func Installed(ctx context.Context, version string) (inst Installation, ok bool, err error) {
	want, err := parseMajor(version)
	if err != nil {
		return Installation{}, false, err
	}
	if inst, ok, err = configured(ctx, want); ok || err != nil {
		return inst, ok, err
	}
	inst, ok = newest(ctx, want)
	return inst, ok, nil
}

func parseMajor(version string) (int, error) {
	if version == "" {
		return 0, nil
	}
	major, err := strconv.Atoi(version)
	if err != nil || major != Wanted && (major < Oldest || major > Newest) {
		return 0, &Refusal{
			Thing:   fmt.Sprintf("postgres version %q", version),
			Problem: "unknown",
			Cure:    fmt.Sprintf("give a major version from %d to %d", Oldest, Newest),
		}
	}
	return major, nil
}

// configured looks at BACKSTORY_PG_BIN. It is a preference of the machine, so
// another version than the wanted one is passed over; a broken one is not.
func configured(ctx context.Context, want int) (Installation, bool, error) {
	dir := os.Getenv("BACKSTORY_PG_BIN")
	if dir == "" {
		return Installation{}, false, nil
	}
	inst, err := inspect(ctx, dir)
	if err != nil {
		return Installation{}, false, &Refusal{
			Thing: "BACKSTORY_PG_BIN", Problem: "no Postgres server in " + dir, Err: err,
			Cure: "let it name the directory that holds initdb and postgres, or unset it",
		}
	}
	return inst, want == 0 || inst.Major == want, nil
}

// newest looks through PATH and the usual places.
func newest(ctx context.Context, want int) (Installation, bool) {
	dirs := filepath.SplitList(os.Getenv("PATH"))
	for _, pattern := range installed {
		found, err := filepath.Glob(pattern)
		if err == nil {
			dirs = append(dirs, found...)
		}
	}
	var all []Installation
	for _, dir := range dirs {
		if inst, err := inspect(ctx, dir); err == nil && (want == 0 && inst.Major >= Oldest || inst.Major == want) {
			all = append(all, inst)
		}
	}
	if len(all) == 0 {
		return Installation{}, false
	}
	return slices.MaxFunc(all, func(a, b Installation) int { return a.Major - b.Major }), true
}

// inspect asks the postgres in dir for its version. A symbolic link (Debian has
// them in PATH) is followed, because the server looks for its files beside the
// program.
func inspect(ctx context.Context, dir string) (Installation, error) {
	path, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
	if err != nil {
		return Installation{}, err
	}
	bin := filepath.Dir(path)
	if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
		return Installation{}, err
	}
	out, err := exec.CommandContext(ctx, path, "-V").Output()
	if err != nil {
		return Installation{}, fmt.Errorf("%s -V: %w", path, err)
	}
	m := versionText.FindStringSubmatch(strings.TrimSpace(string(out)))
	if m == nil {
		return Installation{}, fmt.Errorf("%s -V says %q", path, out)
	}
	major, err := strconv.Atoi(m[2])
	if err != nil {
		return Installation{}, fmt.Errorf("%s -V says %q", path, out)
	}
	return Installation{Bin: bin, Version: m[1], Major: major}, nil
}

// fetch returns the build of a major version in the cache.
func fetch(ctx context.Context, major int) (Installation, error) {
	art, err := artifact(major)
	if err != nil {
		return Installation{}, err
	}
	c, err := cache.Open()
	if err != nil {
		return Installation{}, err
	}
	dir, err := c.Once(ctx, "postgres/"+art.Name+"-"+art.Version, func(ctx context.Context, tmp string) error {
		jar, err := c.Artifact(ctx, art)
		if err != nil {
			return err
		}
		return unpack(jar, tmp)
	})
	if err != nil {
		return Installation{}, &Refusal{
			Thing: fmt.Sprintf("postgres %d", major), Problem: "not installed, and it can't be fetched", Err: err,
			Cure: "or install the Postgres server, or set BACKSTORY_PG_BIN to the directory of its programs",
		}
	}
	return inspect(ctx, filepath.Join(dir, "bin"))
}
