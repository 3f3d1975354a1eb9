package cache_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"backstory/internal/cache"
)

func open(t *testing.T) *cache.Cache {
	t.Helper()
	c, err := cache.At(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOnceBuildsOnce(t *testing.T) {
	t.Parallel()
	c := open(t)
	var builds atomic.Int32
	build := func(_ context.Context, tmp string) error {
		builds.Add(1)
		return os.WriteFile(tmp, []byte("made"), 0o644)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := c.Once(t.Context(), "a/b", build)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := os.ReadFile(path); string(got) != "made" {
				t.Errorf("got %q, %v, want made", got, err)
			}
		})
	}
	wg.Wait()
	if got := builds.Load(); got != 1 {
		t.Errorf("built %d times, want 1", got)
	}
}

func TestOnceLeavesNothingOfAFailedBuild(t *testing.T) {
	t.Parallel()
	c := open(t)
	broken := errors.New("broken")
	_, err := c.Once(t.Context(), "x", func(_ context.Context, tmp string) error {
		return errors.Join(os.Mkdir(tmp, 0o755), os.WriteFile(filepath.Join(tmp, "half"), nil, 0o644), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got error %v, want %v", err, broken)
	}
	if _, err := os.Stat(filepath.Join(c.Dir(), "x.tmp")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the half-built entry is still there: %v", err)
	}
	path, err := c.Once(t.Context(), "x", func(_ context.Context, tmp string) error { return os.Mkdir(tmp, 0o755) })
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(path); len(entries) != 0 || err != nil {
		t.Errorf("got %v, %v, want an empty directory", entries, err)
	}
}

func TestOnceWaiterLeavesWithItsContext(t *testing.T) {
	t.Parallel()
	c := open(t)
	building, release := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() { // ends when release is closed
		_, err := c.Once(t.Context(), "slow", func(_ context.Context, tmp string) error {
			close(building)
			<-release
			return os.Mkdir(tmp, 0o755)
		})
		done <- err
	}()
	<-building
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Once(ctx, "slow", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestArtifact serves a repository of its own; the environment keeps it from
// running in parallel.
func TestArtifact(t *testing.T) {
	jar := []byte("the bytes of a jar")
	digest := sha256.Sum256(jar)
	sum := hex.EncodeToString(digest[:])
	const place = "/m2/org/example/thing/1.0/thing-1.0.jar"
	files := map[string][]byte{place: jar, place + ".sha256": []byte(sum + "  thing-1.0.jar\n")}
	var hits atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		body, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if _, err := w.Write(body); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	t.Setenv("BACKSTORY_MAVEN_URL", srv.URL+"/m2/")

	tests := []struct {
		name    string
		version string
		sha256  string
		err     string
	}{
		{name: "pinned", version: "1.0", sha256: sum},
		{name: "published checksum", version: "1.0"},
		{name: "other bytes", version: "1.0", sha256: strings.Repeat("0", 64), err: "SHA-256 is " + sum},
		{name: "absent", version: "2.0", sha256: sum, err: "404"},
		{name: "absent checksum", version: "2.0", err: "404"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t)
			a := cache.Artifact{Group: "org.example", Name: "thing", Version: tt.version, SHA256: tt.sha256}
			path, err := c.Artifact(t.Context(), a)
			if tt.err != "" {
				var de *cache.DownloadError
				if !errors.As(err, &de) || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), "BACKSTORY_MAVEN_URL") {
					t.Fatalf("got %v, want a DownloadError with %q and a cure", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); string(got) != string(jar) {
				t.Errorf("got %q, %v, want the jar", got, err)
			}
			before := hits.Load()
			if _, err := c.Artifact(t.Context(), a); err != nil || hits.Load() != before {
				t.Errorf("a cached artifact was asked for again: %v", err)
			}
		})
	}
}
