package export

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/s2"
)

// What sorting takes of a job's memory. Bytes.
const (
	// gatherMemory is what all sortings of a job gather together before one of them
	// writes a run: an eighth of what the process may take (design.md 4).
	gatherMemory = 64 << 20
	// gatherChunk is what they gather in, and what of a run is read at a time.
	gatherChunk = 128 << 10
	// maxRuns are read at the same time, each with two chunks in memory. More are
	// merged before: 8 GB need no second pass.
	maxRuns = 128
)

// A sorter is the memory and the disk that the sortings of a job share. It is for
// one goroutine.
type sorter struct {
	pad   *pad
	limit int // of what is gathered, bytes
	fanIn int // runs that are read together

	used   int
	all    []*sorting
	free   [][]byte // chunks
	packer *s2.Writer
}

// A sorting puts records in the order of their keys, more of them than fit into
// memory: sorted runs go to the disk, compressed for speed, and are merged as they
// are read. Of records with the same key one is left.
type sorting struct {
	*sorter
	chunks  [][]byte // what is gathered
	size    int
	records []record
	runs    []sortedRun
	sealed  bool  // nothing is added any more
	count   int64 // what was
}

// A record is where one lies in the chunks: its key, then its value.
type record struct{ chunk, from, key, end uint32 }

// recordCost is what a record takes beside its bytes.
const recordCost = 16

func (m *sorter) sorting() *sorting {
	s := &sorting{sorter: m}
	m.all = append(m.all, s)
	return s
}

// end removes all that lies on the disk.
func (m *sorter) end() (err error) {
	for _, s := range m.all {
		err = errors.Join(err, s.end())
	}
	m.all, m.free = nil, nil
	return err
}

// makeRoom has whoever gathered most write it, until there is room.
func (m *sorter) makeRoom(n int) error {
	for m.used+n > m.limit {
		var most *sorting
		for _, s := range m.all {
			if !s.sealed && s.size > 0 && (most == nil || s.size > most.size) {
				most = s
			}
		}
		if most == nil {
			return nil // what is larger than all passes alone
		}
		if err := most.spill(); err != nil {
			return err
		}
	}
	return nil
}

// add copies a record, whose key is put together from parts.
func (s *sorting) add(value []byte, key ...[]byte) error {
	n := len(value)
	for _, part := range key {
		n += len(part)
	}
	if err := s.makeRoom(n + recordCost); err != nil {
		return err
	}
	b := s.place(n)
	r := record{chunk: uint32(len(s.chunks) - 1), from: uint32(len(*b))}
	for _, part := range key {
		*b = append(*b, part...)
	}
	r.key = uint32(len(*b))
	*b = append(*b, value...)
	r.end = uint32(len(*b))
	s.records = append(s.records, r)
	s.size += n + recordCost
	s.used += n + recordCost
	s.count++
	return nil
}

// place is the last chunk, with room for n bytes.
func (s *sorting) place(n int) *[]byte {
	if last := len(s.chunks) - 1; last < 0 || cap(s.chunks[last])-len(s.chunks[last]) < n {
		var b []byte
		if m := len(s.free); m > 0 && n <= gatherChunk {
			b, s.free = s.free[m-1], s.free[:m-1]
		} else {
			b = make([]byte, 0, max(n, min(gatherChunk, s.limit)))
		}
		s.chunks = append(s.chunks, b)
	}
	return &s.chunks[len(s.chunks)-1]
}

func (s *sorting) key(r record) []byte   { return s.chunks[r.chunk][r.from:r.key] }
func (s *sorting) value(r record) []byte { return s.chunks[r.chunk][r.key:r.end] }

func (s *sorting) sort() {
	slices.SortFunc(s.records, func(a, b record) int { return bytes.Compare(s.key(a), s.key(b)) })
}

// forget lets go of what is gathered.
func (s *sorting) forget() {
	for _, b := range s.chunks {
		if cap(b) == gatherChunk {
			s.free = append(s.free, b[:0])
		}
	}
	s.used -= s.size
	s.chunks, s.records, s.size = nil, nil, 0
}

