package compaction

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/segment"
)

// SettledLevel is deflate's level in settled segments: they are written a few
// times in years (BENCHMARKS.md, "The patient sort"). Larger blocks there would
// save 4 % more, and double what a look at one patient costs.
const SettledLevel = 6

// smallBlock is the NDJSON below which a block is never copied as it is:
// neighbours are joined and recompressed, else a store of small commits would
// stay one of small blocks. Bytes.
const smallBlock = segment.BlockSize * 2 / 3

// A Merge writes the rows of Inputs that are of Sections and for which Keep
// holds into segment ID of Dir: one output of a job.
//
// Large blocks that lie between their neighbours and lose no row are copied
// without being decompressed. In memory are one block of each input, the
// directory of the output, and where rows must be sorted by patient runBytes of
// them.
type Merge struct {
	FS       vfs.FS
	Dir      string // of the segments
	Runs     string // for what exists only while rows are being sorted
	ID       segment.ID
	Inputs   []*segment.Reader
	Sections []segment.Section
	Keep     func(*segment.Row) bool
	Window   *segment.Window // set: sorted by patient, as settled segments are
	// Change, if set, takes the place of Keep. It may change the row and, in
	// place, its line; the inputs are then in no order.
	Change func(in *segment.Reader, row *segment.Row, line []byte) bool
	// Pace is called with the bytes written since it was called last; it waits
	// where the merge would take more than its share.
	Pace func(ctx context.Context, bytes int64) error
}

// Result is what a merge made.
type Result struct {
	Writer       *segment.Writer // to be sealed; nil if no row was left
	Copied       int64           // compressed bytes copied as they were
	Recompressed int64           // compressed bytes made anew
}

// Run does the merge, all but the sealing: only when all outputs of a job are
// written is it known how many they are. What a failed one leaves of segment ID
// is the caller's to remove.
func (m *Merge) Run(ctx context.Context) (Result, error) {
	if m.Window != nil && (m.Change != nil || slices.ContainsFunc(m.Inputs, func(r *segment.Reader) bool { return r.Footer().Window == nil })) {
		runs, err := m.sort(ctx)
		if err == nil {
			sorted := *m
			sorted.Inputs, sorted.Keep = runs, func(*segment.Row) bool { return true }
			var res Result
			if res, err = sorted.run(ctx, true); err == nil {
				return res, m.removeRuns()
			}
		}
		return Result{}, errors.Join(err, m.removeRuns())
	}
	return m.run(ctx, false)
}

func (m *Merge) removeRuns() error { return m.FS.RemoveAll(m.Runs) }

func (m *Merge) run(ctx context.Context, recompress bool) (Result, error) {
	g := &merging{Merge: m, recompress: recompress, compare: (*segment.Row).Compare}
	level := segment.FastLevel
	if m.Window != nil {
		level, g.compare = SettledLevel, (*segment.Row).CompareByPatient
	}
	g.comp = segment.NewCompressor(level)
	defer g.close()
	for _, r := range m.Inputs {
		if err := g.open(r); err != nil {
			return Result{}, err
		}
	}
	w, err := segment.Create(m.FS, m.Dir, m.ID)
	if err != nil {
		return Result{}, err
	}
	g.w = w
	for _, sec := range m.Sections {
		if err := g.section(ctx, sec); err != nil {
			return Result{}, errors.Join(fmt.Errorf("merge into segment %d: %w", m.ID, err), w.Abandon())
		}
	}
	if g.rows == 0 {
		return Result{}, errors.Join(w.Abandon(), m.FS.Remove(m.FS.PathJoin(m.Dir, m.ID.BodyName())), segment.SyncDir(m.FS, m.Dir))
	}
	return Result{Writer: w, Copied: g.copied, Recompressed: g.made}, nil
}

// Sections lists the sections of inputs in order.
func Sections(inputs []*segment.Reader) (list []segment.Section) {
	for _, r := range inputs {
		for _, s := range r.Sections() {
			list = append(list, s.Section)
		}
	}
	slices.SortFunc(list, segment.Section.Compare)
	return slices.Compact(list)
}

// SmallFile is the compressed bytes below which types share a settled segment:
// a window has few files, and no large type is written again for a small one.
const SmallFile = 4 << 20

// Files divides the sections of inputs among the outputs of a job: one output
// where they are fresh, a type to a file unless below small where they are
// settled.
func Files(inputs []*segment.Reader, window *segment.Window, small int64) [][]segment.Section {
	sections := Sections(inputs)
	if window == nil {
		return [][]segment.Section{sections}
	}
	var files [][]segment.Section
	size := int64(0)
	for _, sec := range sections {
		n := stored(inputs, sec, window)
		if last := len(files) - 1; last >= 0 && size+n < small {
			files[last], size = append(files[last], sec), size+n
			continue
		}
		files, size = append(files, []segment.Section{sec}), n
	}
	return files
}

func stored(inputs []*segment.Reader, sec segment.Section, window *segment.Window) (n int64) {
	for _, r := range inputs {
		info := r.Section(sec)
		for b := info.From; b < info.To; b++ {
			if k := &r.Blocks()[b]; k.Last >= window.From.Instant && k.First <= window.To.Instant {
				n += int64(k.Stored)
			}
		}
	}
	return n
}

