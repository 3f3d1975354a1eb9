package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"time"
)

// Central is the repository that is asked when BACKSTORY_MAVEN_URL is not set.
const Central = "https://repo1.maven.org/maven2"

// maxArtifact bounds a download, in bytes; the largest artifact in use has 26 MB.
const maxArtifact = 256 << 20

// Artifact names a jar of a Maven repository.
type Artifact struct {
	Group   string // org.apache.kafka
	Name    string // kafka_2.13
	Version string // 4.1.0
	// SHA256 of the jar in hexadecimal. Empty: the repository's own .sha256 file
	// is believed, which proves the transfer but not the origin.
	SHA256 string
}

// File is the name of the jar.
func (a Artifact) File() string { return a.Name + "-" + a.Version + ".jar" }

// String names the artifact as Maven does.
func (a Artifact) String() string { return a.Group + ":" + a.Name + ":" + a.Version }

func (a Artifact) path() string {
	return path.Join(strings.ReplaceAll(a.Group, ".", "/"), a.Name, a.Version, a.File())
}

// DownloadError says that an artifact could not be had.
type DownloadError struct {
	Artifact Artifact
	URL      string
	Err      error
}

// Error names the artifact, what went wrong and what to do.
func (e *DownloadError) Error() string {
	return fmt.Sprintf("download %s from %s: %v; set BACKSTORY_MAVEN_URL to a Maven repository that can be reached, or HTTPS_PROXY",
		e.Artifact, e.URL, e.Err)
}

// Unwrap returns the cause.
func (e *DownloadError) Unwrap() error { return e.Err }

// Artifact returns the path of the jar in the cache, downloaded if it is not there.
func (c *Cache) Artifact(ctx context.Context, a Artifact) (string, error) {
	return c.Once(ctx, "maven/"+a.path(), func(ctx context.Context, tmp string) error {
		return download(ctx, a, tmp)
	})
}

// download writes the jar to the path dst and verifies it.
func download(ctx context.Context, a Artifact, dst string) error {
	base := os.Getenv("BACKSTORY_MAVEN_URL")
	if base == "" {
		base = Central
	}
	url := strings.TrimSuffix(base, "/") + "/" + a.path()
	client := &http.Client{Transport: transport()}
	defer client.CloseIdleConnections()
	want := strings.ToLower(a.SHA256)
	if want == "" {
		sum, err := published(ctx, client, url+".sha256")
		if err != nil {
			return &DownloadError{Artifact: a, URL: url, Err: err}
		}
		want = sum
	}
	if err := get(ctx, client, url, dst, want); err != nil {
		return &DownloadError{Artifact: a, URL: url, Err: err}
	}
	return nil
}

// transport gives up soon on a network that swallows packets, and leaves a slow
// transfer the time that ctx allows.
func transport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	t.TLSHandshakeTimeout = 10 * time.Second
	t.ResponseHeaderTimeout = 30 * time.Second
	return t
}

// published reads a checksum file: the digest, and perhaps a file name after it.
func published(ctx context.Context, client *http.Client, url string) (string, error) {
	body, err := open(ctx, client, url)
	if err != nil {
		return "", fmt.Errorf("checksum: %w", err)
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, 1024))
	if err != nil {
		return "", fmt.Errorf("checksum: %w", err)
	}
	words := strings.Fields(string(text))
	if len(words) == 0 || len(words[0]) != 2*sha256.Size {
		return "", fmt.Errorf("checksum: %s holds no SHA-256", url)
	}
	return strings.ToLower(words[0]), nil
}

func get(ctx context.Context, client *http.Client, url, dst, want string) error {
	body, err := open(ctx, client, url)
	if err != nil {
		return err
	}
	defer body.Close()
	f, err := os.Create(dst)
	if err != nil {
		return err
	}
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, hash), io.LimitReader(body, maxArtifact+1))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	switch got := hex.EncodeToString(hash.Sum(nil)); {
	case err != nil:
		return err
	case n > maxArtifact:
		return fmt.Errorf("larger than %d bytes", maxArtifact)
	case got != want:
		return fmt.Errorf("SHA-256 is %s, want %s", got, want)
	}
	return nil
}

func open(ctx context.Context, client *http.Client, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("%s answers %s", url, resp.Status), resp.Body.Close())
	}
	return resp.Body, nil
}
