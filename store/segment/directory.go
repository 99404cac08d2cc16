package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"tidemark/store/fhir"
	"tidemark/store/internal/varint"
)

// Version is the format of segments that this release writes. Others are
// refused; FORMAT.md has the history.
const Version = 4

const (
	magic       = "TIDEMARK"
	trailerSize = 8 + 4 + 4 + 4 + 8 // index offset, length, CRC-32C, version, magic
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ID numbers a segment; a number is never used again.
type ID uint64

// BodyName is the name of the body file.
func (id ID) BodyName() string { return fmt.Sprintf("%016x.ndjson.gz", uint64(id)) }

// DirectoryName is the name of the directory file.
func (id ID) DirectoryName() string { return fmt.Sprintf("%016x.dir", uint64(id)) }

// ParseName tells which segment a file of the segments folder belongs to.
func ParseName(name string) (id ID, ok bool) {
	var n uint64
	var ext string
	if _, err := fmt.Sscanf(name, "%016x.%s", &n, &ext); err != nil {
		return 0, false
	}
	id = ID(n)
	return id, name == id.BodyName() || name == id.DirectoryName()
}

// Progress is how far a partition had been read when a commit was sealed.
type Progress struct {
	Partition   Partition
	Next        int64
	LeaderEpoch int32
}

// A Footer makes a segment describe itself: reindex needs nothing else.
type Footer struct {
	Store   [16]byte // the store it belongs to
	ID      ID
	Epoch   uint64
	Commits [2]uint64 // the first and the last commit whose rows it holds
	Seqs    [2]uint64 // no row of another live segment has a sequence number between
	Line    fhir.Instant
	Offsets []Progress // of the newest commit, all partitions

	// Of a merge: output Part of Parts. It counts only when all parts verify;
	// then its Inputs are void.
	Merge       uint64
	Part, Parts int
	Inputs      []ID

	// Reset is not 0 where instants were lowered after a clock had been ahead, and
	// in what was made of such a segment: lines of commits up to this one do not
	// count any more, and all Inputs are void, whatever their instants.
	Reset uint64

	// Window is set in a settled segment: it holds the rows of its sections that
	// lie between, sorted by patient. Nothing is born there any more.
	Window *Window
}

// A Window is a range of the order of time, From exclusive, To inclusive.
type Window struct{ From, To Bound }

// Holds tells whether a row lies in the window.
func (w *Window) Holds(b Bound) bool { return b.Compare(w.From) > 0 && b.Compare(w.To) <= 0 }

// BlockInfo is a block's entry in the table.
type BlockInfo struct {
	Offset int64 // in the body
	Stored int32 // compressed bytes
	Rows   int32
	Sum    Sum
	First  fhir.Instant // least change instant of its rows
	Last   fhir.Instant // and greatest
	Lead   Place        // of its first row; the patients only where they are the order
	Loose  int32        // rows that lie in no Patient's compartment
	Shared int32        // rows that lie in those of several
	// Attached rows refer to a Binary, or an attachment of theirs leads elsewhere
	// (fhir.AttachedTo).
	Attached int32

	chunk    int64 // offset in the directory
	chunkLen int32
	chunkCRC uint32
}

// Passed tells of a block of a fresh segment whether all its rows lie at or before a
// bound, as far as the table tells; to is where its section ends. Rows are sorted by
// time there: they lie before the first of the next block.
func Passed(blocks []BlockInfo, b, to int, bound Bound) bool {
	return blocks[b].Last < bound.Instant || bound == Upto(blocks[b].Last) || b+1 < to && blocks[b+1].Lead.Compare(bound) <= 0
}

// SectionInfo says which blocks hold a section's rows.
type SectionInfo struct {
	Section
	From, To int  // blocks [From, To)
	Attached bool // some of them have such rows; it follows from the table
}

type index struct {
	footer   Footer
	bodySize int64
	origins  []Partition
	sections []SectionInfo
	blocks   []BlockInfo
}

func (x *index) encode() []byte {
	c := &coder{}
	f := &x.footer
	c.B = append(c.B, f.Store[:]...)
	for _, v := range []uint64{uint64(f.ID), f.Epoch, f.Commits[0], f.Commits[1], f.Seqs[0], f.Seqs[1]} {
		c.Uint(v)
	}
	c.Int(int64(f.Line))
	c.Uint(uint64(len(f.Offsets)))
	for _, p := range f.Offsets {
		c.text(p.Partition.Topic)
		c.Int(int64(p.Partition.ID))
		c.Int(p.Next)
		c.Int(int64(p.LeaderEpoch))
	}
	for _, v := range []uint64{f.Merge, uint64(f.Part), uint64(f.Parts), uint64(len(f.Inputs))} {
		c.Uint(v)
	}
	for _, id := range f.Inputs {
		c.Uint(uint64(id))
	}
	c.Uint(f.Reset)
	c.flag(f.Window != nil)
	if f.Window != nil {
		for _, b := range []Bound{f.Window.From, f.Window.To} {
			c.Int(int64(b.Instant))
			c.Uint(b.Seq)
		}
	}
	c.Uint(uint64(x.bodySize))
	c.Uint(uint64(len(x.origins)))
	for _, o := range x.origins {
		c.text(o.Topic)
		c.Int(int64(o.ID))
	}
	c.Uint(uint64(len(x.sections)))
	for _, s := range x.sections {
		c.Uint(uint64(s.Kind))
		c.Uint(uint64(s.Type))
		c.Uint(uint64(s.To - s.From))
	}
	for i := range x.blocks {
		x.blocks[i].encode(c, f.Window != nil)
	}
	return c.B
}

func (b *BlockInfo) encode(c *coder, settled bool) {
	c.Uint(uint64(b.Stored))
	c.Uint(uint64(b.Rows))
	c.Uint(uint64(b.Sum.Size))
	c.B = binary.LittleEndian.AppendUint32(c.B, b.Sum.CRC)
	c.B = binary.LittleEndian.AppendUint32(c.B, b.Sum.Op())
	c.Int(int64(b.First))
	c.Uint(uint64(b.Last - b.First))
	c.Uint(b.Lead.Seq)
	if settled {
		c.B = binary.LittleEndian.AppendUint32(c.B, b.Lead.Patients)
		c.Uint(uint64(b.Lead.Instant - b.First))
	}
	c.Uint(uint64(b.Loose))
	c.Uint(uint64(b.Shared))
	c.Uint(uint64(b.Attached))
	c.Uint(uint64(b.chunkLen))
	c.B = binary.LittleEndian.AppendUint32(c.B, b.chunkCRC)
}

func decodeIndex(b []byte) (*index, error) {
	c := &coder{varint.Coder{B: b}}
	x := &index{}
	f := &x.footer
	copy(f.Store[:], c.Take(16))
	f.ID = ID(c.ReadUint())
	f.Epoch = c.ReadUint()
	f.Commits = [2]uint64{c.ReadUint(), c.ReadUint()}
	f.Seqs = [2]uint64{c.ReadUint(), c.ReadUint()}
	f.Line = fhir.Instant(c.ReadInt())
	for range c.Count() {
		f.Offsets = append(f.Offsets, Progress{
			Partition: Partition{Topic: c.readText(), ID: int32(c.ReadInt())},
			Next:      c.ReadInt(), LeaderEpoch: int32(c.ReadInt()),
		})
	}
	f.Merge = c.ReadUint()
	f.Part, f.Parts = int(c.ReadUint()), int(c.ReadUint())
	for range c.Count() {
		f.Inputs = append(f.Inputs, ID(c.ReadUint()))
	}
	f.Reset = c.ReadUint()
	if c.readFlag() {
		f.Window = &Window{c.readBound(), c.readBound()}
	}
	x.bodySize = int64(c.ReadUint())
	for range c.Count() {
		x.origins = append(x.origins, Partition{Topic: c.readText(), ID: int32(c.ReadInt())})
	}
	blocks := 0
	for range c.Count() {
		s := SectionInfo{Section: Section{Kind: Kind(c.ReadUint()), Type: fhir.Type(c.ReadUint())}, From: blocks}
		blocks += int(c.ReadUint())
		if s.To = blocks; blocks < s.From || blocks > len(b) {
			return nil, fmt.Errorf("%w: section table", ErrCorrupt)
		}
		x.sections = append(x.sections, s)
	}
	x.blocks = make([]BlockInfo, blocks)
	at, chunk := HeaderSize, int64(len(magic))
	for i := range x.blocks {
		x.blocks[i].decode(c, f.Window != nil, &at, &chunk)
	}
	for i := range x.sections {
		s := &x.sections[i]
		for b := s.From; b < s.To && !s.Attached; b++ {
			s.Attached = x.blocks[b].Attached > 0
		}
	}
	if c.Bad || len(c.B) != 0 || at+TrailerSize != x.bodySize {
		return nil, fmt.Errorf("%w: block table", ErrCorrupt)
	}
	return x, nil
}

func (c *coder) readBound() Bound { return Bound{fhir.Instant(c.ReadInt()), c.ReadUint()} }

func (b *BlockInfo) decode(c *coder, settled bool, at, chunk *int64) {
	b.Offset, b.chunk = *at, *chunk
	b.Stored = int32(c.ReadUint())
	b.Rows = int32(c.ReadUint())
	b.Sum.Size = int64(c.ReadUint())
	b.Sum.CRC = binary.LittleEndian.Uint32(c.Take(4))
	b.Sum.op = binary.LittleEndian.Uint32(c.Take(4))
	b.First = fhir.Instant(c.ReadInt())
	b.Last = b.First + fhir.Instant(c.ReadUint())
	b.Lead = Place{Bound: Bound{b.First, c.ReadUint()}}
	if settled {
		b.Lead.Patients = binary.LittleEndian.Uint32(c.Take(4))
		b.Lead.Instant += fhir.Instant(c.ReadUint())
	}
	b.Loose, b.Shared, b.Attached = int32(c.ReadUint()), int32(c.ReadUint()), int32(c.ReadUint())
	b.chunkLen = int32(c.ReadUint())
	b.chunkCRC = binary.LittleEndian.Uint32(c.Take(4))
	if b.Stored < 0 || b.Rows <= 0 || b.Loose < 0 || b.Shared < 0 || b.Attached < 0 || b.chunkLen < 0 || b.Sum.Size < 0 || b.Sum.Size > 1<<31 {
		c.Bad = true
		b.Stored, b.chunkLen = 0, 0
	}
	*at += int64(b.Stored)
	*chunk += int64(b.chunkLen)
}