type merging struct {
	*Merge
	w          *segment.Writer
	comp       *segment.Compressor
	compare    func(a, b *segment.Row) int
	recompress bool
	ins        []*input

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

func openInput(r *segment.Reader) (*input, error) {
	in := &input{r: r}
	var err error
	if in.dir, err = r.OpenDirectory(); err != nil {
		return nil, err
	}
	if in.body, err = r.OpenBody(); err != nil {
		return nil, errors.Join(err, in.dir.Close())
	}
	return in, nil
}

func (in *input) close() { _, _ = in.dir.Close(), in.body.Close() }

// lines reads the loaded block's NDJSON.
func (in *input) lines() (err error) {
	if in.text == nil {
		in.text, err = in.r.Lines(nil, in.body, in.loaded)
	}
	return err
}

func (g *merging) open(r *segment.Reader) error {
	in, err := openInput(r)
	if err == nil {
		g.ins = append(g.ins, in)
	}
	return err
}

func (g *merging) close() {
	for _, in := range g.ins {
		in.close()
	}
}

func (g *merging) section(ctx context.Context, sec segment.Section) error {
	var heads []*input
	for _, in := range g.ins {
		info := in.r.Section(sec)
		in.block, in.end, in.rows = info.From, info.To, nil
		if more, err := g.load(in); err != nil {
			return err
		} else if more {
			heads = append(heads, in)
		}
	}
	for len(heads) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		slices.SortFunc(heads, func(a, b *input) int { return g.compare(&a.rows[0], &b.rows[0]) })
		more, err := g.step(ctx, heads)
		if err != nil {
			return err
		}
		if !more {
			heads = heads[1:]
		}
	}
	return g.flush(ctx)
}

// load makes the next block with a row that stays the head.
func (g *merging) load(in *input) (bool, error) {
	for in.block < in.end {
		rows, err := in.dir.Rows(nil, in.block)
		if err != nil {
			return false, err
		}
		in.loaded, in.text = in.block, nil
		in.block++
		in.whole = !g.recompress && g.all(rows)
		if in.rows = rows; in.whole {
			return true, nil
		}
		if !slices.ContainsFunc(rows, func(r segment.Row) bool { return g.Keep(&r) }) {
			continue
		}
		if err := in.lines(); err != nil {
			return false, err
		}
		g.skip(in)
		return true, nil
	}
	in.rows = nil
	return false, nil
}

func (g *merging) all(rows []segment.Row) bool {
	for i := range rows {
		if !g.Keep(&rows[i]) {
			return false
		}
	}
	return true
}

// skip drops rows that do not stay from the head.
func (g *merging) skip(in *input) {
	for len(in.rows) > 0 && !g.Keep(&in.rows[0]) {
		in.text = in.text[in.rows[0].Length:]
		in.rows = in.rows[1:]
	}
}

// step takes from the first of heads: a whole block if it lies before all
// others, else rows as long as they do.
func (g *merging) step(ctx context.Context, heads []*input) (more bool, err error) {
	in := heads[0]
	before := func(r *segment.Row) bool { return len(heads) == 1 || g.compare(r, &heads[1].rows[0]) < 0 }
	large := in.whole && in.r.Blocks()[in.loaded].Sum.Size >= smallBlock
	if large && g.size < smallBlock && g.size > 0 && before(&in.rows[len(in.rows)-1]) {
		// What was gathered would leave as a small block: join it with this one.
		large = false
	}
	if large && before(&in.rows[len(in.rows)-1]) {
		if err := g.flush(ctx); err != nil {
			return false, err
		}
		if err := g.copy(ctx, in); err != nil {
			return false, err
		}
		return g.load(in)
	}
	if err := in.lines(); err != nil {
		return false, err
	}
	in.whole = false
	for len(in.rows) > 0 && before(&in.rows[0]) {
		if err := g.take(ctx, in); err != nil {
			return false, err
		}
		g.skip(in)
	}
	if len(in.rows) > 0 {
		return true, nil
	}
	return g.load(in)
}

func (g *merging) copy(ctx context.Context, in *input) error {
	b, err := in.r.ReadBlock(in.body, in.loaded)
	if err != nil {
		return err
	}
	g.copied += int64(len(b.Data))
	return g.append(ctx, b, in.rows)
}

// take moves the head's first row into the block being gathered.
func (g *merging) take(ctx context.Context, in *input) error {
	r := in.rows[0]
	g.out = append(g.out, r)
	g.text = append(g.text, in.text[:r.Length])
	g.size += int(r.Length)
	in.text, in.rows = in.text[r.Length:], in.rows[1:]
	// A block ends with the block it came from where it can: what would be left
	// over would drag the next one, and so all of them, into recompression.
	if g.size >= segment.BlockSize && (len(in.rows) == 0 || g.recompress) || g.size >= 2*segment.BlockSize {
		return g.flush(ctx)
	}
	return nil
}

// flush compresses and appends the gathered block.
func (g *merging) flush(ctx context.Context) error {
	if len(g.out) == 0 {
		return nil
	}
	b := g.comp.Block(g.text...)
	g.made += int64(len(b.Data))
	err := g.append(ctx, b, g.out)
	g.out, g.text, g.size = g.out[:0], g.text[:0], 0
	return err
}

func (g *merging) append(ctx context.Context, b segment.Block, rows []segment.Row) error {
	g.rows += len(rows)
	if err := g.w.Append(b, rows); err != nil {
		return err
	}
	return g.Pace(ctx, int64(len(b.Data)))
}
