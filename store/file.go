package store

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sort"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/klauspost/compress/flate"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// A File is an output file: blocks of segments, and of a private file where a
// block held rows that must not be seen, spliced into one gzip member. Its
// bytes are the same at every call for the same snapshot, name and extents.
type File struct {
	db     *DB
	of     *pinned
	blocks []part
	gzip   []int64 // offset of each block in the gzip member
	plain  []int64 // and in the NDJSON
	sum    segment.Sum
	open   map[string]stored
}

// stored is an open file with blocks; on the disk an *os.File, which sendfile needs.
type stored interface {
	io.ReaderAt
	io.Closer
}

// maxOpen bounds the files that one output file holds open: it reads segment
// after segment, each in turn with the file of what was cut.
const maxOpen = 4

// part is one block and where it lies.
type part struct {
	path   string
	at     int64
	stored int64
	sum    segment.Sum
}

// smallRun is the length below which a run of blocks is read and written
// rather than sent by sendfile, whose system calls then cost more. Bytes.
const smallRun = 16 << 10

// largeBlock is the NDJSON beyond which a block is not held in memory to be
// served uncompressed: it holds a resource of this size or more. Bytes.
const largeBlock = 4 * segment.BlockSize

// File prepares an output file made of the rows of ext that count. Blocks that
// are not Whole are recompressed without their hidden rows into a private file
// of the snapshot, once: it is durable before File returns.
func (s *Snapshot) File(ctx context.Context, name string, sec segment.Section, since, upto fhir.Instant, ext []Extent) (*File, error) {
	v := s.span(since, upto)
	f := &File{db: s.db, of: s.of, open: map[string]stored{}}
	var cut []int
	segs := finder{segs: s.segs}
	var g *seg // extents of a segment stand together
	var path string
	for i, e := range ext {
		if g == nil || uint64(g.id()) != e.Segment {
			if g = segs.find(segment.ID(e.Segment)); g == nil {
				return nil, fmt.Errorf("output file of a snapshot: segment %d is not among its segments", e.Segment)
			}
			path = g.r.BodyPath()
		}
		k := &g.r.Blocks()[e.Block]
		f.blocks = append(f.blocks, part{path, k.Offset, int64(k.Stored), k.Sum})
		if !e.Whole {
			cut = append(cut, i)
		}
	}
	if len(cut) > 0 {
		if err := s.cut(ctx, f, name, v, ext, cut); err != nil {
			return nil, err
		}
	}
	f.lay()
	return f, nil
}

func (s *Snapshot) seg(id segment.ID) *seg { return new(finder{s.segs, 0}).find(id) }

// A finder finds segments of a snapshot, quickly if they are asked for in its
// order, as extents are.
type finder struct {
	segs []*seg
	at   int
}

// find is nil if there is none.
func (f *finder) find(id segment.ID) *seg {
	for range f.segs {
		if f.at == len(f.segs) {
			f.at = 0
		}
		if g := f.segs[f.at]; g.id() == id {
			return g
		}
		f.at++
	}
	return nil
}

// lay computes where each block begins.
func (f *File) lay() {
	at, plain := segment.HeaderSize, int64(0)
	for _, p := range f.blocks {
		f.gzip, f.plain = append(f.gzip, at), append(f.plain, plain)
		at += p.stored
		plain += p.sum.Size
		f.sum = f.sum.Then(p.sum)
	}
	f.gzip, f.plain = append(f.gzip, at), append(f.plain, plain)
}

// Size is the length of the NDJSON, bytes.
func (f *File) Size() int64 { return f.sum.Size }

// GzipSize is the length of the gzip member, bytes.
func (f *File) GzipSize() int64 { return f.gzip[len(f.blocks)] + segment.TrailerSize }

// CRC32 is the CRC-32 (IEEE) of the NDJSON.
func (f *File) CRC32() uint32 { return f.sum.CRC }

// Close closes what reading opened.
func (f *File) Close() error {
	var err error
	for _, o := range f.open {
		err = errors.Join(err, o.Close())
	}
	clear(f.open)
	return f.hide(err)
}

// hide keeps the snapshot's id out of what is told of its private file.
func (f *File) hide(err error) error {
	if f.of == nil {
		return err
	}
	return hide(err, f.of.id)
}

// WriteGzip writes bytes [off, off+n) of the gzip member. Runs of neighbouring
// blocks are handed to w's ReadFrom, which is sendfile on a plain connection.
func (f *File) WriteGzip(w io.Writer, off, n int64) (err error) {
	defer func() { err = f.hide(err) }()
	end := off + n
	if off < segment.HeaderSize {
		h := segment.Header()[off:min(end, segment.HeaderSize)]
		if _, err := w.Write(slices.Clone(h)); err != nil {
			return err
		}
		off += int64(len(h))
	}
	body := f.gzip[len(f.blocks)]
	for i := f.blockAt(f.gzip, off); off < min(end, body); {
		p := f.blocks[i]
		if err := f.allowed(); err != nil {
			return err
		}
		j, length := i+1, p.stored
		for j < len(f.blocks) && length < maxRun && f.blocks[j].path == p.path && f.blocks[j].at == p.at+length {
			length += f.blocks[j].stored
			j++
		}
		skip := off - f.gzip[i]
		take := min(length-skip, end-off)
		if err := f.send(w, p.path, p.at+skip, take); err != nil {
			return err
		}
		off += take
		i = j
	}
	if off < end {
		_, err := w.Write(segment.Trailer(f.sum)[off-body : end-body])
		return err
	}
	return nil
}

