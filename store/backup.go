package store

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A backup is a folder of its own under a root that backups share:
//
//	<root>/tidemark-20260102T030405.678Z/
//	  index/ segments/ erased    as in a store
//	  backup.json                written last: without it the folder is no backup
//
// Segments never change, so a backup links to files that it finds on its disk, in the
// backup before or in the store, and copies what it does not.
const (
	backupPrefix = "tidemark-"
	backupTime   = "20060102T150405.000Z"
	backupFile   = "backup.json"
	backupForm   = 1
)

// A Backup describes a backup.
type Backup struct {
	Path     string       `json:"-"`
	Form     int          `json:"form"`
	Store    string       `json:"store"` // its id
	Epoch    uint64       `json:"epoch"`
	Commit   uint64       `json:"commit"` // the last that it holds
	Promised fhir.Instant `json:"promised"`
	At       time.Time    `json:"at"`
	Segments []BackupFile `json:"segments"`
	Linked   int64        `json:"-"` // bytes that were linked
	Copied   int64        `json:"-"`
}

// A BackupFile is a file of segments/.
type BackupFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// Backup makes a consistent copy of the store under root while it runs: all
// that is committed when it begins. copies says that nothing is to be linked.
func (db *DB) Backup(ctx context.Context, root string, copies bool) (Backup, error) {
	db.erasing.Lock() // an erasure must know all backups that there are
	defer db.erasing.Unlock()
	if err := db.writable(); err != nil {
		return Backup{}, fmt.Errorf("back up into %s: %w", root, err)
	}
	now := time.Now().UTC()
	b := Backup{Form: backupForm, At: now, Path: db.fs.PathJoin(root, backupPrefix+now.Format(backupTime))}
	if err := db.backup(ctx, root, &b, copies); err != nil {
		return b, fmt.Errorf("back up into %s: %w", b.Path, err)
	}
	return b, nil
}

