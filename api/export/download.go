package export

import (
	"context"
	"errors"
	"fmt"
	"io"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A Download is one file of a job, opened for reading. It must be closed.
type Download struct {
	Type    fhir.Type // 0: OperationOutcomes
	List    List
	Parts   int // how many files the job has of this list and type
	file    File
	release func()
}

// Open opens file n of a job, counted from 1. It may have to wait until the
// store has taken hidden rows out of the file's blocks.
func (j *Jobs) Open(ctx context.Context, id string, n int) (*Download, error) {
	s, r, release, err := j.open(id)
	if err != nil {
		return nil, err
	}
	d, err := j.file(ctx, id, s, r, n)
	if err != nil {
		release()
		if errors.Is(err, ErrNotFound) {
			return nil, err
		}
		return nil, fmt.Errorf("open file %d of an export job: %w", n, err)
	}
	d.release = release
	for _, f := range r.Files {
		if f.List == d.List && f.Type == d.Type {
			d.Parts++
		}
	}
	return d, nil
}

func (j *Jobs) file(ctx context.Context, id string, s Snapshot, r rule, n int) (*Download, error) {
	if n < 1 || n > len(r.Files) {
		return nil, ErrNotFound
	}
	f := r.Files[n-1]
	if f.List == Errors {
		return &Download{List: f.List, file: text(r.Errors)}, nil
	}
	if f.Made {
		file, err := made(s, fileName(n), f)
		if err != nil {
			return nil, err
		}
		return &Download{Type: f.Type, List: f.List, file: file}, nil
	}
	var extents []store.Extent
	if p := r.piece(n); p != nil {
		c, err := j.selection(id, s, *p)
		if err != nil {
			return nil, err
		}
		if n-1-p.From >= len(c) {
			return nil, fmt.Errorf("a piece of a job has %d files, not %d: %w", len(c), n-p.From, store.ErrCorrupt)
		}
		extents = c[n-1-p.From]
	} else {
		s = r.Level.of(s, f.List, f.Type)
		var err error
		if extents, err = r.derive(s, f); err != nil {
			return nil, err
		}
	}
	file, err := s.File(ctx, fileName(n), f.section(), r.Since, r.Upto, extents)
	if err != nil {
		return nil, err
	}
	return &Download{Type: f.Type, List: f.List, file: file}, nil
}

// made opens a file that was written beside the snapshot.
func made(s Snapshot, name string, f OutputFile) (File, error) {
	file, err := s.Made(name)
	if err != nil {
		return nil, err
	}
	if file.Size() != f.Bytes {
		return nil, errors.Join(file.Close(), fmt.Errorf("a file has %d bytes, the manifest says %d: %w", file.Size(), f.Bytes, store.ErrCorrupt))
	}
	return file, nil
}

// selection is what is kept of a piece of a job about some Patients. While the job
// is read it stays in memory.
func (j *Jobs) selection(id string, s Snapshot, p piece) (selection, error) {
	j.mu.Lock()
	job := j.jobs[id]
	if job != nil && job.selection[p.From] != nil {
		defer j.mu.Unlock()
		return job.selection[p.From], nil
	}
	j.mu.Unlock()
	data, err := s.Kept(p.Name, p.Sum)
	if err != nil {
		return nil, err
	}
	c, err := decodeSelection(data)
	if err != nil || job == nil {
		return c, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if job.selection == nil {
		job.selection = map[int]selection{}
	}
	job.selection[p.From] = c
	return c, nil
}

// derive finds a file's extents again. The store promises the same answer for
// the same snapshot; should it ever break that promise, a client gets an
// error instead of other rows than the manifest counted.
func (r rule) derive(s Snapshot, f OutputFile) ([]store.Extent, error) {
	all, err := r.extents(s, f.section())
	if err != nil {
		return nil, err
	}
	if f.From < 0 || f.From > f.To || f.To > len(all) {
		return nil, fmt.Errorf("extents [%d,%d) of %d: %w", f.From, f.To, len(all), store.ErrCorrupt)
	}
	extents := all[f.From:f.To]
	var rows, size int64
	for _, x := range extents {
		rows += int64(x.Rows)
		size += x.Bytes
	}
	if rows != f.Rows || size != f.Bytes {
		return nil, fmt.Errorf("extents hold %d rows in %d bytes, the manifest says %d in %d: %w", rows, size, f.Rows, f.Bytes, store.ErrCorrupt)
	}
	return extents, nil
}

// Size is the length of the download in bytes.
func (d *Download) Size(gzip bool) int64 {
	if gzip {
		return d.file.GzipSize()
	}
	return d.file.Size()
}

// CRC32 is the CRC-32 (IEEE) of the NDJSON.
func (d *Download) CRC32() uint32 { return d.file.CRC32() }

// Write writes bytes [off, off+n) to w. If w offers io.ReaderFrom, gzip goes
// out of the file without passing through us.
func (d *Download) Write(w io.Writer, gzip bool, off, n int64) error {
	if gzip {
		return d.file.WriteGzip(w, off, n)
	}
	return d.file.WriteIdentity(w, off, n)
}

// Close lets go of the job.
func (d *Download) Close() error {
	defer d.release()
	return d.file.Close()
}
