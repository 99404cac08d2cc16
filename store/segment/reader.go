package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A Reader reads one sealed segment. Its tables stay in memory, rows and bodies
// on disk. It is safe for concurrent use.
type Reader struct {
	fs  vfs.FS
	dir string
	index

	summing  sync.Once
	prefixes []uint32 // CRC-32 of the NDJSON before each block, once somebody asked
}

// Open reads the tables of segment id. The body is not touched.
func Open(fs vfs.FS, dir string, id ID) (*Reader, error) {
	r := &Reader{fs: fs, dir: dir}
	path := fs.PathJoin(dir, id.DirectoryName())
	if err := r.load(path); err != nil {
		return nil, fmt.Errorf("open segment directory %s: %w", path, err)
	}
	if r.footer.ID != id {
		return nil, fmt.Errorf("open segment directory %s: %w: it says that it is segment %d", path, ErrCorrupt, r.footer.ID)
	}
	return r, nil
}

func (r *Reader) load(path string) error {
	f, err := r.fs.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	if size < int64(len(magic))+trailerSize {
		return fmt.Errorf("%w: %d bytes are too few", ErrCorrupt, size)
	}
	var head [len(magic)]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return err
	}
	if string(head[:]) != magic {
		return fmt.Errorf("%w: no header", ErrCorrupt)
	}
	var t [trailerSize]byte
	if _, err := f.ReadAt(t[:], size-trailerSize); err != nil {
		return err
	}
	if string(t[20:]) != magic {
		return fmt.Errorf("%w: no trailer", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(t[16:]); v != Version {
		return fmt.Errorf("format version %d: this release reads %d; use the release that wrote it, or a later one", v, Version)
	}
	at, n := int64(binary.LittleEndian.Uint64(t[0:])), int64(binary.LittleEndian.Uint32(t[8:]))
	if at < int64(len(magic)) || at+n != size-trailerSize {
		return fmt.Errorf("%w: trailer", ErrCorrupt)
	}
	x := make([]byte, n)
	if _, err := f.ReadAt(x, at); err != nil {
		return err
	}
	if crc32.Checksum(x, castagnoli) != binary.LittleEndian.Uint32(t[12:]) {
		return fmt.Errorf("%w: CRC-32C of the block table", ErrCorrupt)
	}
	parsed, err := decodeIndex(x)
	if err != nil {
		return err
	}
	r.index = *parsed
	return nil
}

// Footer returns what the segment says of itself.
func (r *Reader) Footer() *Footer { return &r.footer }

// ID returns the segment's number.
func (r *Reader) ID() ID { return r.footer.ID }

// BodySize is the length of the body file, bytes.
func (r *Reader) BodySize() int64 { return r.bodySize }

// Sections lists the sections in order. The caller must not change them.
func (r *Reader) Sections() []SectionInfo { return r.sections }

// Section finds sec; a segment without rows of it has an empty range.
func (r *Reader) Section(sec Section) SectionInfo {
	for _, s := range r.sections {
		if s.Section == sec {
			return s
		}
	}
	return SectionInfo{Section: sec}
}

// Shares tells whether rows of sec may lie in this segment because others of its
// resources do, last states or not.
func (r *Reader) Shares(sec Section) bool {
	return slices.ContainsFunc(r.sections, func(s SectionInfo) bool { return s.Resource() == sec.Resource() })
}

// Blocks is the block table. The caller must not change it.
func (r *Reader) Blocks() []BlockInfo { return r.blocks }

// SectionOf tells to which section block b belongs.
func (r *Reader) SectionOf(b int) Section {
	for _, s := range r.sections {
		if b < s.To {
			return s.Section
		}
	}
	return Section{}
}

// Sum is that of the NDJSON of blocks [from, to). It costs about as much as that
// of one block, however many they are.
func (r *Reader) Sum(from, to int) Sum {
	r.summing.Do(func() {
		var s Sum
		r.prefixes = make([]uint32, 0, len(r.blocks)+1)
		for i := range r.blocks {
			r.prefixes = append(r.prefixes, s.CRC)
			s = s.Then(r.blocks[i].Sum)
		}
		r.prefixes = append(r.prefixes, s.CRC)
	})
	var size int64
	for i := from; i < to; i++ {
		size += r.blocks[i].Sum.Size
	}
	// What of the CRC up to the end comes of the bytes before them is taken out.
	op := operator(size)
	return Sum{Size: size, CRC: r.prefixes[to] ^ mulmod(op, r.prefixes[from]), op: op}
}

// A Directory is an open directory file, for reading the rows of many blocks.
type Directory struct {
	// Chunks keep what is read, for who reads it again; nil: nobody will.
	Chunks *Chunks

	r *Reader
	f vfs.File
}

// OpenDirectory opens the directory file.
func (r *Reader) OpenDirectory() (*Directory, error) {
	f, err := r.fs.Open(r.fs.PathJoin(r.dir, r.ID().DirectoryName()))
	if err != nil {
		return nil, fmt.Errorf("open directory of segment %d: %w", r.ID(), err)
	}
	return &Directory{r: r, f: f}, nil
}

// Close closes the file.
func (d *Directory) Close() error { return d.f.Close() }

// Rows appends the rows of block b to dst.
func (d *Directory) Rows(dst []Row, b int) ([]Row, error) {
	chunk, err := d.chunk(b)
	if err == nil {
		dst, err = decodeChunk(dst, chunk, int(d.r.blocks[b].Rows), d.r.SectionOf(b), d.r.origins)
	}
	if err != nil {
		return dst, fmt.Errorf("read rows of segment %d, block %d: %w", d.r.ID(), b, err)
	}
	return dst, nil
}

// Cells reads of the rows of block b only what decides whether they count.
func (d *Directory) Cells(b int) ([]Cell, error) { return readHead(d, b, decodeCells) }

// Links reads of the rows of block b whether they count and what they belong to.
func (d *Directory) Links(b int) (Links, error) { return readHead(d, b, decodeLinks) }

func readHead[H any](d *Directory, b int, decode func(chunk []byte, n int) (H, error)) (H, error) {
	var head H
	chunk, err := d.chunk(b)
	if err == nil {
		head, err = decode(chunk, int(d.r.blocks[b].Rows))
	}
	if err != nil {
		return head, fmt.Errorf("read rows of segment %d, block %d: %w", d.r.ID(), b, err)
	}
	return head, nil
}

func (d *Directory) chunk(b int) ([]byte, error) {
	k, key := &d.r.blocks[b], chunkKey{d.r.ID(), b}
	if kept := d.Chunks.get(key); kept != nil {
		return kept, nil
	}
	chunk := make([]byte, k.chunkLen)
	if _, err := d.f.ReadAt(chunk, k.chunk); err != nil {
		return nil, err
	}
	if crc32.Checksum(chunk, castagnoli) != k.chunkCRC {
		return nil, fmt.Errorf("%w: CRC-32C", ErrCorrupt)
	}
	d.Chunks.put(key, chunk)
	return chunk, nil
}

// Rows reads the rows of one block.
func (r *Reader) Rows(b int) ([]Row, error) {
	d, err := r.OpenDirectory()
	if err != nil {
		return nil, err
	}
	rows, err := d.Rows(nil, b)
	return rows, errors.Join(err, d.Close())
}

// BodyPath is where the body lies.
func (r *Reader) BodyPath() string { return r.fs.PathJoin(r.dir, r.ID().BodyName()) }

// OpenBody opens the body file.
func (r *Reader) OpenBody() (vfs.File, error) {
	f, err := r.fs.Open(r.BodyPath(), vfs.RandomReadsOption)
	if err != nil {
		return nil, fmt.Errorf("open body of segment %d: %w", r.ID(), err)
	}
	return f, nil
}

// ReadBlock reads block b as it is stored.
func (r *Reader) ReadBlock(body io.ReaderAt, b int) (Block, error) {
	k := &r.blocks[b]
	data := make([]byte, k.Stored)
	if _, err := body.ReadAt(data, k.Offset); err != nil {
		return Block{}, fmt.Errorf("read segment %s, block %d: %w", r.ID().BodyName(), b, err)
	}
	return Block{Data: data, Sum: k.Sum}, nil
}

// Lines reads block b and appends its NDJSON to dst.
func (r *Reader) Lines(dst []byte, body io.ReaderAt, b int) ([]byte, error) {
	block, err := r.ReadBlock(body, b)
	if err != nil {
		return dst, err
	}
	dst, err = Inflate(dst, block)
	if err != nil {
		return dst, fmt.Errorf("read segment %s, block %d: %w", r.ID().BodyName(), b, err)
	}
	return dst, nil
}

// Find returns the block of sec in which the row at p stands, if the segment has
// it; -1 if it cannot.
func (r *Reader) Find(sec Section, p Place) int {
	s := r.Section(sec)
	if r.footer.Window == nil {
		p.Patients = 0
	}
	lo, hi := s.From, s.To
	for lo < hi { // the first block that begins after p
		m := (lo + hi) / 2
		if r.blocks[m].Lead.CompareByPatient(p) > 0 {
			hi = m
		} else {
			lo = m + 1
		}
	}
	if lo == s.From {
		return -1
	}
	return lo - 1
}
