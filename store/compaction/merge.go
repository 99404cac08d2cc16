package compaction

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
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

// A Merge writes the rows of Inputs that Keep puts into one of Sections into
// segment ID of Dir: one output of a job.
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
	// Keep tells into which section a row goes, or false if it is left out. A live
	// row may become a last state; all other rows stay where they are.
	Keep   func(*segment.Row) (segment.Section, bool)
	Window *segment.Window // set: sorted by patient, as settled segments are
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
			sorted.Inputs, sorted.Keep = runs, func(r *segment.Row) (segment.Section, bool) { return r.Section, true }
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

func (m *Merge) run(ctx context.Context, sorted bool) (Result, error) {
	g := &merging{Merge: m, sorted: sorted, compare: func(a, b *segment.Row) int { return a.Bound().Compare(b.Bound()) }}
	level := segment.FastLevel
	if m.Window != nil {
		level, g.compare = SettledLevel, func(a, b *segment.Row) int { return a.Place().CompareByPatient(b.Place()) }
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
		return Result{}, errors.Join(w.Abandon(), m.FS.Remove(m.FS.PathJoin(m.Dir, m.ID.BodyName())), disk.SyncDir(m.FS, m.Dir))
	}
	return Result{Writer: w, Copied: g.copied, Recompressed: g.made}, nil
}

// SmallFile is the compressed bytes below which types share a settled segment:
// a window has few files, and no large type is written again for a small one.
const SmallFile = 4 << 20

// Files divides the sections of a job's outputs among them, those of inputs and
// those of last states that are new: one output where they are fresh, else as
// Divide does.
func Files(inputs []*segment.Reader, retired []segment.Section, window *segment.Window, small int64) [][]segment.Section {
	sizes := map[segment.Section]int64{}
	for _, sec := range retired {
		sizes[sec] = 0
	}
	for _, r := range inputs {
		for _, s := range r.Sections() {
			sizes[s.Section] += stored(r, s, window)
		}
	}
	if window == nil {
		return [][]segment.Section{slices.SortedFunc(maps.Keys(sizes), segment.Section.Compare)}
	}
	return Divide(sizes, small)
}

// Divide divides the sections of a window among its files by their compressed
// bytes: a type to a file unless below small. Last states lie where their type
// lies, for cleaning one file may not write what another holds.
func Divide(sizes map[segment.Section]int64, small int64) (files [][]segment.Section) {
	whole := map[segment.Section]int64{}
	for sec, n := range sizes {
		whole[sec.Resource()] += n
	}
	sum := int64(0)
	for _, sec := range slices.SortedFunc(maps.Keys(whole), segment.Section.Compare) {
		if files == nil || sum+whole[sec] >= small {
			files, sum = append(files, nil), 0
		}
		f := &files[len(files)-1]
		sum += whole[sec]
		for s := range sizes {
			if s.Resource() == sec {
				*f = append(*f, s)
			}
		}
	}
	for _, f := range files {
		slices.SortFunc(f, segment.Section.Compare)
	}
	return files
}

// stored is how many compressed bytes of a section may lie in a window.
func stored(r *segment.Reader, s segment.SectionInfo, window *segment.Window) (n int64) {
	for b := s.From; b < s.To; b++ {
		if k := &r.Blocks()[b]; window == nil || k.Last >= window.From.Instant && k.First <= window.To.Instant {
			n += int64(k.Stored)
		}
	}
	return n
}

type merging struct {
	*Merge
	w       *segment.Writer
	comp    *segment.Compressor
	compare func(a, b *segment.Row) int
	sorted  bool // the inputs are runs: their rows lie in their sections, and their blocks are not to stay
	ins     []*input
	sec     segment.Section // the section being written

	out  []segment.Row // rows of the block being gathered
	text [][]byte      // and their lines
	size int

	rows         int
	copied, made int64
}

// input is one section of a segment being read.
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

// at is in at the head of a section.
func (in *input) at(sec segment.Section) *input {
	info := in.r.Section(sec)
	return &input{r: in.r, dir: in.dir, body: in.body, block: info.From, end: info.To}
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
	g.sec = sec
	var heads []*input
	for _, in := range g.sources() {
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

// sources are the sections of the inputs that may have rows of the one that is
// being written.
func (g *merging) sources() (list []*input) {
	for _, in := range g.ins {
		list = append(list, in.at(g.sec))
		if g.sec.Kind == segment.Last && !g.sorted {
			list = append(list, in.at(g.sec.Resource()))
		}
	}
	return list
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
		in.whole = !g.sorted && g.all(rows)
		if in.rows = rows; in.whole {
			return true, nil
		}
		if !slices.ContainsFunc(rows, func(r segment.Row) bool { return g.takes(&r) }) {
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

// takes tells whether a row goes into the section being written.
func (g *merging) takes(r *segment.Row) bool {
	sec, ok := g.Keep(r)
	return ok && sec == g.sec
}

func (g *merging) all(rows []segment.Row) bool {
	for i := range rows {
		if !g.takes(&rows[i]) {
			return false
		}
	}
	return true
}

// skip drops rows that do not stay from the head.
func (g *merging) skip(in *input) {
	for len(in.rows) > 0 && !g.takes(&in.rows[0]) {
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
	if g.size >= segment.BlockSize && (len(in.rows) == 0 || g.sorted) || g.size >= 2*segment.BlockSize {
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
	for i := range rows {
		rows[i].Section = g.sec
	}
	if err := g.w.Append(b, rows); err != nil {
		return err
	}
	return g.Pace(ctx, int64(len(b.Data)))
}
