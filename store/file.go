package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"slices"
	"sort"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/klauspost/compress/flate"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// A File is an output file: blocks of segments, and of a private file where a
// block held rows that must not be seen, spliced into one gzip member. Its
// bytes are the same at every call for the same snapshot, name and extents.
type File struct {
	db     *DB
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

// maxCutting bounds the bytes of blocks that all cuts together hold inflated
// and compressed anew; one larger block passes alone.
const maxCutting = 64 << 20

// File prepares an output file made of the rows of ext that count. Blocks that
// are not Whole are recompressed without their hidden rows into a private file
// of the snapshot, once: it is durable before File returns.
func (s *Snapshot) File(ctx context.Context, name string, sec segment.Section, since, upto fhir.Instant, ext []Extent) (*File, error) {
	v := span{since, min(upto, s.pin.Watermark), s.pin.Watermark}
	f := &File{db: s.db, open: map[string]stored{}}
	var cut []int
	var g *seg // extents of a segment stand together
	var path string
	for i, e := range ext {
		if g == nil || uint64(g.id()) != e.Segment {
			if g = s.seg(segment.ID(e.Segment)); g == nil {
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

func (s *Snapshot) seg(id segment.ID) *seg {
	for _, g := range s.segs {
		if g.id() == id {
			return g
		}
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
	return err
}

// WriteGzip writes bytes [off, off+n) of the gzip member. Runs of neighbouring
// blocks are handed to w's ReadFrom, which is sendfile on a plain connection.
func (f *File) WriteGzip(w io.Writer, off, n int64) error {
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
		j, length := i+1, p.stored
		for j < len(f.blocks) && f.blocks[j].path == p.path && f.blocks[j].at == p.at+length {
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
func (f *File) WriteIdentity(w io.Writer, off, n int64) error {
	end := off + n
	var text []byte
	for i := f.blockAt(f.plain, off); off < end && i < len(f.blocks); i++ {
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

// cut replaces the blocks of f that hold hidden rows by blocks of a private
// file, which it makes unless an earlier call did.
func (s *Snapshot) cut(ctx context.Context, f *File, name string, v span, ext []Extent, which []int) error {
	if s.of == nil {
		return errors.New("output file of a snapshot: blocks can be cut for durable snapshots only")
	}
	lock := s.db.cutLock(s.of, name)
	lock.Lock()
	defer lock.Unlock()
	dir := s.db.fs.PathJoin(s.db.jobsDir(), s.of.id)
	path := s.db.fs.PathJoin(dir, name+".cut")
	parts, err := readCut(s.db.fs, path, len(which))
	if errors.Is(err, os.ErrNotExist) {
		// A client that gives up does not undo the work: its next request needs it.
		parts, err = s.makeCut(context.WithoutCancel(ctx), dir, path, v, ext, which)
	}
	if err != nil {
		return fmt.Errorf("recompress blocks without hidden rows: %w", err)
	}
	for i, b := range which {
		f.blocks[b] = parts[i]
	}
	return nil
}

func (db *DB) cutLock(p *pinned, name string) *sync.Mutex {
	db.mu.Lock()
	defer db.mu.Unlock()
	m := p.cuts[name]
	if m == nil {
		m = &sync.Mutex{}
		if p.cuts == nil {
			p.cuts = map[string]*sync.Mutex{}
		}
		p.cuts[name] = m
	}
	return m
}

// A cut file is its blocks, a table of them, the table's CRC-32C and length.
const (
	cutEntry   = 4 + 8 + 4
	cutTrailer = 4 + 4 + 8
	cutMagic   = "TIDECUT1"
)

func readCut(fs vfs.FS, path string, n int) ([]part, error) {
	file, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	size := int64(n)*cutEntry + cutTrailer
	t := make([]byte, size)
	if st.Size() < size {
		return nil, fmt.Errorf("%w: %s is too short", ErrCorrupt, path)
	}
	if _, err := file.ReadAt(t, st.Size()-size); err != nil {
		return nil, err
	}
	table, tail := t[:n*cutEntry], t[n*cutEntry:]
	if string(tail[8:]) != cutMagic || int(binary.LittleEndian.Uint32(tail[4:])) != n ||
		crc32.Checksum(table, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(tail) {
		return nil, fmt.Errorf("%w: table of %s", ErrCorrupt, path)
	}
	parts, at := make([]part, n), int64(0)
	for i := range parts {
		e := table[i*cutEntry:]
		stored := int64(binary.LittleEndian.Uint32(e))
		parts[i] = part{path, at, stored, segment.Sum{
			Size: int64(binary.LittleEndian.Uint64(e[4:])), CRC: binary.LittleEndian.Uint32(e[12:]),
		}}
		at += stored
	}
	return parts, nil
}

// makeCut recompresses the blocks on all cores, writes them in order, and makes
// the file durable before its name exists.
func (s *Snapshot) makeCut(ctx context.Context, dir, path string, v span, ext []Extent, which []int) ([]part, error) {
	ctx, span := s.db.o.Tracer.Start(ctx, "store.cut", trace.WithAttributes(attribute.Int("blocks", len(which))))
	defer span.End()
	fs := s.db.fs
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	tmp := path + ".tmp"
	file, err := fs.Create(tmp, "segment")
	if err != nil {
		return nil, err
	}
	parts, err := s.writeCut(ctx, file, path, v, ext, which)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return nil, errors.Join(err, fs.Remove(tmp))
	}
	if err := fs.Rename(tmp, path); err != nil {
		return nil, err
	}
	return parts, errors.Join(segment.SyncDir(fs, dir), segment.SyncDir(fs, s.db.jobsDir()))
}

func (s *Snapshot) writeCut(ctx context.Context, file io.Writer, path string, v span, ext []Extent, which []int) ([]part, error) {
	parts := make([]part, 0, len(which))
	at := int64(0)
	for from, to := 0, 0; from < len(which); from = to {
		weight := int64(0) // of the blocks that are in memory together
		for to < len(which) && to-from < 4*runtime.GOMAXPROCS(0) && (to == from || weight < maxCutting/4) {
			weight += s.inflated(ext[which[to]])
			to++
		}
		blocks, err := s.cutWave(ctx, file, v, ext, which[from:to], min(2*weight, maxCutting))
		if err != nil {
			return nil, err
		}
		for _, b := range blocks {
			parts = append(parts, part{path, at, b.stored, b.sum})
			at += b.stored
		}
	}
	return parts, writeTable(file, parts)
}

// cutWave recompresses some blocks side by side and writes them in order.
func (s *Snapshot) cutWave(ctx context.Context, file io.Writer, v span, ext []Extent, which []int, weight int64) ([]part, error) {
	if err := s.db.cutting.Acquire(ctx, weight); err != nil {
		return nil, err
	}
	defer s.db.cutting.Release(weight)
	blocks := make([]segment.Block, len(which))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, b := range which {
		g.Go(func() (err error) {
			if err := gctx.Err(); err != nil {
				return err
			}
			blocks[i], err = s.visible(ext[b], v)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	parts := make([]part, len(blocks))
	for i, b := range blocks {
		parts[i] = part{stored: int64(len(b.Data)), sum: b.Sum}
		if _, err := file.Write(b.Data); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// writeTable ends a cut file.
func writeTable(file io.Writer, parts []part) error {
	var table []byte
	for _, p := range parts {
		table = binary.LittleEndian.AppendUint32(table, uint32(p.stored))
		table = binary.LittleEndian.AppendUint64(table, uint64(p.sum.Size))
		table = binary.LittleEndian.AppendUint32(table, p.sum.CRC)
	}
	crc := crc32.Checksum(table, crc32.MakeTable(crc32.Castagnoli))
	table = binary.LittleEndian.AppendUint32(table, crc)
	table = binary.LittleEndian.AppendUint32(table, uint32(len(parts)))
	_, err := file.Write(append(table, cutMagic...))
	return err
}

// inflated is the length of a block's NDJSON, hidden rows too.
func (s *Snapshot) inflated(e Extent) int64 {
	return s.seg(segment.ID(e.Segment)).r.Blocks()[e.Block].Sum.Size
}

// visible recompresses one block without its hidden rows.
func (s *Snapshot) visible(e Extent, v span) (segment.Block, error) {
	g := s.seg(segment.ID(e.Segment))
	rows, err := g.cells(e.Block)
	if err != nil {
		return segment.Block{}, err
	}
	s.db.mu.Lock()
	dead := g.dead[e.Block].until(v.w)
	s.db.mu.Unlock()
	body, err := g.r.OpenBody()
	if err != nil {
		return segment.Block{}, err
	}
	defer body.Close()
	text, err := g.r.Lines(nil, body, e.Block)
	if err != nil {
		return segment.Block{}, err
	}
	counts := counting(rows, dead, v)
	lines := make([][]byte, 0, len(rows))
	for i := range rows {
		if counts[i] {
			lines = append(lines, text[:rows[i].Length])
		}
		text = text[rows[i].Length:]
	}
	if len(lines) != e.Rows {
		return segment.Block{}, fmt.Errorf("%w: segment %s, block %d: %d rows count, %d were planned", ErrCorrupt, g.r.ID().BodyName(), e.Block, len(lines), e.Rows)
	}
	k := compressors.Get().(*segment.Compressor)
	defer compressors.Put(k)
	return k.Block(lines...), nil
}

var compressors = sync.Pool{New: func() any { return segment.NewCompressor(segment.FastLevel) }}
