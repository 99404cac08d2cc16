package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// Reindex rebuilds the index of the store in dir from its segments alone, and
// says on out what it found and what is lost. No process may have the store
// open. The old index is kept beside the new one.
//
// Everything visible afterwards is promised: re-read changes may come twice,
// none is missed. A new epoch begins.
func Reindex(ctx context.Context, dir string, o Options, out io.Writer) error {
	return rebuild(ctx, dir, o, out, fhir.None)
}

// rebuild is Reindex, and with an instant ResetPromise.
func rebuild(ctx context.Context, dir string, o Options, out io.Writer, reset fhir.Instant) error {
	o = o.withDefaults()
	r := &reindex{dir: dir, o: o, fs: o.FS, out: out, states: map[uint64]segment.Partition{}, reset: reset}
	if _, err := o.FS.Stat(dir); err != nil {
		return fmt.Errorf("reindex store: %w", err)
	}
	lock, err := lockDir(o.FS, dir)
	if err != nil {
		return fmt.Errorf("reindex store %s: %w", dir, err)
	}
	if err := errors.Join(r.run(ctx), lock.Close()); err != nil {
		return fmt.Errorf("rebuild the index of store %s: %w", dir, err)
	}
	return enforceIn(dir, o, out)
}

type reindex struct {
	dir    string
	o      Options
	fs     vfs.FS
	out    io.Writer
	kv     *pebble.DB
	list   []*segment.Reader // those that count
	view   *view             // of them
	meta   index.Meta
	line   fhir.Instant
	states map[uint64]segment.Partition // by number
	parts  map[segment.Partition]uint64
	rows   int64
	reset  fhir.Instant // what is promised from now on, None: everything
}

func (r *reindex) run(ctx context.Context) error {
	if err := r.choose(); err != nil {
		return err
	}
	if r.reset != fhir.None {
		if err := r.lower(ctx); err != nil {
			return err
		}
	}
	fresh := r.fs.PathJoin(r.dir, "index.new")
	if err := r.fs.RemoveAll(fresh); err != nil {
		return err
	}
	if err := r.fs.MkdirAll(fresh, 0o700); err != nil {
		return err
	}
	var err error
	if r.kv, err = index.Open(fresh, index.Options{FS: r.fs, Cache: r.o.Cache, Logger: pebbleLog{r.o.Logger}}); err != nil {
		return err
	}
	if err := errors.Join(r.build(), r.kv.Flush(), r.kv.Close()); err != nil {
		return err
	}
	if err := errors.Join(r.setAside(SegmentsDir(r.fs, r.dir)), toEnforce(r.fs, r.dir)); err != nil {
		return err
	}
	return r.replace(fresh)
}

// build writes the new index.
func (r *reindex) build() error {
	if err := r.inherit(); err != nil {
		return err
	}
	if err := r.partitions(); err != nil {
		return err
	}
	if err := r.resources(); err != nil {
		return err
	}
	if err := r.groups(); err != nil {
		return err
	}
	if err := r.catalogue(); err != nil {
		return err
	}
	promised := max(r.line, r.meta.Newest, fhir.FromTime(time.Now()))
	if r.reset != fhir.None {
		promised = max(r.reset, r.meta.Newest)
	}
	r.meta.Forgotten = promised - fhir.Instant(r.o.Deleted.Milliseconds()) // no segment says what is gone
	r.meta.Restored = promised
	r.meta.Epoch++
	b := r.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	w.set(index.MetaKey(), r.meta.Encode())
	w.set(index.AboutsKey(), nil)
	w.set(index.PromiseKey(promised), nil)
	if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
		return err
	}
	fmt.Fprintf(r.out, "%d rows in %d segments; epoch %d; everything up to %v counts as promised\n", r.rows, len(r.list), r.meta.Epoch, promised)
	fmt.Fprintln(r.out, "lost with the old index: export jobs and their pins, which partitions had joined, topic ids (a re-created topic is not noticed this once), held topics, decisions about gaps, whom exports of Groups found in them, dead letters that were resolved")
	return nil
}

// inherit takes from the old index, if it can still be read, what no segment
// says: numbers that were given to rows that are lost, and where backups are.
func (r *reindex) inherit() error {
	path := IndexDir(r.fs, r.dir)
	if _, err := r.fs.Stat(path); err != nil {
		return r.forgetsBackups()
	}
	old, err := index.Open(path, index.Options{FS: r.fs, Cache: r.o.Cache, ReadOnly: true, Logger: pebbleLog{r.o.Logger}})
	if err != nil {
		return r.forgetsBackups()
	}
	b := r.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	v, closer, err := old.Get(index.MetaKey())
	if err == nil {
		var m index.Meta
		if m, err = index.DecodeMeta(v); err == nil && m.Store == r.meta.Store {
			r.meta.Epoch, r.meta.Commit = max(r.meta.Epoch, m.Epoch), max(r.meta.Commit, m.Commit)
			r.meta.NextSeq, r.meta.NextSegment = max(r.meta.NextSeq, m.NextSeq), max(r.meta.NextSegment, m.NextSegment)
			r.meta.NextMerge = max(r.meta.NextMerge, m.NextMerge)
			err = errors.Join(
				index.Scan(old, index.Backups(), func(k, _ []byte) error { w.set(k, nil); return w.err }),
				index.Scan(old, index.Onces(), func(k, v []byte) error { w.set(k, v); return w.err }),
				r.takeNotes(old),
			)
		}
		err = errors.Join(err, closer.Close())
	}
	if err := errors.Join(err, old.Close()); err != nil {
		notes := index.Notes() // some alone may say something else than all
		return errors.Join(r.kv.DeleteRange(notes.LowerBound, notes.UpperBound, pebble.NoSync), r.forgetsBackups())
	}
	return b.Commit(pebble.NoSync)
}

