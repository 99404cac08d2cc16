package export

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"

	"github.com/klauspost/compress/s2"

	"tidemark/store"
)

// errAside says that what a job has put aside is not as it was. It can be made
// again from the snapshot.
var errAside = errors.New("what a job has put aside is damaged")

// A pad is the scratch of a job: files that are called leaves here. Those without
// which the next process could not go on are named by the job's checkpoint. They
// are durable before it is, and stay until another is that does not name them,
// whoever has removed them meanwhile; all others go when this process is done with
// the job, or are swept away by the next.
//
// What a leaf holds is packed in chunks that carry checksums (S2); how long it is
// stands in the checkpoint.
type pad struct {
	s      scratches
	last   int // number of the last leaf
	leaves map[*leaf]bool
	named  []*leaf
	given  func() error // tells whether the job was given up
}

// scratches is what a pad needs of a snapshot.
type scratches interface {
	Scratch(name string) (Scratch, error)
	FindScratch(name string, size int64) (Scratch, error)
	SweepScratch(but ...string) error
}

// A leaf is a file of a pad.
type leaf struct {
	Scratch
	pad   *pad
	n     int
	named bool
}

func newPad(s scratches) *pad { return &pad{s: s, leaves: map[*leaf]bool{}} }

func leafName(n int) string { return "s" + strconv.Itoa(n) }

func (p *pad) leaf() (*leaf, error) {
	if p.given != nil && p.given() != nil {
		return nil, p.given()
	}
	p.last++
	f, err := p.s.Scratch(leafName(p.last))
	if err != nil {
		return nil, err
	}
	l := &leaf{Scratch: f, pad: p, n: p.last}
	p.leaves[l] = true
	return l, nil
}

// Remove removes a leaf, unless the checkpoint names it: then it goes with that.
func (l *leaf) Remove() error {
	if l.named {
		return nil
	}
	delete(l.pad.leaves, l)
	return l.Scratch.Remove()
}

// keep makes leaves durable.
func (p *pad) keep(all []*leaf) error {
	for _, l := range all {
		if err := l.Keep(); err != nil {
			return err
		}
	}
	return nil
}

// settle says which leaves the checkpoint names that is durable now, and removes
// those that only the one before has named.
func (p *pad) settle(named []*leaf) (err error) {
	before := p.named
	for _, l := range before {
		l.named = false
	}
	for _, l := range named {
		l.named = true
	}
	p.named = named
	for _, l := range before {
		err = errors.Join(err, l.Remove())
	}
	return err
}

// end removes all leaves but those that are named.
func (p *pad) end() (err error) {
	for l := range p.leaves {
		err = errors.Join(err, l.Remove())
	}
	return err
}

// A leafForm is how a checkpoint names a leaf.
type leafForm struct {
	N     int   `json:"n"`
	Bytes int64 `json:"bytes"`
	Holds int64 `json:"holds,omitempty"` // records, or words
}

func (l *leaf) form(holds int64) leafForm { return leafForm{l.n, l.Size(), holds} }

// find finds a leaf of an earlier process.
func (p *pad) find(f leafForm) (*leaf, error) {
	s, err := p.s.FindScratch(leafName(f.N), f.Bytes)
	if err != nil {
		return nil, damaged(err)
	}
	l := &leaf{Scratch: s, pad: p, n: f.N, named: true}
	p.leaves[l], p.named = true, append(p.named, l)
	return l, nil
}

// damaged marks an error of reading what was put aside, unless it says that there is
// no such snapshot any more.
func damaged(err error) error {
	if err == nil || errors.Is(err, store.ErrRevoked) || errors.Is(err, store.ErrClosed) {
		return err
	}
	return fmt.Errorf("%w: %w", errAside, err)
}

// wordsAtOnce is how many words are turned into bytes at a time.
const wordsAtOnce = gatherChunk / 8

// writeWords puts numbers on a leaf of their own.
func (p *pad) writeWords(words []uint64) (*leaf, error) {
	l, err := p.leaf()
	if err != nil {
		return nil, err
	}
	packer := s2.NewWriter(l, s2.WriterConcurrency(1), s2.WriterBlockSize(gatherChunk))
	b := make([]byte, 0, gatherChunk)
	for len(words) > 0 {
		n := min(len(words), wordsAtOnce)
		b = b[:0]
		for _, w := range words[:n] {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		if _, err := packer.Write(b); err != nil {
			return nil, err
		}
		words = words[n:]
	}
	return l, packer.Close()
}

// readWords appends the numbers of a leaf.
func (l *leaf) readWords(dst []uint64, n int64) (_ []uint64, err error) {
	f, err := l.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	packed := s2.NewReader(f, s2.ReaderMaxBlockSize(gatherChunk))
	b := make([]byte, gatherChunk)
	for n > 0 {
		b = b[:8*min(n, wordsAtOnce)]
		if _, err := io.ReadFull(packed, b); err != nil {
			return nil, damaged(err)
		}
		for i := 0; i < len(b); i += 8 {
			dst = append(dst, binary.LittleEndian.Uint64(b[i:]))
		}
		n -= int64(len(b) / 8)
	}
	return dst, nil
}

// An asideForm names the leaf on which stands what else a checkpoint needs: it may
// be long, and name Patients.
type asideForm struct {
	leafForm
	CRC uint32 `json:"crc"`
}

// writeForm puts a form on a leaf of its own.
func (p *pad) writeForm(form any) (*leaf, *asideForm, error) {
	b, err := json.Marshal(form)
	if err != nil {
		return nil, nil, err
	}
	sum := crc32.ChecksumIEEE(b) // before somebody scribbles on it
	l, err := p.leaf()
	if err != nil {
		return nil, nil, err
	}
	if _, err := l.Write(b); err != nil {
		return nil, nil, err
	}
	return l, &asideForm{l.form(0), sum}, nil
}

// readForm is the inverse of writeForm.
func (p *pad) readForm(f asideForm, form any) error {
	l, err := p.find(f.leafForm)
	if err != nil {
		return err
	}
	r, err := l.Open()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return damaged(err)
	}
	if crc32.ChecksumIEEE(b) != f.CRC {
		return damaged(store.ErrCorrupt)
	}
	return damaged(json.Unmarshal(b, form))
}

// sweep removes what no checkpoint names.
func (p *pad) sweep() error {
	var named []string
	for _, l := range p.named {
		named = append(named, leafName(l.n))
	}
	return p.s.SweepScratch(named...)
}
