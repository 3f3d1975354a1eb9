package pgserver_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"backstory/internal/pgserver"
)

// fakePostgres makes a directory with programs that only know their version.
func fakePostgres(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"postgres", "initdb"} {
		script := "#!/bin/sh\necho '" + name + " (PostgreSQL) " + version + "'\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFind(t *testing.T) {
	ten, sixteen, nineteen := fakePostgres(t, "10.23"), fakePostgres(t, "16.2 (Debian 16.2-1)"), fakePostgres(t, "19.0")
	tests := []struct {
		name, version, bin string
		path               []string
		want               string // Bin
		err                string
	}{
		{name: "configured", bin: ten, path: []string{sixteen}, want: ten},
		{name: "configured, other version wanted", version: "16", bin: ten, path: []string{sixteen}, want: sixteen},
		{name: "by version", version: "10", path: []string{sixteen, ten}, want: ten},
		{name: "configured, nothing there", bin: t.TempDir(), path: []string{ten}, err: "BACKSTORY_PG_BIN"},
		{name: "unknown version", version: "9.6", err: "from 10 to 18"},
		{name: "unknown version above the wanted one", version: "20", err: "from 10 to 18"},
		{name: "wanted, and installed", version: "19", path: []string{sixteen, nineteen}, want: nineteen},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", strings.Join(tt.path, string(os.PathListSeparator))+":/bin:/usr/bin")
			t.Setenv("BACKSTORY_PG_BIN", tt.bin)
			got, err := pgserver.Find(t.Context(), tt.version)
			if tt.err != "" {
				var r *pgserver.Refusal
				if !errors.As(err, &r) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want a refusal that says %q", err, tt.err)
				}
				return
			}
			if err != nil || got.Bin != tt.want {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

// A version that is wanted and not served says so, without asking the repository.
func TestFindWanted(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("BACKSTORY_PG_BIN", "")
	t.Setenv("BACKSTORY_MAVEN_URL", "http://127.0.0.1:1/m2")
	wanted := strconv.Itoa(pgserver.Wanted)
	if inst, ok, err := pgserver.Installed(t.Context(), wanted); ok || err != nil {
		t.Skipf("%s is installed: %v", inst, err)
	}
	if _, err := pgserver.Find(t.Context(), wanted); !errors.Is(err, pgserver.ErrNotServed) || !strings.Contains(err.Error(), "postgres 19: wanted") {
		t.Errorf("got %v, want that it is not served yet", err)
	}
}

// TestFindOffline fetches from a repository that is not there.
func TestFindOffline(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("BACKSTORY_CACHE", t.TempDir())
	t.Setenv("BACKSTORY_MAVEN_URL", "http://127.0.0.1:1/m2")
	const absent = "12" // of which no distribution in support has a package
	if inst, ok, err := pgserver.Installed(t.Context(), absent); ok || err != nil {
		t.Skipf("%s is installed: %v", inst, err)
	}
	_, err := pgserver.Find(t.Context(), absent)
	var r *pgserver.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("got %v, want a refusal", err)
	}
	for _, want := range []string{"BACKSTORY_MAVEN_URL", "BACKSTORY_PG_BIN", "HTTPS_PROXY"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q doesn't name %s", err, want)
		}
	}
}
