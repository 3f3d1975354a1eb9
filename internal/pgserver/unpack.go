package pgserver

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/ulikunitz/xz"
)

// unpack writes the contents of the tar.xz in the jar to dir, which it makes.
func unpack(jar, dir string) (err error) {
	z, err := zip.OpenReader(jar)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", jar, err)
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	for _, f := range z.File {
		if strings.HasSuffix(f.Name, ".txz") {
			return unpackFile(f, dir)
		}
	}
	return fmt.Errorf("unpack %s: it holds no .txz", jar)
}

func unpackFile(f *zip.File, dir string) (err error) {
	r, err := f.Open()
	if err != nil {
		return fmt.Errorf("unpack %s: %w", f.Name, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	plain, err := xz.NewReader(bufio.NewReaderSize(r, 1<<16))
	if err != nil {
		return fmt.Errorf("unpack %s: %w", f.Name, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("unpack %s: %w", f.Name, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", f.Name, err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := untar(plain, root); err != nil {
		return fmt.Errorf("unpack %s: %w", f.Name, err)
	}
	return nil
}

// untar can't write outside of root, whatever names the archive holds.
func untar(r io.Reader, root *os.Root) error {
	files := tar.NewReader(r)
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := entry(h, files, root); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func entry(h *tar.Header, r io.Reader, root *os.Root) error {
	name := path.Clean(h.Name)
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, h.FileInfo().Mode().Perm()|0o444)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	}
	return fmt.Errorf("entry of unknown type %q", h.Typeflag)
}