// maxRun is how much is sent before it is asked again whether it may be: a
// download stops soon after what it holds was erased. Bytes.
const maxRun = 4 << 20

func (f *File) allowed() error {
	if f.of != nil && f.of.revoked.Load() {
		return ErrRevoked
	}
	return nil
}

// blockAt is the block in which off lies.
func (f *File) blockAt(starts []int64, off int64) int {
	return max(0, sort.Search(len(f.blocks), func(i int) bool { return starts[i+1] > off }))
}

// send copies n bytes of a file at off to w.
func (f *File) send(w io.Writer, path string, off, n int64) error {
	file, err := f.file(path)
	if err != nil {
		return err
	}
	rf, fast := w.(io.ReaderFrom)
	disk, plain := file.(*os.File)
	if !fast || !plain || n < smallRun {
		return copied(io.Copy(plainWriter{w}, io.NewSectionReader(file, off, n)))(n, path)
	}
	if _, err := disk.Seek(off, io.SeekStart); err != nil {
		return fmt.Errorf("read an output file: %w", err)
	}
	return copied(rf.ReadFrom(&io.LimitedReader{R: disk, N: n}))(n, path)
}

// copied turns a short copy into an error: the file is shorter than its table.
func copied(got int64, err error) func(want int64, path string) error {
	return func(want int64, path string) error {
		if err == nil && got < want {
			return fmt.Errorf("%w: %s is shorter than its table says; run `tidemark check`", ErrCorrupt, path)
		}
		return err
	}
}

// plainWriter hides ReadFrom.
type plainWriter struct{ io.Writer }

func (f *File) file(path string) (stored, error) {
	if o := f.open[path]; o != nil {
		return o, nil
	}
	if len(f.open) == maxOpen {
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("read an output file: %w", err)
		}
	}
	o, err := f.db.openStored(path)
	if err != nil {
		return nil, fmt.Errorf("read an output file: %w", err)
	}
	f.open[path] = o
	return o, nil
}

func (db *DB) openStored(path string) (stored, error) {
	if db.fs == vfs.Default {
		return os.Open(path)
	}
	return db.fs.Open(path)
}

// WriteIdentity writes bytes [off, off+n) of the NDJSON.
func (f *File) WriteIdentity(w io.Writer, off, n int64) (err error) {
	defer func() { err = f.hide(err) }()
	end := off + n
	var text []byte
	for i := f.blockAt(f.plain, off); off < end && i < len(f.blocks); i++ {
		if err := f.allowed(); err != nil {
			return err
		}
		from, to := off-f.plain[i], min(end, f.plain[i+1])-f.plain[i]
		if f.blocks[i].sum.Size > largeBlock {
			if err := f.stream(w, i, from, to); err != nil {
				return err
			}
		} else {
			var err error
			if text, err = f.read(text[:0], i); err != nil {
				return err
			}
			if _, err := w.Write(text[from:to]); err != nil {
				return err
			}
		}
		off += to - from
	}
	return nil
}

// stream writes bytes [from, to) of a block too large to be held: its CRC is
// proved at its end only, and a mismatch breaks the download off.
func (f *File) stream(w io.Writer, i int, from, to int64) error {
	p := f.blocks[i]
	file, err := f.file(p.path)
	if err != nil {
		return err
	}
	z := flate.NewReader(io.NewSectionReader(file, p.at, p.stored))
	crc := crc32.NewIEEE()
	buf := make([]byte, 256<<10)
	for at := int64(0); at < to || to == p.sum.Size && at < p.sum.Size; {
		got, err := io.ReadFull(z, buf[:min(int64(len(buf)), p.sum.Size-at)])
		if err != nil {
			return fmt.Errorf("read %s at %d: %w: deflate: %w; run `tidemark check`", p.path, p.at, ErrCorrupt, err)
		}
		crc.Write(buf[:got])
		if a, b := max(from, at), min(to, at+int64(got)); a < b {
			if _, err := w.Write(buf[a-at : b-at]); err != nil {
				return err
			}
		}
		at += int64(got)
	}
	if to == p.sum.Size && crc.Sum32() != p.sum.CRC {
		return fmt.Errorf("read %s at %d: %w: CRC-32; run `tidemark check`", p.path, p.at, ErrCorrupt)
	}
	return nil
}

func (f *File) read(dst []byte, i int) ([]byte, error) {
	p := f.blocks[i]
	file, err := f.file(p.path)
	if err != nil {
		return dst, err
	}
	data := make([]byte, p.stored)
	if _, err := file.ReadAt(data, p.at); err != nil {
		return dst, fmt.Errorf("read %s at %d: %w", p.path, p.at, err)
	}
	dst, err = segment.Inflate(dst, segment.Block{Data: data, Sum: p.sum})
	if err != nil {
		return dst, fmt.Errorf("read %s at %d: %w; run `tidemark check`", p.path, p.at, err)
	}
	return dst, nil
}
