package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Cache is a directory of entries, shared by all processes of a user.
type Cache struct {
	dir string
}

// Open returns the cache at the place that the package comment names, made if
// it is missing.
func Open() (*Cache, error) {
	dir, err := place()
	if err != nil {
		return nil, err
	}
	return At(dir)
}

// At returns the cache in dir, made if it is missing.
func At(dir string) (*Cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cache directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cache directory: %w; set BACKSTORY_CACHE to a directory that can be written", err)
	}
	return &Cache{dir: dir}, nil
}

func place() (string, error) {
	if dir := os.Getenv("BACKSTORY_CACHE"); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		return "/var/cache/backstory", nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache directory: %w; set BACKSTORY_CACHE", err)
	}
	return filepath.Join(base, "backstory"), nil
}

// Dir is where the cache lies.
func (c *Cache) Dir() string { return c.dir }

// Once returns the path of the entry called name (slashes make folders). If it
// is not there, build makes it: a file or a directory at the path tmp, on the
// same file system. While one process builds, others wait or leave with ctx.
func (c *Cache) Once(ctx context.Context, name string, build func(ctx context.Context, tmp string) error) (string, error) {
	path := filepath.Join(c.dir, filepath.FromSlash(name))
	if exists(path) {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("cache %s: %w", name, err)
	}
	lock, err := lockFile(ctx, path+".lock")
	if err != nil {
		return "", fmt.Errorf("cache %s: %w", name, err)
	}
	defer lock.release()
	if exists(path) {
		return path, nil
	}
	if err := buildAt(ctx, path, build); err != nil {
		return "", fmt.Errorf("cache %s: %w", name, err)
	}
	return path, nil
}

// buildAt must be called with the lock: what a builder that died has left
// behind is removed first.
func buildAt(ctx context.Context, path string, build func(ctx context.Context, tmp string) error) (err error) {
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := build(ctx, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