// A sortedRun lies on the disk.
type sortedRun struct {
	file    *leaf
	records int64
}

// spill writes what is gathered as a run.
func (s *sorting) spill() error {
	s.sort()
	err := s.write(&united{of: []cursor{&inMemory{s: s}}})
	s.forget()
	return err
}

// write makes a run of what c goes through, and closes c.
func (s *sorting) write(c cursor) (err error) {
	defer func() { err = errors.Join(err, c.close()) }()
	f, err := s.pad.leaf()
	if err != nil {
		return err
	}
	s.runs = append(s.runs, sortedRun{file: f})
	if s.packer == nil {
		s.packer = s2.NewWriter(nil, s2.WriterConcurrency(1), s2.WriterBlockSize(gatherChunk))
	}
	s.packer.Reset(f)
	n := int64(0)
	for ; c.next(); n++ {
		if err := pack(s.packer, c.key(), c.value()); err != nil {
			return fmt.Errorf("write a sorted run: %w", err)
		}
	}
	if err := s.packer.Close(); err != nil {
		return fmt.Errorf("write a sorted run: %w", err)
	}
	s.runs[len(s.runs)-1].records = n
	return nil
}

func pack(w io.Writer, key, value []byte) error {
	var head [2 * binary.MaxVarintLen32]byte
	n := binary.PutUvarint(head[:], uint64(len(key)))
	n += binary.PutUvarint(head[n:], uint64(len(value)))
	for _, b := range [][]byte{head[:n], key, value} {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// A cursor goes through records in the order of their keys. What key and value
// return lives until next. It must be closed, which also says if it ended early.
type cursor interface {
	next() bool
	key() []byte
	value() []byte
	err() error
	close() error
}

// sorted goes through all records. It may be called more than once, but after it
// nothing is added. What is small stays in memory.
func (s *sorting) sorted() (cursor, error) {
	s.sealed = true
	if len(s.runs) == 0 && s.size <= s.limit/16 {
		s.sort()
		return &united{of: []cursor{&inMemory{s: s}}}, nil
	}
	if s.size > 0 {
		if err := s.spill(); err != nil {
			return nil, err
		}
	}
	for len(s.runs) > s.fanIn {
		// As few as leave the rest few enough, and those that were never merged.
		some := s.runs[:min(len(s.runs)-s.fanIn+1, s.fanIn)]
		c, err := open(some)
		if err != nil {
			return nil, err
		}
		if err := s.write(c); err != nil {
			return nil, err
		}
		s.runs = s.runs[len(some):]
		if err := remove(some); err != nil {
			return nil, err
		}
	}
	return open(s.runs)
}

// A sortingForm is how a checkpoint remembers a sorting.
type sortingForm struct {
	Count int64      `json:"count,omitempty"`
	Runs  []leafForm `json:"runs,omitempty"`
}

// putAside writes what is gathered, and tells what there is then.
func (s *sorting) putAside() (form sortingForm, all []*leaf, err error) {
	if len(s.records) > 0 {
		if err := s.spill(); err != nil {
			return form, nil, err
		}
	}
	form.Count = s.count
	for _, r := range s.runs {
		form.Runs, all = append(form.Runs, r.file.form(r.records)), append(all, r.file)
	}
	return form, all, nil
}

// restore finds what an earlier process has put aside.
func (s *sorting) restore(form sortingForm) error {
	s.count = form.Count
	for _, r := range form.Runs {
		file, err := s.pad.find(r)
		if err != nil {
			return err
		}
		s.runs = append(s.runs, sortedRun{file, r.Holds})
	}
	return nil
}

// end removes what lies on the disk.
func (s *sorting) end() error {
	runs := s.runs
	s.runs = nil
	s.forget()
	return remove(runs)
}

func remove(runs []sortedRun) (err error) {
	for _, r := range runs {
		err = errors.Join(err, r.file.Remove())
	}
	return err
}

func open(runs []sortedRun) (cursor, error) {
	u := &united{}
	for _, r := range runs {
		f, err := r.file.Open()
		if err != nil {
			return nil, errors.Join(err, u.close())
		}
		u.of = append(u.of, &onDisk{file: f, packed: s2.NewReader(f, s2.ReaderMaxBlockSize(gatherChunk)), left: r.records})
	}
	return u, nil
}

// inMemory goes through what is gathered and sorted.
type inMemory struct {
	s    *sorting
	done int
}

func (m *inMemory) next() bool    { m.done++; return m.done <= len(m.s.records) }
func (m *inMemory) key() []byte   { return m.s.key(m.s.records[m.done-1]) }
func (m *inMemory) value() []byte { return m.s.value(m.s.records[m.done-1]) }
func (m *inMemory) err() error    { return nil }
func (m *inMemory) close() error  { return nil }

// onDisk goes through a run.
type onDisk struct {
	file   io.Closer
	packed *s2.Reader
	left   int64 // records
	k, v   []byte
	fault  error
}

func (r *onDisk) next() bool {
	if r.left == 0 || r.fault != nil {
		return false
	}
	r.left--
	if err := r.unpack(); err != nil {
		r.fault = fmt.Errorf("read a sorted run: %w", damaged(err))
	}
	return r.fault == nil
}

func (r *onDisk) unpack() error {
	n, err := binary.ReadUvarint(r.packed)
	if err != nil {
		return err
	}
	m, err := binary.ReadUvarint(r.packed)
	if err != nil {
		return err
	}
	r.k, r.v = slices.Grow(r.k[:0], int(n))[:n], slices.Grow(r.v[:0], int(m))[:m]
	if _, err := io.ReadFull(r.packed, r.k); err != nil {
		return err
	}
	_, err = io.ReadFull(r.packed, r.v)
	return err
}

func (r *onDisk) key() []byte   { return r.k }
func (r *onDisk) value() []byte { return r.v }
func (r *onDisk) err() error    { return r.fault }
func (r *onDisk) close() error  { return r.file.Close() }

// united goes through several cursors as if they were one, and takes of equal
// keys one.
type united struct {
	of    []cursor // that have not ended; once begun, a heap by key
	ended []cursor
	begun bool
	last  []byte
	fault error
}

func (u *united) next() bool {
	switch {
	case u.fault != nil:
	case !u.begun:
		u.begin()
	case len(u.of) > 0:
		u.last = append(u.last[:0], u.of[0].key()...)
		for len(u.of) > 0 && bytes.Equal(u.of[0].key(), u.last) {
			u.advance()
		}
	}
	return len(u.of) > 0 && u.fault == nil
}

func (u *united) begin() {
	u.begun = true
	all := u.of
	u.of = nil
	for _, c := range all {
		if c.next() {
			u.of = append(u.of, c)
		} else {
			u.end(c)
		}
	}
	for i := len(u.of)/2 - 1; i >= 0; i-- {
		u.down(i)
	}
}

func (u *united) end(c cursor) {
	u.ended = append(u.ended, c)
	u.fault = errors.Join(u.fault, c.err())
}

// advance moves the first cursor on.
func (u *united) advance() {
	if c := u.of[0]; !c.next() {
		last := len(u.of) - 1
		u.of[0] = u.of[last]
		u.of = u.of[:last]
		u.end(c)
	}
	u.down(0)
}

// down lets cursor i sink to its place.
func (u *united) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(u.of); child++ {
			if bytes.Compare(u.of[child].key(), u.of[least].key()) < 0 {
				least = child
			}
		}
		if least == i {
			return
		}
		u.of[i], u.of[least] = u.of[least], u.of[i]
		i = least
	}
}

func (u *united) key() []byte   { return u.of[0].key() }
func (u *united) value() []byte { return u.of[0].value() }
func (u *united) err() error    { return u.fault }

func (u *united) close() error {
	err := u.fault
	for _, c := range slices.Concat(u.of, u.ended) {
		err = errors.Join(err, c.close())
	}
	u.of, u.ended = nil, nil
	return err
}
