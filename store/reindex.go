package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

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
func Reindex(dir string, o Options, out io.Writer) error {
	o = o.withDefaults()
	r := &reindex{dir: dir, o: o, fs: o.FS, out: out, states: map[uint64]segment.Partition{}}
	if _, err := o.FS.Stat(dir); err != nil {
		return fmt.Errorf("reindex store: %w", err)
	}
	lock, err := lockDir(o.FS, dir)
	if err != nil {
		return fmt.Errorf("reindex store %s: %w", dir, err)
	}
	if err := errors.Join(r.run(), lock.Close()); err != nil {
		return fmt.Errorf("reindex store %s: %w", dir, err)
	}
	return nil
}

type reindex struct {
	dir    string
	o      Options
	fs     vfs.FS
	out    io.Writer
	kv     *pebble.DB
	list   []*segment.Reader
	meta   index.Meta
	line   fhir.Instant
	states map[uint64]segment.Partition // by number
	parts  map[segment.Partition]uint64
	rows   int64
}

func (r *reindex) run() error {
	if err := r.choose(); err != nil {
		return err
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
	if err := r.setAside(SegmentsDir(r.fs, r.dir)); err != nil {
		return err
	}
	return r.replace(fresh)
}

// choose finds the segments that count: all that can be read, but for the
// inputs of merges that are whole.
func (r *reindex) choose() error {
	dir := SegmentsDir(r.fs, r.dir)
	readers, err := openSegments(r.fs, dir)
	if err != nil {
		return err
	}
	if len(readers) == 0 {
		return errors.New("it has no readable segment: an empty folder needs no index")
	}
	slices.SortFunc(readers, func(a, b *segment.Reader) int { return int(int64(a.ID()) - int64(b.ID())) })
	r.meta = index.Meta{Store: readers[0].Footer().Store, NextMerge: 1, Newest: fhir.None}
	r.line = fhir.None
	names, err := r.fs.List(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if id, ok := segment.ParseName(n); ok {
			r.meta.NextSegment = max(r.meta.NextSegment, id+1)
		}
	}
	for _, s := range slices.Backward(readers) {
		f := s.Footer()
		// Numbers once given are never given again, also those of what is lost:
		// clients have seen them as versionId.
		r.meta.Epoch = max(r.meta.Epoch, f.Epoch)
		r.meta.Commit = max(r.meta.Commit, f.Commits[1])
		r.meta.NextSeq = max(r.meta.NextSeq, f.Seqs[1]+1)
		r.meta.NextMerge = max(r.meta.NextMerge, f.Merge+1)
		r.line = max(r.line, f.Line)
		if f.Store != r.meta.Store {
			return fmt.Errorf("segments of two stores lie in %s: %s is not of the store that %s belongs to; move one of them away", dir, s.ID().DirectoryName(), readers[0].ID().DirectoryName())
		}
		if r.covered(f) {
			continue
		}
		if err := whole(s); err != nil {
			fmt.Fprintf(r.out, "set aside: segment %s is not whole (%v): what only it held is missing until the source sends it again\n", s.ID().BodyName(), err)
			continue
		}
		r.list = append(r.list, s)
	}
	slices.SortFunc(r.list, func(a, b *segment.Reader) int { return int(int64(a.Footer().Seqs[0]) - int64(b.Footer().Seqs[0])) })
	return nil
}

// covered tells whether a later, whole segment holds all rows of f's that still
// count: sequence numbers of live segments never overlap (invariant S5), so
// this finds the inputs of merges whose outputs were merged again, too.
func (r *reindex) covered(f *segment.Footer) bool {
	return slices.ContainsFunc(r.list, func(s *segment.Reader) bool {
		later := s.Footer()
		return later.Seqs[0] <= f.Seqs[0] && f.Seqs[1] <= later.Seqs[1]
	})
}

// whole proves a segment's body: one that a crash cut short has no index to say so.
func whole(s *segment.Reader) error {
	body, err := s.OpenBody()
	if err != nil {
		return err
	}
	defer body.Close()
	st, err := body.Stat()
	if err != nil {
		return err
	}
	if st.Size() != s.BodySize() {
		return fmt.Errorf("%w: %d bytes of %d", ErrCorrupt, st.Size(), s.BodySize())
	}
	var text []byte
	for b := range s.Blocks() {
		if text, err = s.Lines(text[:0], body, b); err != nil {
			return err
		}
	}
	return nil
}

// setAside moves files that no longer count out of the segments folder; nothing
// is deleted.
func (r *reindex) setAside(dir string) error {
	keep := map[segment.ID]bool{}
	for _, s := range r.list {
		keep[s.ID()] = true
	}
	names, err := r.fs.List(dir)
	if err != nil {
		return err
	}
	aside := r.fs.PathJoin(r.dir, fmt.Sprintf("set-aside-%d", time.Now().UnixMilli()))
	for _, n := range names {
		id, ok := segment.ParseName(n)
		if !ok {
			continue
		}
		if keep[id] {
			continue
		}
		if err := r.fs.MkdirAll(aside, 0o700); err != nil {
			return err
		}
		if err := r.fs.Rename(r.fs.PathJoin(dir, n), r.fs.PathJoin(aside, n)); err != nil {
			return err
		}
		fmt.Fprintf(r.out, "set aside: %s (replaced by a merge, or not whole) now lies in %s\n", n, aside)
	}
	return segment.SyncDir(r.fs, dir)
}

// build writes the new index.
func (r *reindex) build() error {
	if err := r.partitions(); err != nil {
		return err
	}
	for i, s := range r.list {
		if err := r.segment(s); err != nil {
			return err
		}
		fmt.Fprintf(r.out, "segment %d of %d\n", i+1, len(r.list))
	}
	promised := max(r.line, r.meta.Newest, fhir.FromTime(time.Now()))
	r.meta.Epoch++
	b := r.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	w.set(index.MetaKey(), r.meta.Encode())
	w.set(index.PromiseKey(promised), nil)
	if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
		return err
	}
	fmt.Fprintf(r.out, "%d rows in %d segments; epoch %d; everything up to %v counts as promised\n", r.rows, len(r.list), r.meta.Epoch, promised)
	fmt.Fprintln(r.out, "lost with the old index: export jobs and their pins, which partitions had joined, topic ids (a re-created topic is not noticed this once), held topics, decisions about gaps, dead letters that were resolved")
	return nil
}

