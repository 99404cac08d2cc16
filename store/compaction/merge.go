package compaction

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/segment"
)

// smallBlock is the NDJSON below which a block is never copied as it is:
// neighbours are joined and recompressed, else a store of small commits would
// stay a store of small blocks. Bytes.
const smallBlock = segment.BlockSize * 2 / 3

// Result is what a merge made.
type Result struct {
	Reader       *segment.Reader // nil if no row was left
	Copied       int64           // compressed bytes copied as they were
	Recompressed int64           // compressed bytes made anew
}

// Merge writes the rows of inputs for which keep holds into segment id, sorted.
// Large blocks that lie between their neighbours and lose no row are copied
// without being decompressed. It holds one block of each input in memory, and
// the directory of the output.
func Merge(ctx context.Context, fs vfs.FS, dir string, id segment.ID, inputs []*segment.Reader, keep func(seq uint64) bool, f segment.Footer) (Result, error) {
	m := &merge{keep: keep, comp: segment.NewCompressor(segment.FastLevel)}
	defer m.close()
	for _, r := range inputs {
		if err := m.open(r); err != nil {
			return Result{}, err
		}
	}
	w, err := segment.Create(fs, dir, id)
	if err != nil {
		return Result{}, err
	}
	m.w = w
	for _, sec := range sections(inputs) {
		if err := m.section(ctx, sec); err != nil {
			return Result{}, errors.Join(fmt.Errorf("merge into segment %d: %w", id, err), w.Abandon())
		}
	}
	if m.rows == 0 {
		return Result{}, errors.Join(w.Abandon(), fs.Remove(fs.PathJoin(dir, id.BodyName())), segment.SyncDir(fs, dir))
	}
	r, err := w.Seal(f)
	return Result{Reader: r, Copied: m.copied, Recompressed: m.made}, err
}

func sections(inputs []*segment.Reader) (list []segment.Section) {
	for _, r := range inputs {
		for _, s := range r.Sections() {
			list = append(list, s.Section)
		}
	}
	slices.SortFunc(list, segment.Section.Compare)
	return slices.Compact(list)
}

type merge struct {
	w    *segment.Writer
	keep func(uint64) bool
	comp *segment.Compressor
	ins  []*input

	out  []segment.Row // rows of the block being gathered
	text [][]byte      // and their lines
	size int

	rows         int
	copied, made int64
}

// input is one segment being read, at the head of one section.
type input struct {
	r    *segment.Reader
	dir  *segment.Directory
	body vfs.File

	block, end int           // the next block to load, and the section's end
	rows       []segment.Row // of the loaded block, from the head on
	whole      bool          // nothing of the loaded block has been consumed, and all of it stays
	loaded     int           // the loaded block
	text       []byte        // its NDJSON from the head on; nil until needed
}

func (m *merge) open(r *segment.Reader) error {
	in := &input{r: r}
	m.ins = append(m.ins, in)
	var err error
	if in.dir, err = r.OpenDirectory(); err != nil {
		return err
	}
	in.body, err = r.OpenBody()
	return err
}

func (m *merge) close() {
	for _, in := range m.ins {
		if in.dir != nil {
			in.dir.Close()
		}
		if in.body != nil {
			in.body.Close()
		}
	}
}

func (m *merge) section(ctx context.Context, sec segment.Section) error {
	var heads []*input
	for _, in := range m.ins {
		info := in.r.Section(sec)
		in.block, in.end, in.rows = info.From, info.To, nil
		if more, err := m.load(in); err != nil {
			return err
		} else if more {
			heads = append(heads, in)
		}
	}
	for len(heads) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		slices.SortFunc(heads, func(a, b *input) int { return a.rows[0].Compare(&b.rows[0]) })
		more, err := m.step(heads)
		if err != nil {
			return err
		}
		if !more {
			heads = heads[1:]
		}
	}
	return m.flush()
}

// load makes the next block with a row that stays the head.
func (m *merge) load(in *input) (bool, error) {
	for in.block < in.end {
		rows, err := in.dir.Rows(nil, in.block)
		if err != nil {
			return false, err
		}
		in.loaded, in.text = in.block, nil
		in.block++
		in.whole = !slices.ContainsFunc(rows, func(r segment.Row) bool { return !m.keep(r.Seq) })
		in.rows = rows
		if in.whole {
			return true, nil
		}
		if in.text, err = in.r.Lines(nil, in.body, in.loaded); err != nil {
			return false, err
		}
		if m.skip(in); len(in.rows) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// skip drops rows that do not stay from the head.
func (m *merge) skip(in *input) {
	for len(in.rows) > 0 && !m.keep(in.rows[0].Seq) {
		in.text = in.text[in.rows[0].Length:]
		in.rows = in.rows[1:]
	}
}

// step takes from the first of heads: a whole block if it lies before all
// others, else rows as long as they do.
func (m *merge) step(heads []*input) (more bool, err error) {
	in := heads[0]
	before := func(r *segment.Row) bool { return len(heads) == 1 || r.Compare(&heads[1].rows[0]) < 0 }
	large := in.whole && in.r.Blocks()[in.loaded].Sum.Size >= smallBlock
	if large && m.size < smallBlock && m.size > 0 && before(&in.rows[len(in.rows)-1]) {
		// What was gathered would leave as a small block: join it with this one.
		large = false
	}
	if large && before(&in.rows[len(in.rows)-1]) {
		if err := m.flush(); err != nil {
			return false, err
		}
		if err := m.copy(in); err != nil {
			return false, err
		}
		return m.load(in)
	}
	if in.text == nil {
		if in.text, err = in.r.Lines(nil, in.body, in.loaded); err != nil {
			return false, err
		}
	}
	in.whole = false
	for len(in.rows) > 0 && before(&in.rows[0]) {
		if err := m.take(in); err != nil {
			return false, err
		}
		m.skip(in)
	}
	if len(in.rows) > 0 {
		return true, nil
	}
	return m.load(in)
}

func (m *merge) copy(in *input) error {
	b, err := in.r.ReadBlock(in.body, in.loaded)
	if err != nil {
		return err
	}
	m.copied += int64(len(b.Data))
	m.rows += len(in.rows)
	return m.w.Append(b, in.rows)
}

// take moves the head's first row into the block being gathered.
func (m *merge) take(in *input) error {
	r := in.rows[0]
	m.out = append(m.out, r)
	m.text = append(m.text, in.text[:r.Length])
	m.size += int(r.Length)
	in.text, in.rows = in.text[r.Length:], in.rows[1:]
	// A block ends with the block it came from where it can: what would be left
	// over would drag the next one, and so all of them, into recompression.
	if m.size >= segment.BlockSize && len(in.rows) == 0 || m.size >= 2*segment.BlockSize {
		return m.flush()
	}
	return nil
}

// flush compresses and appends the gathered block.
func (m *merge) flush() error {
	if len(m.out) == 0 {
		return nil
	}
	b := m.comp.Block(m.text...)
	m.made += int64(len(b.Data))
	m.rows += len(m.out)
	err := m.w.Append(b, m.out)
	m.out, m.text, m.size = m.out[:0], m.text[:0], 0
	return err
}
