package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/segment"
)

// A copier brings files that never change into a folder: by a link where it
// can, else by a copy.
type copier struct {
	ctx    context.Context
	fs     vfs.FS
	from   []string // folders, the first that has the file
	copies bool     // never link

	linked, copied int64 // bytes
}

// file brings one file and returns its size.
func (c *copier) file(dir, name string) (int64, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	for _, from := range c.from {
		src, dst := c.fs.PathJoin(from, name), c.fs.PathJoin(dir, name)
		st, err := c.fs.Stat(src)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if !c.copies && c.fs.Link(src, dst) == nil {
			c.linked += st.Size()
			return st.Size(), nil
		}
		c.copied += st.Size()
		return st.Size(), copyDurably(c.fs, src, dst)
	}
	return 0, fmt.Errorf("%s: %w", name, os.ErrNotExist)
}

// makeDir makes a folder that only its owner reads, with those above it, and makes
// its name durable, where we may: what is synced in it must be found after a crash.
func makeDir(fs vfs.FS, dir string) error {
	above := fs.PathDir(dir)
	if above == "." && fs != vfs.Default {
		above = "" // what a memory file system calls its root
	}
	if _, err := fs.Stat(above); errors.Is(err, os.ErrNotExist) {
		if err := makeDir(fs, above); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := segment.SyncDir(fs, above); !errors.Is(err, os.ErrPermission) {
		return err
	}
	return nil
}

// copyTree copies a folder of files, durably.
func copyTree(ctx context.Context, fs vfs.FS, from, to string) error {
	if err := errors.Join(fs.RemoveAll(to), fs.MkdirAll(to, 0o700)); err != nil {
		return err
	}
	names, err := fs.List(from)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		src := fs.PathJoin(from, n)
		st, err := fs.Stat(src)
		if err != nil {
			return err
		}
		if st.IsDir() {
			err = copyTree(ctx, fs, src, fs.PathJoin(to, n))
		} else {
			err = copyDurably(fs, src, fs.PathJoin(to, n))
		}
		if err != nil {
			return err
		}
	}
	return segment.SyncDir(fs, to)
}

func copyIfThere(fs vfs.FS, from, to string) error {
	if err := copyDurably(fs, from, to); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func copyDurably(fs vfs.FS, from, to string) error {
	in, err := fs.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := fs.Create(to, "backup")
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, segment.SyncClose(out))
}

// writeDurably writes a whole file under another name and then gives it its own.
func writeDurably(fs vfs.FS, dir, name string, data []byte) error {
	path := fs.PathJoin(dir, name)
	out, err := fs.Create(path+".new", "backup")
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	if err := errors.Join(err, segment.SyncClose(out)); err != nil {
		return err
	}
	return errors.Join(fs.Rename(path+".new", path), segment.SyncDir(fs, dir))
}
