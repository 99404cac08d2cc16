// Package segment knows one immutable segment of NDJSON rows: a body that
// ordinary gzip tools read, and a directory that says what stands where.
//
// It knows bytes, blocks and columns, and refuses to know which row is newest,
// what is visible, or where other segments are. store/FORMAT.md is its
// reference.
package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"tidemark/store/disk"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"
)

// A Writer writes one segment. Blocks come in the order of their sections.
//
// Until the index commits what Seal returns the segment does not exist: a crash
// leaves files that Open removes (invariant S2).
type Writer struct {
	fs   vfs.FS
	dir  string
	id   ID
	body vfs.File
	buf  []byte // written when it is writeSize long
	at   int64
	sum  Sum
	x    index
	from origins
	meta []byte // the directory so far
	err  error
}

// Create starts segment id in dir. The files must not exist.
func Create(fs vfs.FS, dir string, id ID) (*Writer, error) {
	w := &Writer{fs: fs, dir: dir, id: id, meta: []byte(magic)}
	body, err := fs.Create(fs.PathJoin(dir, id.BodyName()), "segment")
	if err != nil {
		return nil, fmt.Errorf("create segment %d: %w", id, err)
	}
	w.body = body
	w.write(gzipHeader[:])
	return w, nil
}

// writeSize is how much of a body is written at once, bytes: a file written in
// pieces of a block each costs a tenth more to send later.
const writeSize = 1 << 20

func (w *Writer) write(p []byte) {
	w.at += int64(len(p))
	if w.buf = append(w.buf, p...); len(w.buf) >= writeSize {
		w.flush()
	}
}

func (w *Writer) flush() {
	if w.err == nil && len(w.buf) > 0 {
		if _, err := w.body.Write(w.buf); err != nil {
			w.err = fmt.Errorf("write segment %d: %w", w.id, err)
		}
	}
	if w.buf = w.buf[:0]; cap(w.buf) > 2*writeSize {
		w.buf = nil
	}
}

// Append adds one block with its rows, which must be sorted and of one section
// that does not lie before the block appended last.
func (w *Writer) Append(b Block, rows []Row) error {
	sec := rows[0].Section
	n := len(w.x.sections)
	if n == 0 || w.x.sections[n-1].Section != sec {
		if n > 0 && w.x.sections[n-1].Compare(sec) > 0 {
			return fmt.Errorf("append to segment %d: section %v after %v", w.id, sec, w.x.sections[n-1].Section)
		}
		w.x.sections = append(w.x.sections, SectionInfo{Section: sec, From: len(w.x.blocks), To: len(w.x.blocks)})
		n++
	}
	w.x.sections[n-1].To++
	first, last := rows[0].Instant, rows[0].Instant
	loose, shared, attached := int32(0), int32(0), int32(0)
	for i := range rows {
		first, last = min(first, rows[i].Instant), max(last, rows[i].Instant)
		switch len(rows[i].Patients) {
		case 0:
			loose++
		case 1:
		default:
			shared++
		}
		if rows[i].Attached() {
			attached++
		}
	}
	w.x.sections[n-1].Attached = w.x.sections[n-1].Attached || attached > 0
	chunk := encodeChunk(rows, &w.from)
	w.x.blocks = append(w.x.blocks, BlockInfo{
		Offset: w.at, Stored: int32(len(b.Data)), Rows: int32(len(rows)), Sum: b.Sum,
		First: first, Last: last, Lead: rows[0].Place(), Loose: loose, Shared: shared, Attached: attached,
		chunk: int64(len(w.meta)), chunkLen: int32(len(chunk)), chunkCRC: crc32.Checksum(chunk, castagnoli),
	})
	w.meta = append(w.meta, chunk...)
	w.sum = w.sum.Then(b.Sum)
	w.write(b.Data)
	return w.err
}

// Seal makes the segment durable and returns a Reader of it. The order is:
// bytes, both files synced side by side and closed, then the folder, so that a
// name never outlives a crash without its bytes.
func (w *Writer) Seal(f Footer) (*Reader, error) {
	w.write(Trailer(w.sum))
	w.flush()
	f.ID = w.id
	if f.Window == nil {
		for i := range w.x.blocks {
			w.x.blocks[i].Lead.Patients = 0
		}
	}
	w.x.footer, w.x.bodySize, w.x.origins = f, w.at, w.from.list
	if w.err != nil {
		return nil, errors.Join(w.err, w.body.Close())
	}
	var g errgroup.Group
	g.Go(func() error { return disk.SyncClose(w.body) })
	g.Go(w.writeDirectory)
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("seal segment %d: %w", w.id, err)
	}
	if err := disk.SyncDir(w.fs, w.dir); err != nil {
		return nil, fmt.Errorf("seal segment %d: %w", w.id, err)
	}
	return &Reader{fs: w.fs, dir: w.dir, index: w.x}, nil
}

func (w *Writer) writeDirectory() error {
	x := w.x.encode()
	at := len(w.meta)
	d := append(w.meta, x...)
	d = binary.LittleEndian.AppendUint64(d, uint64(at))
	d = binary.LittleEndian.AppendUint32(d, uint32(len(x)))
	d = binary.LittleEndian.AppendUint32(d, crc32.Checksum(x, castagnoli))
	d = binary.LittleEndian.AppendUint32(d, Version)
	d = append(d, magic...)
	file, err := w.fs.Create(w.fs.PathJoin(w.dir, w.id.DirectoryName()), "segment")
	if err != nil {
		return err
	}
	if _, err := file.Write(d); err != nil {
		return errors.Join(err, file.Close())
	}
	return disk.SyncClose(file)
}

// Abandon closes what was begun; the files stay for Open to remove.
func (w *Writer) Abandon() error { return w.body.Close() }
