// Package index knows the Pebble key spaces of a store: how keys are ordered
// and how values are coded. It refuses to know what they mean to one another.
//
// store/FORMAT.md lists the key spaces.
package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/internal/varint"
	"tidemark/store/segment"
)

// Format is the version of the key spaces; it stands in Meta.
const Format = 3

// pebbleFormat is pinned: raising it is one way, and a decision.
const pebbleFormat = pebble.FormatMajorVersion(24)

// Options of the Pebble database.
type Options struct {
	FS       vfs.FS
	Cache    int64 // bytes; below 96 MiB look-ups fall off a cliff
	ReadOnly bool
	NoLog    bool // for what need not survive a crash
	Still    bool // no timer ticks: for tests in simulated time, where each tick costs as much as a real one
	Logger   pebble.Logger
}

// Open opens or creates the index in dir.
func Open(dir string, o Options) (*pebble.DB, error) {
	cache := pebble.NewCache(o.Cache)
	defer cache.Unref()
	p := &pebble.Options{
		FS: o.FS, ReadOnly: o.ReadOnly, Logger: o.Logger,
		FormatMajorVersion: pebbleFormat, DisableWAL: o.NoLog,
		Cache:        cache,
		MemTableSize: 32 << 20, MemTableStopWritesThreshold: 2,
		L0CompactionThreshold: 2, L0CompactionFileThreshold: 500, L0StopWritesThreshold: 1000,
		LBaseMaxBytes: 64 << 20, FlushSplitBytes: 4 << 20, MaxOpenFiles: 4096, BytesPerSync: 1 << 20,
		CompactionConcurrencyRange: func() (int, int) { return 1, max(1, runtime.GOMAXPROCS(0)-1) },
	}
	p.TargetFileSizes[0] = 4 << 20
	for i := range p.Levels {
		l := &p.Levels[i]
		l.BlockSize, l.IndexBlockSize = 32<<10, 256<<10
		l.FilterPolicy = bloom.FilterPolicy(10)
		l.Compression = func() *block.CompressionProfile { return block.FastCompression }
	}
	if o.Still {
		p.Experimental.CompactionScheduler = pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()
	}
	db, err := pebble.Open(dir, p)
	if err != nil {
		return nil, fmt.Errorf("open index %s: %w", dir, err)
	}
	return db, nil
}

// ErrCorrupt says that a value of the index is not what was written.
var ErrCorrupt = errors.New("index value is damaged")

