package store

import (
	"bytes"
	"cmp"
	"context"
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

// choose finds the segments that count: all that can be read, but for what a
// merge replaced and for the outputs of one that did not end.
func (r *reindex) choose() error {
	dir := SegmentsDir(r.fs, r.dir)
	readers, err := openSegments(r.fs, dir)
	if err != nil {
		return err
	}
	if len(readers) == 0 {
		return errors.New("it has no readable segment: an empty folder needs no index")
	}
	slices.SortFunc(readers, func(a, b *segment.Reader) int { return cmp.Compare(a.ID(), b.ID()) })
	r.meta = index.Meta{Store: readers[0].Footer().Store, NextMerge: 1, Newest: fhir.None, Closed: segment.NoBound, Forgotten: fhir.None, Restored: fhir.None}
	r.line = fhir.None
	if err := r.numbers(dir); err != nil {
		return err
	}
	for _, s := range readers {
		f := s.Footer()
		// Numbers once given are never given again, also those of what is lost:
		// clients have seen them as versionId.
		r.meta.Epoch = max(r.meta.Epoch, f.Epoch)
		r.meta.Commit = max(r.meta.Commit, f.Commits[1])
		r.meta.NextSeq = max(r.meta.NextSeq, f.Seqs[1]+1)
		r.meta.NextMerge = max(r.meta.NextMerge, f.Merge+1)
		if f.Store != r.meta.Store {
			return fmt.Errorf("segments of two stores lie in %s: %s is not of the store that %s belongs to; move one of them away", dir, s.ID().DirectoryName(), readers[0].ID().DirectoryName())
		}
	}
	known := slices.Clone(readers)
	readers = r.ended(readers)
	for _, s := range slices.Backward(readers) { // a merge comes before its inputs
		if covered(s, r.list) {
			continue
		}
		if err := whole(s); err != nil {
			fmt.Fprintf(r.out, "set aside: segment %s is not whole (%v): what only it held is missing until the source sends it again\n", s.ID().BodyName(), err)
			continue
		}
		r.list = append(r.list, s)
	}
	r.lines(known)
	var segs []*seg
	for _, s := range r.list {
		if w := s.Footer().Window; w != nil && w.To.Compare(r.meta.Closed) > 0 {
			r.meta.Closed = w.To
		}
		segs = append(segs, newSeg(s))
	}
	r.view = newView(segs, r.meta.Closed)
	return nil
}

// lines finds the greatest line that a commit had, also one whose rows are
// lost: it was promised. Those from before the promise was reset do not count.
func (r *reindex) lines(known []*segment.Reader) {
	var reset uint64
	for _, s := range r.list {
		reset = max(reset, s.Footer().Reset)
	}
	for _, s := range known {
		if f := s.Footer(); f.Commits[1] > reset || f.Reset == reset {
			r.line = max(r.line, f.Line)
		}
	}
}

// numbers finds the first segment number that no file has.
func (r *reindex) numbers(dir string) error {
	names, err := r.fs.List(dir)
	for _, n := range names {
		if id, ok := segment.ParseName(n); ok {
			r.meta.NextSegment = max(r.meta.NextSegment, id+1)
		}
	}
	return err
}

// ended leaves out the outputs of the one merge that may not have ended, the
// last: if not all of them are whole, its inputs are there and count.
func (r *reindex) ended(readers []*segment.Reader) []*segment.Reader {
	last := func(s *segment.Reader) bool { return s.Footer().Merge == r.meta.NextMerge-1 }
	have := map[segment.ID]bool{}
	wholeParts, parts := 0, 0
	for _, s := range readers {
		have[s.ID()] = true
		if f := s.Footer(); f.Merge != 0 && last(s) {
			if parts = f.Parts; whole(s) == nil {
				wholeParts++
			}
		}
	}
	if wholeParts == parts {
		return readers
	}
	for _, s := range readers {
		if f := s.Footer(); f.Merge != 0 && last(s) && slices.ContainsFunc(f.Inputs, func(id segment.ID) bool { return !have[id] }) {
			fmt.Fprintf(r.out, "lost: %d of the %d segments of merge %d, and what it merged is gone: their rows are missing until the source sends them again\n", parts-wholeParts, parts, f.Merge)
			return readers
		}
	}
	return slices.DeleteFunc(readers, func(s *segment.Reader) bool { return s.Footer().Merge != 0 && last(s) })
}

// covered tells whether later segments hold all rows of s that still count, so
// that it is the input of a merge, perhaps of one whose outputs were merged
// again.
func covered(s *segment.Reader, later []*segment.Reader) bool {
	f := s.Footer()
	for _, l := range later {
		g := l.Footer()
		switch {
		case g.Reset != 0 && slices.Contains(g.Inputs, s.ID()):
			return true
		case f.Window == nil && g.Window == nil: // ranges of live ones never overlap (invariant S5)
			if g.Seqs[0] <= f.Seqs[0] && f.Seqs[1] <= g.Seqs[1] {
				return true
			}
		case f.Window == nil:
			if newSeg(s).within(g.Window.To) {
				return true
			}
		case g.Window == nil:
		case *g.Window == *f.Window: // cleaned, or beside it in one merge
			if slices.ContainsFunc(s.Sections(), func(x segment.SectionInfo) bool { return l.Shares(x.Section) }) {
				return true
			}
		case g.Window.From.Compare(f.Window.From) <= 0 && f.Window.To.Compare(g.Window.To) <= 0: // widened
			return true
		}
	}
	return false
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
	aside, moved := r.fs.PathJoin(r.dir, fmt.Sprintf("set-aside-%d", time.Now().UnixMilli())), 0
	for _, n := range names {
		id, ok := segment.ParseName(n)
		if !ok {
			continue
		}
		if keep[id] {
			continue
		}
		if err := makeDir(r.fs, aside); err != nil {
			return err
		}
		if err := r.fs.Rename(r.fs.PathJoin(dir, n), r.fs.PathJoin(aside, n)); err != nil {
			return err
		}
		moved++
		fmt.Fprintf(r.out, "set aside: %s (replaced by a merge, of one that did not end, or not whole) now lies in %s\n", n, aside)
	}
	if moved > 0 { // the new names first: a crash may leave two, never none
		if err := segment.SyncDir(r.fs, aside); err != nil {
			return err
		}
	}
	return segment.SyncDir(r.fs, dir)
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
	w.set(index.PromiseKey(promised), nil)
	if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
		return err
	}
	fmt.Fprintf(r.out, "%d rows in %d segments; epoch %d; everything up to %v counts as promised\n", r.rows, len(r.list), r.meta.Epoch, promised)
	fmt.Fprintln(r.out, "lost with the old index: export jobs and their pins, which partitions had joined, topic ids (a re-created topic is not noticed this once), held topics, decisions about gaps, dead letters that were resolved")
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
			err = index.Scan(old, index.Backups(), func(k, _ []byte) error { w.set(k, nil); return w.err })
		}
		err = errors.Join(err, closer.Close())
	}
	if err := errors.Join(err, old.Close()); err != nil {
		return r.forgetsBackups()
	}
	return b.Commit(pebble.NoSync)
}

