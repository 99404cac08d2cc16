package store

import (
	"errors"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// row is a row of the segment being sealed and what its line is made from.
type row struct {
	segment.Row
	body    []byte
	inject  fhir.Meta
	hidden  bool // superseded at its own instant: no watermark shows it, so it is not stored
	death   fhir.Instant
	removed bool // by a deletion
	// What the source said beside the body, which is injected where it lacks that: a column
	// or a header knows the version that the source's own API shows.
	saidVersion int64
	saidUpdated fhir.Instant
}

// says keeps what a change says beside its body, if FHIR can say it, too: a column may hold
// any number.
func (r *row) says(ch *Change) {
	if r.saidVersion, r.saidUpdated = ch.Version, ch.LastUpdated; !ch.LastUpdated.Writable() {
		r.saidUpdated = fhir.None
	}
}

// version is what is injected as versionId: what the source said, else the row's number.
func (r *row) version() string {
	if r.saidVersion != NoVersion {
		return strconv.FormatInt(r.saidVersion, 10)
	}
	return strconv.FormatUint(r.Seq, 10)
}

// updated is what is injected as lastUpdated: what the source said, else the change instant.
func (r *row) updated() fhir.Instant {
	if r.saidUpdated != fhir.None {
		return r.saidUpdated
	}
	return r.Instant
}

// seal sorts the rows, compresses them block by block on all cores, and makes
// the segment durable. Without rows there is none.
func (c *commit) seal() (*seg, error) {
	for i := range c.rows {
		r := &c.rows[i]
		if r.death != fhir.None && !r.hidden {
			c.own = append(c.own, index.Death{Section: r.Section, Place: r.Place(), Length: r.Length, At: r.death, Removed: r.removed})
		}
	}
	c.rows = slices.DeleteFunc(c.rows, func(r row) bool { return r.hidden })
	if len(c.rows) == 0 {
		return nil, nil
	}
	seqs := [2]uint64{c.db.meta.NextSeq, c.meta.NextSeq - 1}
	c.sorted = make([]*row, len(c.rows))
	for i := range c.rows {
		c.sorted[i] = &c.rows[i]
	}
	slices.SortFunc(c.sorted, func(a, b *row) int { return a.Compare(&b.Row) })
	c.id = c.meta.NextSegment
	c.meta.NextSegment++
	w, err := segment.Create(c.db.fs, c.db.segmentsDir(), c.id)
	if err != nil {
		return nil, err
	}
	if err := c.write(w); err != nil {
		return nil, errors.Join(err, w.Abandon())
	}
	r, err := w.Seal(segment.Footer{
		Store: c.meta.Store, Epoch: c.meta.Epoch, Commits: [2]uint64{c.meta.Commit, c.meta.Commit},
		Seqs: seqs, Line: c.line, Offsets: c.offsets(),
	})
	if err != nil {
		return nil, err
	}
	for i := range c.rows {
		c.meta.Newest = max(c.meta.Newest, c.rows[i].Instant)
		c.counts.bytes += int64(c.rows[i].Length)
	}
	c.counts.rows = int64(len(c.rows))
	return newSeg(r), nil
}

// write compresses the sorted rows into blocks and appends them in order.
func (c *commit) write(w *segment.Writer) error {
	blocks := c.blocks()
	compressed := make([]segment.Block, len(blocks))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, rows := range blocks {
		g.Go(func() error {
			compressed[i] = compress(rows)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var plain []segment.Row
	for i, rows := range blocks {
		plain = slices.Grow(plain[:0], len(rows))[:len(rows)]
		for j := range rows {
			plain[j] = rows[j].Row
		}
		if err := w.Append(compressed[i], plain); err != nil {
			return err
		}
		compressed[i].Data = nil
	}
	return nil
}

// blocks cuts the sorted rows where a block is full or a section ends.
func (c *commit) blocks() (list [][]*row) {
	from, size := 0, 0
	for i, r := range c.sorted {
		if i > from && (size >= segment.BlockSize || r.Section != c.sorted[from].Section) {
			list = append(list, c.sorted[from:i])
			from, size = i, 0
		}
		size += int(r.Length)
	}
	return append(list, c.sorted[from:])
}

// compress makes one block of rows, injecting what their meta lacks.
func compress(rows []*row) segment.Block {
	k := compressors.Get().(*segment.Compressor)
	defer compressors.Put(k)
	pieces := make([][]byte, 0, 4*len(rows))
	for _, r := range rows {
		before, injected, behind := r.inject.Pieces(nil, r.body, r.version(), r.updated())
		pieces = append(pieces, before, injected, behind, newline)
	}
	return k.Block(pieces...)
}

var newline = []byte{'\n'}

// offsets is how far every partition had been read with this commit.
func (c *commit) offsets() []segment.Progress {
	next := map[Partition]segment.Progress{}
	c.db.mu.Lock()
	for name, p := range c.db.parts {
		next[name] = segment.Progress{Partition: name, Next: p.durable.Next, LeaderEpoch: p.durable.LeaderEpoch}
	}
	c.db.mu.Unlock()
	for i := range c.taken {
		t := &c.taken[i]
		p := next[t.Partition]
		p.Next, p.LeaderEpoch = max(p.Next, t.Next), max(p.LeaderEpoch, t.LeaderEpoch)
		next[t.Partition] = p
	}
	return slices.SortedFunc(maps.Values(next), func(a, b segment.Progress) int { return a.Partition.Compare(b.Partition) })
}

var compressors = sync.Pool{New: func() any { return segment.NewCompressor(segment.FastLevel) }}
