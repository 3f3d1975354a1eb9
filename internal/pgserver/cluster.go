package pgserver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"backstory/internal/cache"
	"backstory/internal/child"
)

// makeCluster makes a cluster in data by initdb.
func makeCluster(ctx context.Context, inst Installation, user *child.User, data string) error {
	if err := os.Mkdir(data, 0o700); err != nil {
		return fmt.Errorf("make cluster: %w", err)
	}
	if err := errors.Join(user.Own(data), user.Reaches(data)); err != nil {
		return fmt.Errorf("make cluster: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(inst.Bin, "initdb"), "-D", data,
		"-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--data-checksums", "--no-sync")
	cmd.Dir = data
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	user.Prepare(cmd.SysProcAttr)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make cluster: initdb: %w: %s", err, lastLines(string(out)))
	}
	return nil
}

// copyCluster makes a cluster in data from a template that it caches, in a tenth
// of the time that initdb takes.
func copyCluster(ctx context.Context, inst Installation, user *child.User, data string) error {
	c, err := cache.Open()
	if err != nil {
		return err
	}
	template, err := c.Once(ctx, "postgres/"+templateName(inst), func(ctx context.Context, tmp string) error {
		return makeCluster(ctx, inst, user, tmp)
	})
	if err != nil {
		return err
	}
	if err := os.CopyFS(data, os.DirFS(template)); err != nil {
		return fmt.Errorf("copy cluster: %w", err)
	}
	if err := errors.Join(stamp(data), os.Chmod(data, 0o700), user.Own(data)); err != nil {
		return fmt.Errorf("copy cluster: %w", err)
	}
	return nil
}

// templateName tells builds and users apart: a cluster belongs to one of each.
func templateName(inst Installation) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d", inst.Bin, inst.Version, os.Geteuid()))
	return fmt.Sprintf("cluster-%d-%x", inst.Major, sum[:6])
}

// environment keeps the settings of the user's own servers away: PGDATA,
// PGPORT and their like.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}

// quote escapes a value of postgresql.conf.
var quote = strings.NewReplacer("'", "''", `\`, `\\`)

// writeSettings writes what the cluster needs into a file of its own, which
// postgresql.conf includes. ALTER SYSTEM goes before it.
func writeSettings(data string, settings [][2]string) error {
	const include = "include_if_exists 'backstory.conf'"
	var b strings.Builder
	for _, s := range settings {
		fmt.Fprintf(&b, "%s = '%s'\n", s[0], quote.Replace(s[1]))
	}
	if err := os.WriteFile(filepath.Join(data, "backstory.conf"), []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	path := filepath.Join(data, "postgresql.conf")
	conf, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	if strings.Contains(string(conf), include) {
		return nil
	}
	if err := os.WriteFile(path, fmt.Appendf(conf, "\n%s\n", include), 0o600); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return nil
}

// clusterVersion is the major version of the cluster in dir; empty if there is none.
func clusterVersion(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dataDir(dir), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// lastLines shortens a program's output to what says why it ended.
func lastLines(text string) string {
	const keep = 6
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > keep {
		lines = lines[len(lines)-keep:]
	}
	return strings.Join(lines, " | ")
}
