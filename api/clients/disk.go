package clients

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
)

// Dir is where a store's directory holds what is about access. A backup has no copy:
// there are secrets in it.
func Dir(fs vfs.FS, store string) string { return fs.PathJoin(store, "access") }

// ReplaceFile replaces a file of that directory as a whole, as disk.Replace does, and
// makes the directory first.
func ReplaceFile(fs vfs.FS, dir, name string, data []byte) error {
	if err := disk.MakeDir(fs, dir); err != nil {
		return err
	}
	return disk.Replace(fs, dir, name, data)
}

// ReadFile reads a file that ReplaceFile has written.
func ReadFile(fs vfs.FS, dir, name string) ([]byte, error) {
	path := fs.PathJoin(dir, name)
	data, err := disk.Read(fs, path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}