func (db *DB) backup(ctx context.Context, root string, b *Backup, copies bool) error {
	dir := SegmentsDir(db.fs, b.Path)
	if _, err := db.fs.Stat(b.Path); err == nil {
		return os.ErrExist
	}
	if within(db.fs, root, db.dir) {
		return errors.New("it lies within the store's own directory, where an Open clears away what is not the store's: name another one")
	}
	// Known before anything lies there: an erasure names one that failed, too.
	if err := db.whileOpen(func() error { return db.kv.Set(index.BackupKey(b.Path), nil, pebble.Sync) }); err != nil {
		return err
	}
	if err := errors.Join(disk.MakeDir(db.fs, root), db.fs.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	frozen := db.fs.PathJoin(db.dir, "index.backup")
	snap, err := db.freeze(frozen, b)
	if err != nil {
		return errors.Join(err, db.fs.RemoveAll(frozen))
	}
	defer snap.Close()
	defer func() { _ = db.fs.RemoveAll(frozen) }() // after an error; else it is gone already
	c := copier{ctx: ctx, fs: db.fs, from: db.segmentsDir(), copies: copies}
	if last := lastBackup(db.fs, root); last != "" && !copies {
		c.last, c.shared = SegmentsDir(db.fs, last), map[segment.ID]bool{}
	}
	for _, s := range snap.segs {
		for _, name := range []string{s.id().DirectoryName(), s.id().BodyName()} {
			size, err := c.file(dir, name)
			if err != nil {
				return err
			}
			b.Segments = append(b.Segments, BackupFile{name, size})
		}
	}
	b.Linked, b.Copied = c.linked, c.copied
	if err := errors.Join(copyTree(ctx, db.fs, frozen, IndexDir(db.fs, b.Path)), db.fs.RemoveAll(frozen)); err != nil {
		return err
	}
	if err := copyIfThere(db.fs, db.fs.PathJoin(db.dir, erasedFile), db.fs.PathJoin(b.Path, erasedFile)); err != nil {
		return err
	}
	return errors.Join(disk.SyncDir(db.fs, dir), disk.Replace(db.fs, b.Path, backupFile, mustJSON(b)), disk.SyncDir(db.fs, root))
}

// within tells whether a path leads into a folder.
func within(fs vfs.FS, path, dir string) bool {
	if fs == vfs.Default {
		if p, err := filepath.Abs(path); err == nil {
			path = p
		}
		if d, err := filepath.Abs(dir); err == nil {
			dir = d
		}
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// freeze takes the index and the segments that belong to it at one instant:
// between two commits.
func (db *DB) freeze(dir string, b *Backup) (*Snapshot, error) {
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	if db.isClosed() {
		return nil, ErrClosed
	}
	if err := db.fs.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := db.kv.Checkpoint(dir, pebble.WithFlushedWAL()); err != nil {
		return nil, err
	}
	snap := db.snapshotNow()
	db.mu.Lock()
	defer db.mu.Unlock()
	b.Store, b.Epoch, b.Commit, b.Promised = hex.EncodeToString(db.meta.Store[:]), db.meta.Epoch, db.meta.Commit, db.stored
	return snap, nil
}

// Backups lists the whole backups under root, the oldest first.
func Backups(fs vfs.FS, root string) ([]Backup, error) {
	names, err := fs.List(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list backups: %w", err)
	}
	var list []Backup
	for _, n := range names {
		if !strings.HasPrefix(n, backupPrefix) {
			continue
		}
		b, err := readBackup(fs, fs.PathJoin(root, n))
		if errors.Is(err, os.ErrNotExist) {
			continue // one that did not end
		}
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b Backup) int { return a.At.Compare(b.At) })
	return list, nil
}

func readBackup(fs vfs.FS, path string) (Backup, error) {
	text, err := disk.Read(fs, fs.PathJoin(path, backupFile))
	if err != nil {
		return Backup{}, fmt.Errorf("read backup %s: %w", path, err)
	}
	b := Backup{Path: path}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("read backup %s: %w: %s", path, ErrCorrupt, backupFile)
	}
	if b.Form != backupForm {
		return b, fmt.Errorf("read backup %s: form %d, this release reads %d: use the release that wrote it, or a later one", path, b.Form, backupForm)
	}
	return b, nil
}

// lastBackup is the newest whole backup, "" if there is none to build upon.
func lastBackup(fs vfs.FS, root string) string {
	list, err := Backups(fs, root)
	if err != nil || len(list) == 0 {
		return "" // one that cannot be read is no reason not to make a good one
	}
	return list[len(list)-1].Path
}

// Restore makes a store in dir, which must be empty, of a backup. erased, if
// given, is a list of what was erased since: that of the store which is lost, or
// of a later backup. out is told what it does and what is lost.
//
// Everything visible afterwards is promised and a new epoch begins: what is read
// from Kafka again may come twice, nothing is missed.
func Restore(ctx context.Context, path, dir, erased string, o Options, out io.Writer) error {
	o = o.withDefaults()
	b, err := readBackup(o.FS, path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("restore: %s is no whole backup: it has no %s", path, backupFile)
	}
	if err != nil {
		return err
	}
	if err := restore(ctx, &b, dir, erased, o, out); err != nil {
		return fmt.Errorf("restore %s: %w", path, err)
	}
	return nil
}

func restore(ctx context.Context, b *Backup, dir, erased string, o Options, out io.Writer) error {
	names, err := o.FS.List(dir)
	if err == nil && slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(o.Beside, name) }) {
		return fmt.Errorf("%s is not empty: name a new directory, and put it in the place of the old one yourself", dir)
	}
	segments := SegmentsDir(o.FS, dir)
	if err := errors.Join(disk.MakeDir(o.FS, dir), o.FS.MkdirAll(segments, 0o700)); err != nil {
		return err
	}
	c := copier{ctx: ctx, fs: o.FS, from: SegmentsDir(o.FS, b.Path)}
	for _, f := range b.Segments {
		size, err := c.file(segments, f.Name)
		if err != nil {
			return err
		}
		if size != f.Size {
			return fmt.Errorf("%w: %s has %d bytes, %s says %d", ErrCorrupt, f.Name, size, backupFile, f.Size)
		}
	}
	if err := disk.SyncDir(o.FS, segments); err != nil {
		return err
	}
	if err := takeErased(o.FS, dir, o.FS.PathJoin(b.Path, erasedFile), erased); err != nil {
		return err
	}
	// The index comes last, under another name: until then it is no store.
	fresh := o.FS.PathJoin(dir, "index.new")
	if err := copyTree(ctx, o.FS, IndexDir(o.FS, b.Path), fresh); err != nil {
		return err
	}
	promised, err := renew(fresh, b.Path, o)
	if err != nil {
		return err
	}
	if err := errors.Join(toEnforce(o.FS, dir), o.FS.Rename(fresh, IndexDir(o.FS, dir)), disk.SyncDir(o.FS, dir)); err != nil {
		return err
	}
	fmt.Fprintf(out, "restored %d segments as of %s; epoch %d, everything up to %v counts as promised\n",
		len(b.Segments)/2, b.At.Format(time.RFC3339), b.Epoch+1, promised)
	fmt.Fprintln(out, "lost: export jobs and their pins. What came since the backup is read from Kafka again, as far as its topics still hold it")
	return enforceIn(dir, o, out)
}

