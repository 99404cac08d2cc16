package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"tidemark/store/fhir"
)

// Version is the format of segments that this release writes. Others are
// refused; FORMAT.md has the history.
const Version = 1

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
}

// BlockInfo is a block's entry in the table.
type BlockInfo struct {
	Offset int64 // in the body
	Stored int32 // compressed bytes
	Rows   int32
	Sum    Sum
	First  fhir.Instant // change instant of its first row
	Last   fhir.Instant // and of its last
	Seq    uint64       // of its first row

	chunk    int64 // offset in the directory
	chunkLen int32
	chunkCRC uint32
}

// SectionInfo says which blocks hold a section's rows.
type SectionInfo struct {
	Section
	From, To int // blocks [From, To)
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
	c.b = append(c.b, f.Store[:]...)
	for _, v := range []uint64{uint64(f.ID), f.Epoch, f.Commits[0], f.Commits[1], f.Seqs[0], f.Seqs[1]} {
		c.uint(v)
	}
	c.int(int64(f.Line))
	c.uint(uint64(len(f.Offsets)))
	for _, p := range f.Offsets {
		c.text(p.Partition.Topic)
		c.int(int64(p.Partition.ID))
		c.int(p.Next)
		c.int(int64(p.LeaderEpoch))
	}
	for _, v := range []uint64{f.Merge, uint64(f.Part), uint64(f.Parts), uint64(len(f.Inputs))} {
		c.uint(v)
	}
	for _, id := range f.Inputs {
		c.uint(uint64(id))
	}
	c.uint(uint64(x.bodySize))
	c.uint(uint64(len(x.origins)))
	for _, o := range x.origins {
		c.text(o.Topic)
		c.int(int64(o.ID))
	}
	c.uint(uint64(len(x.sections)))
	for _, s := range x.sections {
		c.uint(uint64(s.Kind))
		c.uint(uint64(s.Type))
		c.uint(uint64(s.To - s.From))
	}
	for i := range x.blocks {
		x.blocks[i].encode(c)
	}
	return c.b
}

func (b *BlockInfo) encode(c *coder) {
	c.uint(uint64(b.Stored))
	c.uint(uint64(b.Rows))
	c.uint(uint64(b.Sum.Size))
	c.b = binary.LittleEndian.AppendUint32(c.b, b.Sum.CRC)
	c.b = binary.LittleEndian.AppendUint32(c.b, b.Sum.Op())
	c.int(int64(b.First))
	c.uint(uint64(b.Last - b.First))
	c.uint(b.Seq)
	c.uint(uint64(b.chunkLen))
	c.b = binary.LittleEndian.AppendUint32(c.b, b.chunkCRC)
}

func decodeIndex(b []byte) (*index, error) {
	c := &coder{b: b}
	x := &index{}
	f := &x.footer
	copy(f.Store[:], c.take(16))
	f.ID = ID(c.readUint())
	f.Epoch = c.readUint()
	f.Commits = [2]uint64{c.readUint(), c.readUint()}
	f.Seqs = [2]uint64{c.readUint(), c.readUint()}
	f.Line = fhir.Instant(c.readInt())
	for range c.count() {
		f.Offsets = append(f.Offsets, Progress{
			Partition: Partition{Topic: c.readText(), ID: int32(c.readInt())},
			Next:      c.readInt(), LeaderEpoch: int32(c.readInt()),
		})
	}
	f.Merge = c.readUint()
	f.Part, f.Parts = int(c.readUint()), int(c.readUint())
	for range c.count() {
		f.Inputs = append(f.Inputs, ID(c.readUint()))
	}
	x.bodySize = int64(c.readUint())
	for range c.count() {
		x.origins = append(x.origins, Partition{Topic: c.readText(), ID: int32(c.readInt())})
	}
	blocks := 0
	for range c.count() {
		s := SectionInfo{Section: Section{Kind: Kind(c.readUint()), Type: fhir.Type(c.readUint())}, From: blocks}
		blocks += int(c.readUint())
		if s.To = blocks; blocks < s.From || blocks > len(b) {
			return nil, fmt.Errorf("%w: section table", ErrCorrupt)
		}
		x.sections = append(x.sections, s)
	}
	x.blocks = make([]BlockInfo, blocks)
	at, chunk := HeaderSize, int64(len(magic))
	for i := range x.blocks {
		x.blocks[i].decode(c, &at, &chunk)
	}
	if c.bad || len(c.b) != 0 || at+TrailerSize != x.bodySize {
		return nil, fmt.Errorf("%w: block table", ErrCorrupt)
	}
	return x, nil
}

func (b *BlockInfo) decode(c *coder, at, chunk *int64) {
	b.Offset, b.chunk = *at, *chunk
	b.Stored = int32(c.readUint())
	b.Rows = int32(c.readUint())
	b.Sum.Size = int64(c.readUint())
	b.Sum.CRC = binary.LittleEndian.Uint32(c.take(4))
	b.Sum.op = binary.LittleEndian.Uint32(c.take(4))
	b.First = fhir.Instant(c.readInt())
	b.Last = b.First + fhir.Instant(c.readUint())
	b.Seq = c.readUint()
	b.chunkLen = int32(c.readUint())
	b.chunkCRC = binary.LittleEndian.Uint32(c.take(4))
	if b.Stored < 0 || b.Rows <= 0 || b.chunkLen < 0 || b.Sum.Size < 0 || b.Sum.Size > 1<<31 {
		c.bad = true
		b.Stored, b.chunkLen = 0, 0
	}
	*at += int64(b.Stored)
	*chunk += int64(b.chunkLen)
}
