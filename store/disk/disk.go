// Package disk writes what must be there after a crash. It knows in which order bytes
// and names are synced and who may read a file, and nothing of what is in one.
//
// Libraries that replace files (renameio, natefinch/atomic) speak to the operating
// system only, so no test could crash them, and neither syncs the directory.
package disk

import (
	"errors"
	"io"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// draft ends the name of a file that is being written.
const draft = ".new"

// Replace writes a file as a whole: after a crash the one before is there or this one,
// and this one for good once Replace has returned. Only its owner can read it, from its
// first byte on. The file system may scribble on data. After an error either may be there.
//
// Nobody else writes the same file meanwhile. What a crash leaves half written goes with
// the next Replace, or with Tidy.
func Replace(fs vfs.FS, dir, name string, data []byte) error {
	return ReplaceBy(fs, dir, name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// ReplaceBy is Replace of what write writes. If that fails, the file stays what it was.
func ReplaceBy(fs vfs.FS, dir, name string, write func(io.Writer) error) error {
	path := fs.PathJoin(dir, name)
	file, err := fs.Create(path+draft, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if file.Fd() != vfs.InvalidFd { // memory knows no permissions
		err = os.Chmod(path+draft, 0o600)
	}
	if err == nil {
		err = write(file)
	}
	if err != nil {
		return errors.Join(err, file.Close(), fs.Remove(path+draft))
	}
	// The bytes come before the name: else a crash could leave the name without them.
	if err := SyncClose(file); err != nil {
		return errors.Join(err, fs.Remove(path+draft))
	}
	if err := fs.Rename(path+draft, path); err != nil {
		return errors.Join(err, fs.Remove(path+draft))
	}
	return SyncDir(fs, dir)
}

// Read reads a whole file.
func Read(fs vfs.FS, path string) ([]byte, error) {
	file, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(file)
	return data, errors.Join(err, file.Close())
}

// Tidy removes from a directory, if there is one, the files that were being written
// when a process died. Nobody writes there meanwhile.
func Tidy(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, name := range names {
		if strings.HasSuffix(name, draft) {
			err = errors.Join(err, removeFile(fs, fs.PathJoin(dir, name)))
		}
	}
	return err
}

// removeFile leaves directories to who made them.
func removeFile(fs vfs.FS, path string) error {
	st, err := fs.Stat(path)
	if err != nil || st.IsDir() {
		return err
	}
	return fs.Remove(path)
}

// MakeDir makes a directory that only its owner reads, with those above it, and makes
// its name durable, where we may: what is synced in it must be found after a crash.
func MakeDir(fs vfs.FS, dir string) error {
	above := fs.PathDir(dir)
	if _, err := fs.Stat(above); errors.Is(err, os.ErrNotExist) {
		if err := MakeDir(fs, above); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := SyncDir(fs, above); !errors.Is(err, os.ErrPermission) {
		return err
	}
	return nil
}

// SyncClose makes a file's bytes durable and closes it.
func SyncClose(file vfs.File) error { return errors.Join(file.Sync(), file.Close()) }

// SyncDir makes the names in a directory durable.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return SyncClose(d)
}
