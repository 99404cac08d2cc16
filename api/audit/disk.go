package audit

import (
	"errors"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Disk is the file system of trails that are not in memory. Nobody else may read what it
// creates, whatever the umask says.
var Disk vfs.FS = private{vfs.Default}

type private struct{ vfs.FS }

// Create makes an empty file, in place of one that is there.
func (p private) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return p.OpenReadWrite(name, category)
}

// Lock makes the file first, and never opens one that is there: to close it would give
// up the lock that this process may have.
func (p private) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	switch {
	case err == nil:
		err = f.Close()
	case errors.Is(err, os.ErrExist):
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return p.FS.Lock(name)
}