// partitions takes offsets from the footer of the newest commit that knows them.
func (r *reindex) partitions() error {
	r.parts = map[segment.Partition]uint64{}
	next := map[segment.Partition]segment.Progress{}
	for _, s := range r.list {
		for _, p := range s.Footer().Offsets {
			if have, ok := next[p.Partition]; !ok || p.Next > have.Next {
				next[p.Partition] = p
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
		st := index.PartitionState{Number: uint64(i), Next: next[p].Next, LeaderEpoch: next[p].LeaderEpoch, Seen: fhir.None}
		w.set(index.PartitionKey(p), st.Encode())
	}
	return errors.Join(w.err, b.Commit(pebble.NoSync))
}

// segment adds one segment's rows in the order of their sequence numbers, so
// that each row ends the one before of its resource.
func (r *reindex) segment(s *segment.Reader) error {
	rows, err := allRows(s)
	if err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b segment.Row) int { return int(int64(a.Seq) - int64(b.Seq)) })
	deaths := map[segment.ID][]index.Death{}
	b := r.kv.NewIndexedBatch()
	defer b.Close()
	w := batchWriter{b: b}
	for i := range rows {
		if err := r.row(&w, &rows[i], deaths); err != nil {
			return err
		}
	}
	for id, list := range deaths {
		// No commit has this number, and each segment brings its own.
		w.set(index.DeathsKey(id, uint64(s.ID())<<32), index.EncodeDeaths(list))
	}
	w.set(index.SegmentKey(s.ID()), []byte{index.SegmentLive})
	if err := r.groups(&w, s); err != nil {
		return err
	}
	return errors.Join(w.err, b.Commit(pebble.NoSync))
}