func faults(c *varint.Coder, what string) error {
	if c.Bad {
		return fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	return nil
}

// Meta is the store's own state: one value, written by every batch that moves it.
type Meta struct {
	Store       [16]byte
	Epoch       uint64
	NextSegment segment.ID // no file has this number or a later one, but for an unfinished commit
	NextSeq     uint64
	Commit      uint64 // the last commit
	NextMerge   uint64
	Newest      fhir.Instant  // the newest change instant in the store, None if empty
	Closed      segment.Bound // rows up to here lie in settled segments, all later ones in fresh ones
	Forgotten   fhir.Instant  // deletions up to here may be gone, None if none is
	Restored    fhir.Instant  // what changed up to here may have been told by a store that was lost, None if none was
}

// Encode codes m.
func (m *Meta) Encode() []byte {
	c := &varint.Coder{}
	c.Uint(Format)
	c.B = append(c.B, m.Store[:]...)
	c.Uint(m.Epoch)
	c.Uint(uint64(m.NextSegment))
	c.Uint(m.NextSeq)
	c.Uint(m.Commit)
	c.Uint(m.NextMerge)
	c.Int(int64(m.Newest))
	encodeBound(c, m.Closed)
	c.Int(int64(m.Forgotten))
	c.Int(int64(m.Restored))
	return c.B
}

// DecodeMeta is the inverse of Encode.
func DecodeMeta(b []byte) (m Meta, err error) {
	c := &varint.Coder{B: b}
	if v := c.ReadUint(); v != Format {
		return m, fmt.Errorf("index format version %d: this release reads %d; use the release that wrote it, or a later one", v, Format)
	}
	copy(m.Store[:], c.Take(16))
	m.Epoch = c.ReadUint()
	m.NextSegment = segment.ID(c.ReadUint())
	m.NextSeq = c.ReadUint()
	m.Commit = c.ReadUint()
	m.NextMerge = c.ReadUint()
	m.Newest = fhir.Instant(c.ReadInt())
	m.Closed = decodeBound(c)
	m.Forgotten = fhir.Instant(c.ReadInt())
	m.Restored = fhir.Instant(c.ReadInt())
	return m, faults(c, "meta")
}

// PartitionState is what is known of a partition.
type PartitionState struct {
	Number      uint64 // short for the partition in row values, never used again
	Next        int64
	LeaderEpoch int32
	TopicID     [16]byte
	Seen        fhir.Instant // when we last stood at its end, None if never
	Forgotten   bool         // nobody reads it any more: it is only where rows came from
	Anew        uint64       // rows with a smaller sequence number are of another log of this name
}

// Encode codes s.
func (s *PartitionState) Encode() []byte {
	c := &varint.Coder{}
	c.Uint(s.Number)
	c.Int(s.Next)
	c.Int(int64(s.LeaderEpoch))
	c.B = append(c.B, s.TopicID[:]...)
	c.Int(int64(s.Seen))
	if s.Forgotten || s.Anew > 0 {
		forgotten := uint64(0)
		if s.Forgotten {
			forgotten = 1
		}
		c.Uint(forgotten)
		c.Uint(s.Anew)
	}
	return c.B
}

// DecodePartition is the inverse of Encode.
func DecodePartition(b []byte) (s PartitionState, err error) {
	c := &varint.Coder{B: b}
	s.Number = c.ReadUint()
	s.Next = c.ReadInt()
	s.LeaderEpoch = int32(c.ReadInt())
	copy(s.TopicID[:], c.Take(16))
	s.Seen = fhir.Instant(c.ReadInt())
	if len(c.B) > 0 {
		s.Forgotten, s.Anew = c.ReadUint() == 1, c.ReadUint()
	}
	return s, faults(c, "partition state")
}

func encodeBound(c *varint.Coder, b segment.Bound) {
	c.Int(int64(b.Instant))
	c.Uint(b.Seq)
}

func decodeBound(c *varint.Coder) segment.Bound {
	return segment.Bound{Instant: fhir.Instant(c.ReadInt()), Seq: c.ReadUint()}
}

// Entries of the catalogue.
const (
	SegmentLive    = 1 // part of the present view
	SegmentDropped = 2 // merged away; the files stay while a pin holds them
)

// A Death says that a row was superseded: it is visible only before At.
type Death struct {
	Section segment.Section
	Place   segment.Place // of the row
	Length  int32         // of its line, bytes
	At      fhir.Instant  // the change instant of its successor
	Removed bool          // its successor is a deletion
}

// EncodeDeaths codes a list of deaths.
func EncodeDeaths(list []Death) []byte {
	c := &varint.Coder{}
	var seq uint64
	var at fhir.Instant
	for _, d := range list {
		p := d.Place
		f := uint64(d.Section.Kind) & deathKind
		if p.Patients != 0 {
			f |= deathPatients
		}
		if d.Removed {
			f |= deathRemoved
		}
		c.Uint(f)
		c.Uint(uint64(d.Section.Type))
		c.Int(int64(p.Seq - seq))
		c.Int(int64(p.Instant - at))
		c.Uint(uint64(d.Length))
		c.Uint(uint64(d.At - p.Instant))
		if p.Patients != 0 {
			c.B = binary.LittleEndian.AppendUint32(c.B, p.Patients)
		}
		seq, at = p.Seq, p.Instant
	}
	return c.B
}

const (
	deathKind     = 3 // two bits
	deathPatients = 1 << 2
	deathRemoved  = 1 << 3
)

// DecodeDeaths appends the deaths coded in b to dst.
func DecodeDeaths(dst []Death, b []byte) ([]Death, error) {
	c := &varint.Coder{B: b}
	var seq uint64
	var at fhir.Instant
	for len(c.B) > 0 && !c.Bad {
		f := c.ReadUint()
		d := Death{Section: segment.Section{Kind: segment.Kind(f & deathKind), Type: fhir.Type(c.ReadUint())}, Removed: f&deathRemoved != 0}
		seq += uint64(c.ReadInt())
		at += fhir.Instant(c.ReadInt())
		d.Place.Bound, d.Length = segment.Bound{Instant: at, Seq: seq}, int32(c.ReadUint())
		d.At = at + fhir.Instant(c.ReadUint())
		if f&deathPatients != 0 {
			d.Place.Patients = binary.LittleEndian.Uint32(c.Take(4))
		}
		dst = append(dst, d)
	}
	return dst, faults(c, "deaths")
}

// A Pin holds the segments of a snapshot and keeps its owner's rule.
type Pin struct {
	Watermark        fhir.Instant
	Epoch            uint64
	Created, Expires fhir.Instant
	Closed           segment.Bound // Meta's then
	Segments         []segment.ID  // in the order in which they are read
	Revoked          bool          // it was ended before its time: its segments are let go
	Rule             []byte        // the owner's, not understood here
}

// Encode codes p.
func (p *Pin) Encode() []byte {
	c := &varint.Coder{}
	c.Int(int64(p.Watermark))
	c.Uint(p.Epoch)
	c.Int(int64(p.Created))
	c.Int(int64(p.Expires))
	encodeBound(c, p.Closed)
	if p.Revoked {
		c.Uint(1)
	} else {
		c.Uint(0)
	}
	c.Uint(uint64(len(p.Segments)))
	var last segment.ID
	for _, id := range p.Segments {
		c.Int(int64(id - last))
		last = id
	}
	c.B = append(c.B, p.Rule...)
	return c.B
}

// DecodePin is the inverse of Encode.
func DecodePin(b []byte) (p Pin, err error) {
	c := &varint.Coder{B: b}
	p.Watermark = fhir.Instant(c.ReadInt())
	p.Epoch = c.ReadUint()
	p.Created = fhir.Instant(c.ReadInt())
	p.Expires = fhir.Instant(c.ReadInt())
	p.Closed = decodeBound(c)
	p.Revoked = c.ReadUint() != 0
	n := c.Count()
	var last segment.ID
	for range n {
		last += segment.ID(c.ReadInt())
		p.Segments = append(p.Segments, last)
	}
	p.Rule = append([]byte(nil), c.B...)
	return p, faults(c, "pin")
}

// Has tells whether there is a key.
func Has(r pebble.Reader, key []byte) (bool, error) {
	_, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the index: %w", err)
	}
	return true, closer.Close()
}

// Scan calls fn for each key and value of a key space, in order.
func Scan(r pebble.Reader, s *pebble.IterOptions, fn func(key, value []byte) error) error {
	it, err := r.NewIter(s)
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err == nil {
			err = fn(it.Key(), v)
		}
		if err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return it.Close()
}