func (r *reindex) forgetsBackups() error {
	_, err := fmt.Fprintln(r.out, "lost with the old index: where backups are; an erasure will not name them")
	return err
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
	for _, c := range changes {
		if err := regroupFrom(&w, c.line, c.id, c.at); err != nil {
			return err
		}
	}
	return errors.Join(w.err, batch.Commit(pebble.NoSync))
}

// regrouping is a row that says how a Group's membership changed.
type regrouping struct {
	seq  uint64
	id   string
	at   fhir.Instant
	line []byte
}

func regroupings(g *seg, b int, closed segment.Bound) (list []regrouping, err error) {
	rows, err := g.r.Rows(b)
	if err != nil {
		return nil, err
	}
	body, err := g.r.OpenBody()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	text, err := g.r.Lines(nil, body, b)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		row := &rows[i]
		if g.window() != nil || row.Bound().Compare(closed) > 0 {
			list = append(list, regrouping{row.Seq, row.Key.ID, row.Instant, bytes.TrimSuffix(text[:row.Length], newline)})
		}
		text = text[row.Length:]
	}
	return list, nil
}

func regroupFrom(w *batchWriter, line []byte, id string, at fhir.Instant) error {
	var change regrouped
	if err := json.Unmarshal(line, &change); err != nil {
		return fmt.Errorf("%w: a change of membership", ErrCorrupt)
	}
	m, err := readMembership(w.b, id)
	if err != nil {
		return err
	}
	m.apply(&change, at)
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