func allRows(s *segment.Reader) ([]segment.Row, error) {
	dir, err := s.OpenDirectory()
	if err != nil {
		return nil, err
	}
	var rows []segment.Row
	for b := range s.Blocks() {
		if rows, err = dir.Rows(rows, b); err != nil {
			return nil, errors.Join(err, dir.Close())
		}
	}
	return rows, dir.Close()
}

func (r *reindex) row(w *batchWriter, row *segment.Row, deaths map[segment.ID][]index.Death) error {
	r.rows++
	r.meta.Newest = max(r.meta.Newest, row.Instant)
	repeat := row.Section == segment.Section{Kind: segment.Internal, Type: segment.Repeats}
	if row.Section.Kind == segment.Internal && row.Section.Type != segment.Unseen && !repeat {
		return nil
	}
	number, ok := r.parts[row.Clock.Origin]
	if !ok {
		return fmt.Errorf("%w: a row comes from %v, of which no footer knows", ErrCorrupt, row.Clock.Origin)
	}
	key := index.RowKey(nil, row.Key)
	v, closer, err := w.b.Get(key)
	switch {
	case err == nil:
		old, err := index.DecodeState(v, func(n uint64) (segment.Partition, bool) { p, ok := r.states[n]; return p, ok })
		if err := errors.Join(err, closer.Close()); err != nil {
			return err
		}
		if repeat {
			old.Life = row.Life
			w.set(key, old.Encode(nil, r.parts[old.Clock.Origin]))
			return nil
		}
		if id, found := r.holder(old.Seq); found {
			deaths[id] = append(deaths[id], index.Death{
				Section: old.Section(row.Key.Type), Instant: old.Instant, Seq: old.Seq, Length: old.Length, At: row.Instant,
			})
		}
	case !errors.Is(err, pebble.ErrNotFound):
		return err
	case repeat:
		return nil // what it repeated was superseded and dropped: the later row carries what it told
	}
	w.set(key, stateOf(row).Encode(nil, number))
	return nil
}

func (r *reindex) holder(seq uint64) (segment.ID, bool) {
	for _, s := range r.list {
		if f := s.Footer(); f.Seqs[0] <= seq && seq <= f.Seqs[1] {
			return s.ID(), true
		}
	}
	return 0, false
}

// groups replays the changes of membership that the segment holds. Periods and
// inactive flags come with the Group's next version.
func (r *reindex) groups(w *batchWriter, s *segment.Reader) error {
	info := s.Section(segment.Section{Kind: segment.Internal, Type: segment.Memberships})
	if info.From == info.To {
		return nil
	}
	body, err := s.OpenBody()
	if err != nil {
		return err
	}
	defer body.Close()
	for b := info.From; b < info.To; b++ {
		rows, err := s.Rows(b)
		if err != nil {
			return err
		}
		text, err := s.Lines(nil, body, b)
		if err != nil {
			return err
		}
		for i, line := range bytes.Split(bytes.TrimSuffix(text, newline), newline) {
			if err := regroupFrom(w, line, rows[i].Key.ID, rows[i].Instant); err != nil {
				return err
			}
		}
	}
	return nil
}

func regroupFrom(w *batchWriter, line []byte, id string, at fhir.Instant) error {
	var change struct{ Joined, Left []string }
	if err := json.Unmarshal(line, &change); err != nil {
		return fmt.Errorf("%w: a change of membership", ErrCorrupt)
	}
	m := membership{}
	v, closer, err := w.b.Get(index.GroupKey(id))
	if err == nil {
		if err := errors.Join(json.Unmarshal(v, &m), closer.Close()); err != nil {
			return err
		}
	} else if !errors.Is(err, pebble.ErrNotFound) {
		return err
	}
	for _, ref := range change.Left {
		delete(m, ref)
	}
	for _, ref := range change.Joined {
		m[ref] = member{Since: at}
	}
	w.set(index.GroupKey(id), m.encode())
	return nil
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
	return segment.SyncDir(r.fs, r.dir)
}