// takeNotes copies what intake wants to know again, which may be much.
func (r *reindex) takeNotes(old pebble.Reader) error {
	b := r.kv.NewBatch()
	defer func() { _ = b.Close() }()
	err := index.Scan(old, index.Notes(), func(k, v []byte) error {
		if b.Len() > 4<<20 {
			if err := errors.Join(b.Commit(pebble.NoSync), b.Close()); err != nil {
				return err
			}
			b = r.kv.NewBatch()
		}
		return b.Set(k, v, nil)
	})
	return errors.Join(err, b.Commit(pebble.NoSync))
}

func (r *reindex) forgetsBackups() error {
	_, err := fmt.Fprintln(r.out, "lost with the old index: where backups are; an erasure will not name them")
	return err
}

// partitions takes offsets from the footer of the newest commit that knows
// them. What lies behind was written after that commit's promise, so whether
// somebody comes too late for its deletions can still be told.
func (r *reindex) partitions() error {
	r.parts = map[segment.Partition]uint64{}
	next := map[segment.Partition]segment.Progress{}
	commit := map[segment.Partition]uint64{}
	seen := map[segment.Partition]fhir.Instant{}
	for _, s := range r.list {
		f := s.Footer()
		line := min(f.Line, fhir.FromTime(time.Now())) // a clock may have promised too much
		for _, p := range f.Offsets {
			have, ok := next[p.Partition]
			switch {
			case !ok || f.Commits[1] > commit[p.Partition] && p.Next != have.Next: // less than before where somebody decided about a gap
				next[p.Partition], seen[p.Partition], commit[p.Partition] = p, line, f.Commits[1]
			case p.Next == have.Next:
				commit[p.Partition] = max(commit[p.Partition], f.Commits[1])
				seen[p.Partition] = max(seen[p.Partition], line)
			}
		}
	}
	names := make([]segment.Partition, 0, len(next))
	for p := range next {
		names = append(names, p)
	}
	slices.SortFunc(names, segment.Partition.Compare)
	b := r.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	for i, p := range names {
		r.parts[p], r.states[uint64(i)] = uint64(i), p
		st := index.PartitionState{Number: uint64(i), Next: next[p].Next, LeaderEpoch: next[p].LeaderEpoch, Seen: seen[p]}
		w.set(index.PartitionKey(p), st.Encode())
	}
	return errors.Join(w.err, b.Commit(pebble.NoSync))
}

// catalogue lists the segments.
func (r *reindex) catalogue() error {
	b := r.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	for _, s := range r.list {
		w.set(index.SegmentKey(s.ID()), []byte{index.SegmentLive})
	}
	return errors.Join(w.err, b.Commit(pebble.NoSync))
}

// groups replays the changes of membership.
func (r *reindex) groups() error {
	var changes []regrouping
	for _, g := range r.view.all() {
		info := g.r.Section(segment.Section{Kind: segment.Internal, Type: segment.Memberships})
		for b := info.From; b < info.To; b++ {
			list, err := regroupings(g, b, r.view.closed)
			if err != nil {
				return err
			}
			changes = append(changes, list...)
		}
	}
	slices.SortFunc(changes, func(a, b regrouping) int { return cmp.Compare(a.seq, b.seq) })
	batch := r.kv.NewIndexedBatch()
	defer batch.Close()
	w := batchWriter{b: batch}
	for i := range changes {
		if err := changes[i].replay(&w); err != nil {
			return err
		}
	}
	return errors.Join(w.err, batch.Commit(pebble.NoSync))
}

// replace puts the new index in the place of the old one, which is kept.
func (r *reindex) replace(fresh string) error {
	old := IndexDir(r.fs, r.dir)
	kept := r.fs.PathJoin(r.dir, fmt.Sprintf("index.old-%d", time.Now().UnixMilli()))
	if err := r.fs.Rename(old, kept); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := r.fs.Rename(fresh, old); err != nil {
		return err
	}
	if err := r.fs.RemoveAll(r.fs.PathJoin(r.dir, "jobs")); err != nil {
		return err
	}
	fmt.Fprintf(r.out, "the old index lies in %s: remove it once the server runs well\n", kept)
	return disk.SyncDir(r.fs, r.dir)
}
