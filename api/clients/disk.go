package clients

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Dir is where a store's directory holds what is about access. A backup has no copy:
// there are secrets in it.
func Dir(fs vfs.FS, store string) string { return fs.PathJoin(store, "access") }

// ReplaceFile replaces a file as a whole: after a crash the old one is there or the new
// one. Only its owner can read either, from their first byte on.
func ReplaceFile(fs vfs.FS, dir, name string, data []byte) error {
	_, err := fs.Stat(dir)
	fresh := errors.Is(err, os.ErrNotExist)
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := fs.PathJoin(dir, name)
	out, err := fs.Create(path+".new", "access")
	if err != nil {
		return err
	}
	if out.Fd() != vfs.InvalidFd { // memory knows no permissions
		err = os.Chmod(path+".new", 0o600)
	}
	if err == nil {
		_, err = out.Write(data)
	}
	if err == nil {
		err = out.Sync()
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, fs.Remove(path+".new"))
	}
	if err := errors.Join(fs.Rename(path+".new", path), syncDir(fs, dir)); err != nil || !fresh {
		return err
	}
	return syncDir(fs, fs.PathDir(dir))
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadFile reads a file that ReplaceFile has written.
func ReadFile(fs vfs.FS, dir, name string) ([]byte, error) {
	path := fs.PathJoin(dir, name)
	in, err := fs.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	data, err := io.ReadAll(in)
	if err := errors.Join(err, in.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}
