package store

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
	"tidemark/store/segment"
)

// What lies beside a durable snapshot and can be proved: files of blocks, whether made,
// copied or cut, and lists of keys. What owners keep they prove themselves (Kept).
var provable = []string{".made", ".cut", keysSuffix}

// besideOf lists the provable files of a snapshot. One that is not there, or not any
// more, has none.
func besideOf(fsys vfs.FS, dir string) (paths []string, err error) {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	slices.Sort(names)
	for _, n := range names {
		if slices.ContainsFunc(provable, func(suffix string) bool { return strings.HasSuffix(n, suffix) }) {
			paths = append(paths, fsys.PathJoin(dir, n))
		}
	}
	return paths, err
}

// proveBeside reads one of them whole, and calls pace with the bytes of each part. One
// that has gone with its snapshot meanwhile is whole.
func proveBeside(fsys vfs.FS, path string, pace func(bytes int64) error) error {
	err := proveBlocks(fsys, path, pace)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func proveBlocks(fsys vfs.FS, path string, pace func(bytes int64) error) error {
	if strings.HasSuffix(path, keysSuffix) {
		data, err := disk.Read(fsys, path)
		if err != nil {
			return err
		}
		if _, whole := cutSum(data); !whole {
			return fmt.Errorf("%w: %s: CRC-32", ErrCorrupt, path)
		}
		return pace(int64(len(data)))
	}
	parts, err := readCut(fsys, path, -1)
	if err != nil {
		return err
	}
	file, err := fsys.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	var data, text []byte
	for i, p := range parts {
		data = slices.Grow(data[:0], int(p.stored))[:p.stored]
		if _, err := file.ReadAt(data, p.at); err != nil {
			return fmt.Errorf("read %s at %d: %w", path, p.at, err)
		}
		if text, err = segment.Inflate(text[:0], segment.Block{Data: data, Sum: p.sum}); err != nil {
			return fmt.Errorf("%s, block %d: %w", path, i, err)
		}
		if err := pace(p.stored); err != nil {
			return err
		}
	}
	return nil
}

// cutSum cuts the CRC-32 off a list of keys.
func cutSum(data []byte) (text string, whole bool) {
	end := len(data) - len("00000000\n")
	if end < 0 || fmt.Sprintf("%08x\n", crc32.ChecksumIEEE(data[:end])) != string(data[end:]) {
		return "", false
	}
	return string(data[:end]), true
}

// checkBeside proves what lies beside a snapshot, for store/check. No fault has the
// snapshot's id.
func checkBeside(fsys vfs.FS, dir string) func(id string) []error {
	return func(id string) (faults []error) {
		paths, err := besideOf(fsys, fsys.PathJoin(dir, "jobs", id))
		if err != nil {
			return []error{hide(err, id)}
		}
		for _, path := range paths {
			if err := proveBeside(fsys, path, func(int64) error { return nil }); err != nil {
				faults = append(faults, hide(err, id))
			}
		}
		return faults
	}
}

// scrubBesideLoop reads what lies beside snapshots as scrubLoop reads segments. It goes
// by the order of names, which tell nothing: what comes meanwhile is met as what is there.
func (db *DB) scrubBesideLoop(ctx context.Context) {
	last, begun := "", false
	for ctx.Err() == nil {
		all, bytes := db.beside()
		i, _ := slices.BinarySearchFunc(all, last, func(f besideFile, last string) int { return strings.Compare(f.path, last+"\x00") })
		switch {
		case !begun && len(all) > 0: // somewhere, once: the next passes are whole
			i, begun = rand.IntN(len(all)), true
		case i == len(all):
			last = ""
			if !pause(ctx, time.Minute) {
				return
			}
			continue
		}
		last = all[i].path
		err := proveBeside(db.fs, last, func(n int64) error {
			if !pause(ctx, time.Duration(float64(db.o.Scrub)*float64(n)/float64(max(bytes, n)))) {
				return ctx.Err()
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			db.foundBeside(all[i].of, err)
		}
	}
}

// A besideFile is one beside a snapshot.
type besideFile struct {
	of   *pinned
	path string
}

// beside lists what there is to scrub, by name, and how many bytes that is. What was found
// damaged is not read again.
func (db *DB) beside() (all []besideFile, bytes int64) {
	var pins []*pinned
	db.mu.Lock()
	for _, p := range db.pins {
		if !p.damaged {
			pins = append(pins, p)
		}
	}
	db.mu.Unlock()
	for _, p := range pins {
		paths, _ := besideOf(db.fs, db.privateDir(p.id)) // what cannot be listed cannot be read
		for _, path := range paths {
			if st, err := db.fs.Stat(path); err == nil {
				all, bytes = append(all, besideFile{p, path}), bytes+st.Size()
			}
		}
	}
	slices.SortFunc(all, func(a, b besideFile) int { return strings.Compare(a.path, b.path) })
	return all, bytes
}

// foundBeside notes that a file beside a snapshot is damaged, if that is what err says.
func (db *DB) foundBeside(p *pinned, err error) {
	if !errors.Is(err, ErrCorrupt) {
		return
	}
	db.mu.Lock()
	known := p.damaged
	p.damaged = true
	db.mu.Unlock()
	if known {
		return
	}
	db.o.Logger.Error("a file of an export job or of a published page is damaged: a page is withdrawn and its chain begins anew, a client must start its export anew; look after the disk",
		"error", hide(err, p.id))
}
