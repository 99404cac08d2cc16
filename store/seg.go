package store

import (
	"errors"
	"fmt"
	"slices"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A seg is a segment with what happened to its rows since it was sealed.
// DB.mu guards all but r.
type seg struct {
	r       *segment.Reader
	rows    int64        // of all kinds, dead ones too
	raw     int64        // bytes of their lines
	first   fhir.Instant // least change instant
	last    fhir.Instant // and greatest
	refs    int          // snapshots and pins that hold it
	dropped bool         // merged away: the files go with the last reference
	damaged bool         // it cannot be read: merges pass it by

	buried     int64        // deaths
	leastDeath fhir.Instant // the earliest of them
	dead       []*blockDead // by block, nil for one without deaths
	wanted     int64        // bytes of NDJSON that exports recompressed because of rows that a merge would leave out
}

// blockDead sums the deaths in one block.
type blockDead struct {
	bytes int64
	last  fhir.Instant // the latest of them
	list  []death
}

// death is what of an index.Death a plan needs: there may be millions.
type death struct {
	seq    uint64
	at     fhir.Instant
	length int32
}

func newSeg(r *segment.Reader) *seg {
	s := &seg{r: r, dead: make([]*blockDead, len(r.Blocks())), first: always, last: fhir.None, leastDeath: always}
	for i := range r.Blocks() {
		b := &r.Blocks()[i]
		s.rows += int64(b.Rows)
		s.raw += b.Sum.Size
		s.first, s.last = min(s.first, b.First), max(s.last, b.Last)
	}
	return s
}

// within tells whether no row lies behind a bound, as far as the block table
// tells.
func (s *seg) within(b segment.Bound) bool {
	return s.last < b.Instant || b == segment.Upto(s.last) || s.last == b.Instant && s.r.Footer().Seqs[1] <= b.Seq
}

// droppable is how many bytes of lines a merge would leave out: of rows that may
// be forgotten or become last states, and of blocks that have settled. Called
// with mu held.
func (s *seg) droppable(h horizon, settled segment.Bound) (n int64) {
	blocks := s.r.Blocks()
	if s.first < settled.Instant {
		for i := range blocks {
			if b := &blocks[i]; b.Last < settled.Instant {
				n += b.Sum.Size
			}
		}
	}
	for _, sec := range s.r.Sections() {
		upto := h.deathsIn(sec.Section)
		for i := sec.From; i < sec.To; i++ {
			if d := s.dead[i]; d != nil && blocks[i].Last >= settled.Instant {
				n += d.droppable(upto)
			}
		}
		if !tellsDeletion(sec.Section) && sec.Section != deadLetters {
			continue
		}
		for i := sec.From; i < sec.To; i++ {
			if h.expires(sec.Section, blocks[i].Last) && s.dead[i] == nil {
				n += blocks[i].Sum.Size
			}
		}
	}
	return n
}

func (d *blockDead) droppable(upto fhir.Instant) (n int64) {
	if d.last <= upto {
		return d.bytes
	}
	for _, x := range d.until(upto) {
		n += int64(x.length)
	}
	return n
}

func (s *seg) id() segment.ID { return s.r.ID() }

// window is what of time a settled segment holds; nil for a fresh one.
func (s *seg) window() *segment.Window { return s.r.Footer().Window }

// bury counts deaths of rows of s.
func (s *seg) bury(list []index.Death) {
	s.buried += int64(len(list))
	for _, d := range list {
		b := s.r.Find(d.Section, d.Place)
		k := s.dead[b]
		if k == nil {
			k = &blockDead{}
			s.dead[b] = k
		}
		s.leastDeath = min(s.leastDeath, d.At)
		k.bytes += int64(d.Length)
		k.last = max(k.last, d.At)
		k.list = append(k.list, death{d.Place.Seq, d.At, d.Length})
	}
}

// rowAt reads one row from its segment's directory.
func (db *DB) rowAt(sec segment.Section, p segment.Place) (segment.Row, error) {
	s, err := db.holder(sec, p.Bound)
	if err != nil {
		return segment.Row{}, err
	}
	b := s.r.Find(sec, p)
	if b >= 0 {
		rows, err := s.r.Rows(b)
		if err != nil {
			return segment.Row{}, err
		}
		if i := slices.IndexFunc(rows, func(r segment.Row) bool { return r.Seq == p.Seq }); i >= 0 {
			return rows[i], nil
		}
	}
	return segment.Row{}, noRow(s, p)
}

func noRow(s *seg, p segment.Place) error {
	return fmt.Errorf("%w: segment %s has no row with sequence number %d", ErrReindex, s.r.ID().DirectoryName(), p.Seq)
}

// An Extent is a block with rows that count for an export.
type Extent struct {
	Segment uint64
	Block   int
	Rows    int   // that count
	Bytes   int64 // of their lines, uncompressed
	Whole   bool  // every row counts: the stored block can be sent as it is
	// Picked says of a choice's block which rows count, a bit for each from the
	// lowest of the first byte on; nil if Whole. Who keeps it needs the choice no
	// more.
	Picked []byte
}

// picked packs which rows count.
func picked(counts []bool) []byte {
	bits := make([]byte, (len(counts)+7)/8)
	for i, ok := range counts {
		if ok {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return bits
}

// unpack tells which of n rows count, false if that cannot be of so many.
func (e *Extent) unpack(n int) ([]bool, bool) {
	counts := make([]bool, n)
	for i := range counts {
		counts[i] = i/8 < len(e.Picked) && e.Picked[i/8]>>(i%8)&1 == 1
	}
	return counts, len(e.Picked) == (n+7)/8
}

// A span is a window of change instants, (since, upto], as seen at watermark w.
// In a fresh segment only rows behind after count; the others have moved into
// settled ones.
type span struct {
	since, upto, w fhir.Instant
	after          segment.Bound
}

// passed tells whether all rows of a block have settled, see segment.Passed.
func (v span) passed(blocks []segment.BlockInfo, b, to int) bool {
	return v.after != segment.NoBound && segment.Passed(blocks, b, to, v.after)
}

func (v span) holds(c fhir.Instant) bool { return v.since < c && c <= v.upto }

// of is v for the rows of one segment.
func (v span) of(s *seg) span {
	if s.window() != nil {
		v.after = segment.NoBound
	}
	return v
}

// extents lists the blocks of sec in s with rows that count. Blocks that the
// window cuts through are left to the rows; all others are answered from
// memory. Called with mu held; cut holds the deaths that the rows need.
func (s *seg) extents(dst []Extent, sec segment.SectionInfo, v span, c *choosing) (out []Extent, cut map[int][]death) {
	blocks := s.r.Blocks()
	for b := sec.From; b < sec.To; b++ {
		k := &blocks[b]
		if k.Last <= c.sinceIn(s, b, sec.To, v.since) || k.First > v.upto || v.passed(blocks, b, sec.To) {
			continue
		}
		how := c.look(s, b, sec.To)
		if how == none {
			continue
		}
		e := Extent{Segment: uint64(s.id()), Block: b, Rows: int(k.Rows), Bytes: k.Sum.Size, Whole: true}
		d := s.dead[b]
		switch {
		case how == apart || k.First <= v.since || k.Last > v.upto || k.Lead.Compare(v.after) <= 0:
			if cut == nil {
				cut = map[int][]death{}
			}
			cut[len(dst)] = d.until(v.w)
		case d == nil:
		case d.last <= v.w:
			e.Rows, e.Bytes, e.Whole = e.Rows-len(d.list), e.Bytes-d.bytes, false
		default:
			for _, x := range d.until(v.w) {
				e.Rows, e.Bytes, e.Whole = e.Rows-1, e.Bytes-int64(x.length), false
			}
		}
		if e.Rows > 0 {
			dst = append(dst, e)
		}
	}
	return dst, cut
}

// until lists the deaths at or before w.
func (d *blockDead) until(w fhir.Instant) (list []death) {
	if d == nil {
		return nil
	}
	if d.last <= w {
		return d.list // it only grows
	}
	for _, x := range d.list {
		if x.at <= w {
			list = append(list, x)
		}
	}
	return list
}

// counting tells which rows of a block count: inside the window and not dead.
func counting(rows []segment.Cell, dead []death, v span) []bool {
	gone := make(map[uint64]bool, len(dead))
	for _, d := range dead {
		gone[d.seq] = true
	}
	counts := make([]bool, len(rows))
	for i := range rows {
		counts[i] = v.holds(rows[i].Instant) && rows[i].Bound().Compare(v.after) > 0 && !gone[rows[i].Seq]
	}
	return counts
}

// counted reads the rows of one block and tells which count for s.
func (s *Snapshot) counted(d *segment.Directory, sec segment.Section, b int, dead []death, v span) ([]segment.Cell, []bool, error) {
	cells, behind, err := s.choice.behind(d, b, sec, v.since)
	if err != nil {
		return nil, nil, err
	}
	v.since = s.choice.since(v.since)
	counts := counting(cells, dead, v)
	for i, after := range behind {
		counts[i] = counts[i] && cells[i].Instant > after
	}
	return cells, counts, nil
}

func (s *Snapshot) span(since, upto fhir.Instant) span {
	return span{since, min(upto, s.pin.Watermark), s.pin.Watermark, s.pin.Closed}
}

// Extents lists, in order, the blocks with at least one row of sec that is
// visible at the snapshot's watermark, is of its choice, and has since < c <=
// upto, or of its own after < c <= upto. For the same snapshot and choice the
// answer is always the same.
func (s *Snapshot) Extents(sec segment.Section, since, upto fhir.Instant) ([]Extent, error) {
	if err := s.locate(); err != nil {
		return nil, err
	}
	span := s.span(since, upto)
	var segs []*seg
	blocks, least := 0, s.choice.since(since)
	for _, g := range s.segs {
		if info := g.r.Section(sec); info.From < info.To && g.last > least && g.first <= span.upto {
			segs, blocks = append(segs, g), blocks+info.To-info.From
		}
	}
	if segs == nil {
		return nil, nil
	}
	list := make([]Extent, 0, blocks) // a million rows are 4,000: growing by and by would take as long as the rest
	for _, g := range segs {
		info, v := g.r.Section(sec), span.of(g)
		s.db.mu.Lock()
		from := len(list)
		out, cut := g.extents(list, info, v, s.choice)
		s.db.mu.Unlock()
		list = out
		if len(cut) == 0 {
			continue
		}
		if err := s.recount(g, sec, list, cut, v); err != nil {
			return nil, err
		}
		list = slices.DeleteFunc(list[from:], func(e Extent) bool { return e.Rows == 0 })
		list = out[:from+len(list)]
	}
	return list, nil
}

// Sum is the CRC-32 (IEEE) of the NDJSON of extents, if all of them are Whole:
// then it is known without reading anything.
func (s *Snapshot) Sum(ext []Extent) (crc uint32, known bool) {
	var sum segment.Sum
	segs := finder{segs: s.segs}
	var g *seg // extents of a segment stand together
	for i := 0; i < len(ext); {
		if g == nil || uint64(g.id()) != ext[i].Segment {
			if g = segs.find(segment.ID(ext[i].Segment)); g == nil {
				return 0, false
			}
		}
		j := i
		for ; j < len(ext) && ext[j].Segment == ext[i].Segment && ext[j].Block == ext[i].Block+j-i; j++ {
			if !ext[j].Whole {
				return 0, false
			}
		}
		sum = sum.Then(g.r.Sum(ext[i].Block, ext[i].Block+j-i))
		i = j
	}
	return sum.CRC, true
}

// recount counts the rows of blocks that are not meant as a whole, from the
// directory: without a choice at most two for each section of a segment.
func (s *Snapshot) recount(g *seg, sec segment.Section, list []Extent, cut map[int][]death, v span) error {
	d, err := s.directory(g)
	if err != nil {
		return err
	}
	for i, dead := range cut {
		e := &list[i]
		rows, counts, err := s.counted(d, sec, e.Block, dead, v)
		if err != nil {
			return errors.Join(err, d.Close())
		}
		e.Rows, e.Bytes = 0, 0
		for j, ok := range counts {
			if ok {
				e.Rows++
				e.Bytes += int64(rows[j].Length)
			}
		}
		if e.Whole = e.Rows == len(rows); !e.Whole && s.choice != nil {
			e.Picked = picked(counts)
		}
	}
	return d.Close()
}

// chunksKept is how much of directories stays in memory, bytes: what a few Patients'
// export reads several times. What many read passes through.
const chunksKept = 16 << 20

// directory opens that of a segment, for an export.
func (s *Snapshot) directory(g *seg) (*segment.Directory, error) {
	d, err := g.r.OpenDirectory()
	if err == nil {
		d.Chunks = s.db.chunks
	}
	return d, err
}

// cells reads what decides about the rows of one block.
func (s *seg) cells(b int) ([]segment.Cell, error) {
	d, err := s.r.OpenDirectory()
	if err != nil {
		return nil, err
	}
	cells, err := d.Cells(b)
	return cells, errors.Join(err, d.Close())
}
