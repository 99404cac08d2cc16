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

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dustin/go-humanize"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"tidemark/store/segment"
)

// maxCutting bounds the bytes of blocks that all cuts together hold inflated
// and compressed anew; one larger block passes alone.
const maxCutting = 64 << 20

// cut replaces the blocks of f that hold hidden rows by blocks of a private
// file, which it makes unless an earlier call did.
func (s *Snapshot) cut(ctx context.Context, f *File, name string, v span, ext []Extent, which []int) error {
	if s.of == nil {
		return errors.New("output file of a snapshot: blocks can be cut for durable snapshots only")
	}
	lock := s.db.cutLock(s.of, name)
	if err := lock.Acquire(ctx, 1); err != nil {
		return err // the client has gone; whoever else waits makes the file
	}
	defer lock.Release(1)
	if s.of.revoked.Load() {
		return ErrRevoked
	}
	name += ".cut"
	parts, err := readCut(s.db.fs, s.db.fs.PathJoin(s.db.privateDir(s.of.id), name), len(which))
	if errors.Is(err, os.ErrNotExist) {
		parts, err = s.makeCut(ctx, name, v, ext, which)
	}
	if err != nil && s.of.revoked.Load() { // an erasure has taken the directory away
		return ErrRevoked
	}
	if err != nil {
		return hide(fmt.Errorf("recompress blocks without hidden rows: %w", err), s.of.id)
	}
	for i, b := range which {
		f.blocks[b] = parts[i]
	}
	return nil
}

// cutLock is held by the one who makes a private file. A mutex would not let go
// of who waits for it.
func (db *DB) cutLock(p *pinned, name string) *semaphore.Weighted {
	db.mu.Lock()
	defer db.mu.Unlock()
	m := p.cuts[name]
	if m == nil {
		m = semaphore.NewWeighted(1)
		if p.cuts == nil {
			p.cuts = map[string]*semaphore.Weighted{}
		}
		p.cuts[name] = m
	}
	return m
}

// makeCut recompresses the blocks on all cores, writes them in order, and makes
// the file durable before its name exists.
func (s *Snapshot) makeCut(ctx context.Context, name string, v span, ext []Extent, which []int) ([]part, error) {
	ctx, span := s.db.o.Tracer.Start(ctx, "store.cut", trace.WithAttributes(attribute.Int("blocks", len(which))))
	defer span.End()
	p, err := s.newPrivate(name)
	if err != nil {
		return nil, err
	}
	parts, err := s.writeCut(ctx, p, v, ext, which)
	if err != nil {
		return nil, errors.Join(err, p.discard())
	}
	if err := p.keep(); err != nil {
		return nil, err
	}
	s.want(ext, which)
	return parts, nil
}

// roomToCut: what the reserve has given up is for the index, for deletions of
// jobs and for merges that clean, which make room; a cut would take it from them.
func (db *DB) roomToCut() error {
	if err := db.writable(); err != nil {
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	if db.reserve.tight() {
		return fmt.Errorf("%w: the reserve was given up and is not back", ErrNoRoom)
	}
	return nil
}

// roomToMake: what a job writes beside what is stored may be as large as the store,
// and stays until the job expires. It leaves room to intake. n is how much more it
// will be, as far as that is known.
func (db *DB) roomToMake(n int64) error {
	if db.o.Spare == 0 {
		return nil
	}
	usage, err := db.fs.GetDiskUsage(db.dir)
	if err != nil || usage.AvailBytes >= uint64(db.o.Spare+n) { // a disk that cannot tell stops nothing
		return nil
	}
	return fmt.Errorf("%w: %s are free, files that jobs write leave %s", ErrNoRoom, humanize.IBytes(usage.AvailBytes), humanize.IBytes(uint64(db.o.Spare)))
}

// unwritten says of an error that it came of writing. A cut is begun anew by
// the next request, so whatever the disk refuses here passes with the reason.
func (db *DB) unwritten(err error) error {
	if err == nil {
		return nil
	}
	if isReadOnly(err) {
		db.sawReadOnly()
	}
	return fmt.Errorf("%w: %w", ErrNoRoom, err)
}

// want counts what was recompressed for the sake of rows that a merge would
// leave out: cleaning the segment spares the next export that.
func (s *Snapshot) want(ext []Extent, which []int) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	h := s.db.horizon()
	for _, i := range which {
		g := s.seg(segment.ID(ext[i].Segment))
		if d := g.dead[ext[i].Block]; d != nil && d.last <= h.deaths {
			g.wanted += g.r.Blocks()[ext[i].Block].Sum.Size
		}
	}
}