// takeErased puts all that two lists of what was erased say into dir, the records
// of what was done, too.
func takeErased(fs vfs.FS, dir string, paths ...string) error {
	var key, text []byte
	seen := map[string]bool{}
	for _, p := range paths {
		if p == "" {
			continue
		}
		l, err := readErased(fs, p)
		if err != nil {
			return err
		}
		if l.key == nil {
			continue
		}
		if key != nil && !bytes.Equal(key, l.key) {
			return fmt.Errorf("%s is the list of another store", p)
		}
		key = l.key
		lines, err := disk.Read(fs, p)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(lines) {
			if bytes.HasSuffix(line, newline) && !seen[string(line)] {
				seen[string(line)] = true
				text = append(text, line...)
			}
		}
	}
	if key == nil {
		return nil
	}
	return disk.Replace(fs, dir, erasedFile, text)
}

// numbersApart is how far the numbers of rows and segments jump when a backup
// is restored: those that the lost store gave after it, which clients have seen
// as versionId, must not be given again.
const numbersApart = 1 << 32

// renew makes a backup's index that of a store which begins anew: without jobs,
// in a new epoch, with everything promised that may have been.
func renew(dir, from string, o Options) (fhir.Instant, error) {
	kv, err := index.Open(dir, index.Options{FS: o.FS, Cache: o.Cache, Logger: pebbleLog{o.Logger}})
	if err != nil {
		return fhir.None, err
	}
	promised, err := renewIndex(kv, from)
	return promised, errors.Join(err, kv.Close())
}

func renewIndex(kv *pebble.DB, from string) (fhir.Instant, error) {
	v, closer, err := kv.Get(index.MetaKey())
	if err != nil {
		return fhir.None, err
	}
	m, err := index.DecodeMeta(v)
	if err := errors.Join(err, closer.Close()); err != nil {
		return fhir.None, err
	}
	b := kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	promised := max(m.Newest, fhir.FromTime(time.Now()))
	drop := func(k, _ []byte) error { w.delete(slices.Clone(k)); return nil }
	err = errors.Join(
		index.Scan(kv, index.Pins(), drop), index.Scan(kv, index.Allotted(), drop),
		index.Scan(kv, index.Promises(), func(k, _ []byte) error {
			p, err := index.ParsePromiseKey(k)
			promised = max(promised, p)
			return errors.Join(err, drop(k, nil))
		}),
		index.Scan(kv, index.Segments(), func(k, v []byte) error {
			if v[0] != index.SegmentDropped {
				return nil
			}
			id, err := index.ParseSegmentKey(k)
			return errors.Join(err, drop(k, nil), index.Scan(kv, index.DeathsOf(id), drop))
		}),
	)
	m.Epoch++
	m.Restored = promised
	m.NextSegment += numbersApart
	m.NextSeq += numbersApart
	w.set(index.MetaKey(), m.Encode())
	w.set(index.PromiseKey(promised), nil)
	w.set(index.BackupKey(from), nil) // it may hold what is to be erased later
	return promised, errors.Join(err, w.err, b.Commit(pebble.Sync))
}

// unenforced is a file that says: segments came back from somewhere, and nobody
// has looked yet whether they hold what was erased. Open does.
const unenforced = "unenforced"

// toEnforce leaves that file before a new index makes a store of a folder.
func toEnforce(fs vfs.FS, dir string) error {
	list, err := readErased(fs, fs.PathJoin(dir, erasedFile))
	if err != nil || len(list.list) == 0 {
		return err
	}
	return disk.Replace(fs, dir, unenforced, nil)
}

// enforceDue enforces the list of what was erased if that is due: to the end,
// for until then it is no store.
//
//nolint:contextcheck // so nobody's context may end it
func (db *DB) enforceDue() error {
	path := db.fs.PathJoin(db.dir, unenforced)
	if _, err := db.fs.Stat(path); err != nil {
		return nil //nolint:nilerr // none, mostly
	}
	var err error
	if db.enforced, err = db.EnforceErasures(context.Background()); err != nil {
		return err
	}
	return errors.Join(db.fs.Remove(path), disk.SyncDir(db.fs, db.dir))
}

// enforceIn takes out what was erased since the segments of a store in dir were
// written.
func enforceIn(dir string, o Options, out io.Writer) error {
	if _, err := o.FS.Stat(o.FS.PathJoin(dir, unenforced)); err != nil {
		return nil //nolint:nilerr // nothing was erased
	}
	o.MergeOff = true
	db, err := Open(dir, o)
	if err != nil {
		return err
	}
	if n := db.enforced.Rows; n > 0 {
		fmt.Fprintf(out, "%d rows of what was erased before had come back: they are out again\n", n)
	}
	for _, w := range db.enforced.Elsewhere {
		fmt.Fprintln(out, "this may still hold what was erased, delete it: "+w)
	}
	return db.Close()
}
