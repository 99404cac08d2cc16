package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
	"tidemark/store/segment"
)

// A copier brings the files of segments, which never change, into a folder: by a
// link where it can, else by a copy.
type copier struct {
	ctx    context.Context
	fs     vfs.FS
	from   string // the folder that has them
	copies bool   // never link

	// last is a folder of the same disk as where they go that may have them, too.
	// Numbers tell nothing: it may be of another store, or of another life of this
	// one. A directory of the same bytes does, for it has the body's checksums.
	last   string
	shared map[segment.ID]bool // whose directories are the same there

	linked, copied int64 // bytes
}

// file brings one file and returns its size. A segment's directory comes before
// its body.
func (c *copier) file(dir, name string) (int64, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	src, dst := c.fs.PathJoin(c.from, name), c.fs.PathJoin(dir, name)
	st, err := c.fs.Stat(src)
	if err != nil {
		return 0, err
	}
	if !c.copies && c.fs.Link(src, dst) == nil {
		c.linked += st.Size()
		return st.Size(), nil
	}
	if c.last != "" {
		if same, err := c.same(name, st.Size()); err != nil {
			return 0, err
		} else if same && c.fs.Link(c.fs.PathJoin(c.last, name), dst) == nil {
			c.linked += st.Size()
			return st.Size(), nil
		}
	}
	c.copied += st.Size()
	return st.Size(), copyDurably(c.fs, src, dst)
}

// same tells whether last has the same file.
func (c *copier) same(name string, size int64) (bool, error) {
	id, ok := segment.ParseName(name)
	st, err := c.fs.Stat(c.fs.PathJoin(c.last, name))
	if err != nil || !ok || st.Size() != size {
		return false, nil //nolint:nilerr // then it is not there
	}
	if name == id.BodyName() {
		return c.shared[id], nil
	}
	ours, err := disk.Read(c.fs, c.fs.PathJoin(c.from, name))
	if err != nil {
		return false, err
	}
	theirs, err := disk.Read(c.fs, c.fs.PathJoin(c.last, name))
	c.shared[id] = err == nil && bytes.Equal(ours, theirs)
	return c.shared[id], nil
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
	return disk.SyncDir(fs, to)
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
	return errors.Join(err, disk.SyncClose(out))
}