func (s *Snapshot) writeCut(ctx context.Context, file *private, v span, ext []Extent, which []int) ([]part, error) {
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
		ctx = context.WithoutCancel(ctx)
		for _, b := range blocks {
			parts = append(parts, part{file.path, at, b.stored, b.sum})
			at += b.stored
		}
	}
	return parts, writeTable(file, parts)
}

// cutWave recompresses some blocks side by side and writes them in order. A
// client that goes away while it waits for its turn loses nothing. Once the work
// has begun it is ended without the client: its next request needs it.
func (s *Snapshot) cutWave(ctx context.Context, file io.Writer, v span, ext []Extent, which []int, weight int64) ([]part, error) {
	if err := s.db.cutting.Acquire(ctx, weight); err != nil {
		return nil, err
	}
	defer s.db.cutting.Release(weight)
	blocks := make([]segment.Block, len(which))
	g, gctx := errgroup.WithContext(context.WithoutCancel(ctx))
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

// inflated is the length of a block's NDJSON, hidden rows too.
func (s *Snapshot) inflated(e Extent) int64 {
	return s.seg(segment.ID(e.Segment)).r.Blocks()[e.Block].Sum.Size
}

// visible recompresses one block without its hidden rows.
func (s *Snapshot) visible(e Extent, v span) (segment.Block, error) {
	g := s.seg(segment.ID(e.Segment))
	rows, counts, err := s.counts(g, e, v.of(g))
	if err != nil {
		return segment.Block{}, err
	}
	body, err := g.r.OpenBody()
	if err != nil {
		return segment.Block{}, err
	}
	defer body.Close()
	text, err := g.r.Lines(nil, body, e.Block)
	if err != nil {
		return segment.Block{}, err
	}
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

// counts tells which rows of an extent count.
func (s *Snapshot) counts(g *seg, e Extent, v span) (rows []segment.Cell, counts []bool, err error) {
	d, err := s.directory(g)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if e.Picked != nil {
		if rows, err = d.Cells(e.Block); err != nil {
			return nil, nil, err
		}
		counts, ok := e.unpack(len(rows))
		if !ok {
			return nil, nil, fmt.Errorf("%w: segment %s, block %d: rows are picked for another block", ErrCorrupt, g.r.ID().BodyName(), e.Block)
		}
		return rows, counts, nil
	}
	s.db.mu.Lock()
	dead := g.dead[e.Block].until(v.w)
	s.db.mu.Unlock()
	return s.counted(d, g.r.SectionOf(e.Block), e.Block, dead, v)
}

// A file of blocks is its blocks, a table of them, the table's CRC-32C and length.
const (
	cutEntry   = 4 + 8 + 4
	cutTrailer = 4 + 4 + 8
	cutMagic   = "TIDECUT1"
)

// readCut reads the table of a file that must have n blocks; n < 0: any number.
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
	if n < 0 {
		if n, err = countCut(file, st.Size()); err != nil {
			return nil, err
		}
	}
	size := int64(n)*cutEntry + cutTrailer
	if st.Size() < size { // before memory is asked for: n may be what a damaged file says
		return nil, fmt.Errorf("%w: %s is too short", ErrCorrupt, path)
	}
	t := make([]byte, size)
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

// countCut is how many blocks a file says it has.
func countCut(file io.ReaderAt, size int64) (int, error) {
	var tail [cutTrailer]byte
	if size < cutTrailer {
		return 0, nil // too short for any number
	}
	_, err := file.ReadAt(tail[:], size-cutTrailer)
	return int(binary.LittleEndian.Uint32(tail[4:])), err
}

// writeTable ends a file of blocks.
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
