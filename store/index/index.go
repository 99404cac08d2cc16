// Package index knows the Pebble key spaces of a store: how keys are ordered
// and how values are coded. It refuses to know what they mean to one another.
//
// store/FORMAT.md lists the key spaces.
package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"runtime"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// Format is the version of the key spaces; it stands in Meta.
const Format = 1

// pebbleFormat is pinned: raising it is one way, and a decision.
const pebbleFormat = pebble.FormatMajorVersion(24)

// The key spaces: the first byte of every key.
const (
	spaceMeta      = 'm'
	spacePartition = 'p'
	spaceTopic     = 't'
	spaceSegment   = 's'
	spaceDeaths    = 'd'
	spaceRow       = 'r'
	spaceAllotted  = 'a'
	spacePin       = 'j'
	spacePromise   = 'w'
	spaceJoined    = 'o'
	spaceGroup     = 'g'
)

// Options of the Pebble database.
type Options struct {
	FS       vfs.FS
	Cache    int64 // bytes; below 96 MiB look-ups fall off a cliff
	ReadOnly bool
	Logger   pebble.Logger
}

// Open opens or creates the index in dir.
func Open(dir string, o Options) (*pebble.DB, error) {
	cache := pebble.NewCache(o.Cache)
	defer cache.Unref()
	p := &pebble.Options{
		FS: o.FS, ReadOnly: o.ReadOnly, Logger: o.Logger,
		FormatMajorVersion: pebbleFormat,
		Cache:              cache,
		MemTableSize:       32 << 20, MemTableStopWritesThreshold: 2,
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
	db, err := pebble.Open(dir, p)
	if err != nil {
		return nil, fmt.Errorf("open index %s: %w", dir, err)
	}
	return db, nil
}

// ErrCorrupt says that a value of the index is not what was written.
var ErrCorrupt = errors.New("index value is damaged")

// A coder appends varints; reading past the end sets bad.
type coder struct {
	b   []byte
	bad bool
}

func (c *coder) uint(v uint64) { c.b = binary.AppendUvarint(c.b, v) }
func (c *coder) int(v int64)   { c.b = binary.AppendVarint(c.b, v) }

func (c *coder) readUint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *coder) readInt() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *coder) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.bad = true
		return make([]byte, min(max(n, 0), 16))
	}
	t := c.b[:n]
	c.b = c.b[n:]
	return t
}

func (c *coder) count() int {
	n := c.readUint()
	if n > uint64(len(c.b)) {
		c.bad = true
		return 0
	}
	return int(n)
}

func (c *coder) err(what string) error {
	if c.bad {
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
	Newest      fhir.Instant // the newest change instant in the store, None if empty
}

// MetaKey is the key of Meta.
func MetaKey() []byte { return []byte{spaceMeta} }

// Encode codes m.
func (m *Meta) Encode() []byte {
	c := &coder{}
	c.uint(Format)
	c.b = append(c.b, m.Store[:]...)
	c.uint(m.Epoch)
	c.uint(uint64(m.NextSegment))
	c.uint(m.NextSeq)
	c.uint(m.Commit)
	c.uint(m.NextMerge)
	c.int(int64(m.Newest))
	return c.b
}

// DecodeMeta is the inverse of Encode.
func DecodeMeta(b []byte) (m Meta, err error) {
	c := &coder{b: b}
	if v := c.readUint(); v != Format {
		return m, fmt.Errorf("index format version %d: this release reads %d; use the release that wrote it, or a later one", v, Format)
	}
	copy(m.Store[:], c.take(16))
	m.Epoch = c.readUint()
	m.NextSegment = segment.ID(c.readUint())
	m.NextSeq = c.readUint()
	m.Commit = c.readUint()
	m.NextMerge = c.readUint()
	m.Newest = fhir.Instant(c.readInt())
	return m, c.err("meta")
}

// PartitionState is what is known of a partition.
type PartitionState struct {
	Number      uint64 // short for the partition in row values, never used again
	Next        int64
	LeaderEpoch int32
	TopicID     [16]byte
	Seen        fhir.Instant // when we last stood at its end, None if never
}

// PartitionKey is the key of p's state.
func PartitionKey(p segment.Partition) []byte {
	k := append([]byte{spacePartition}, p.Topic...)
	return binary.BigEndian.AppendUint32(append(k, 0), uint32(p.ID))
}

// ParsePartitionKey is the inverse of PartitionKey. Topic names hold no zero byte.
func ParsePartitionKey(k []byte) (p segment.Partition, err error) {
	n := len(k) - 5
	if n < 1 || k[n] != 0 {
		return p, fmt.Errorf("%w: partition key", ErrCorrupt)
	}
	return segment.Partition{Topic: string(k[1:n]), ID: int32(binary.BigEndian.Uint32(k[n+1:]))}, nil
}

// Encode codes s.
func (s *PartitionState) Encode() []byte {
	c := &coder{}
	c.uint(s.Number)
	c.int(s.Next)
	c.int(int64(s.LeaderEpoch))
	c.b = append(c.b, s.TopicID[:]...)
	c.int(int64(s.Seen))
	return c.b
}

// DecodePartition is the inverse of Encode.
func DecodePartition(b []byte) (s PartitionState, err error) {
	c := &coder{b: b}
	s.Number = c.readUint()
	s.Next = c.readInt()
	s.LeaderEpoch = int32(c.readInt())
	copy(s.TopicID[:], c.take(16))
	s.Seen = fhir.Instant(c.readInt())
	return s, c.err("partition state")
}

// JoinedKey marks p as joined: it has once been read up to the end that was
// reported at its discovery.
func JoinedKey(p segment.Partition) []byte {
	k := PartitionKey(p)
	k[0] = spaceJoined
	return k
}

// PromiseKey says that nothing will ever become visible at or before i again.
// The greatest stands; so commits and pins can promise without waiting for one
// another.
func PromiseKey(i fhir.Instant) []byte {
	return binary.BigEndian.AppendUint64([]byte{spacePromise}, uint64(i)^1<<63)
}

// ParsePromiseKey is the inverse of PromiseKey.
func ParsePromiseKey(k []byte) (fhir.Instant, error) {
	if len(k) != 9 {
		return fhir.None, fmt.Errorf("%w: promise key", ErrCorrupt)
	}
	return fhir.Instant(binary.BigEndian.Uint64(k[1:]) ^ 1<<63), nil
}

// GroupKey is the key of a Group's present members.
func GroupKey(id string) []byte { return append([]byte{spaceGroup}, id...) }

// TopicKey is the key of the pipeline's own state of a topic.
func TopicKey(topic string) []byte { return append([]byte{spaceTopic}, topic...) }

// AllottedKey marks a segment number as allotted to a merge that has not ended.
func AllottedKey(id segment.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{spaceAllotted}, uint64(id))
}

// SegmentKey is the key of a segment's entry in the catalogue.
func SegmentKey(id segment.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{spaceSegment}, uint64(id))
}

// ParseSegmentKey reads the number of a segment or allotment key.
func ParseSegmentKey(k []byte) (segment.ID, error) {
	if len(k) != 9 {
		return 0, fmt.Errorf("%w: segment key", ErrCorrupt)
	}
	return segment.ID(binary.BigEndian.Uint64(k[1:])), nil
}

// Entries of the catalogue.
const (
	SegmentLive    = 1 // part of the present view
	SegmentDropped = 2 // merged away; the files stay while a pin holds them
)

// A Death says that a row was superseded: it is visible only before At.
type Death struct {
	Section segment.Section
	Instant fhir.Instant // of the row
	Seq     uint64       // of the row
	Length  int32        // of its line, bytes
	At      fhir.Instant // the change instant of its successor
}

// DeathsKey is the key of the deaths that one commit brought to one segment.
func DeathsKey(id segment.ID, commit uint64) []byte {
	k := binary.BigEndian.AppendUint64([]byte{spaceDeaths}, uint64(id))
	return binary.BigEndian.AppendUint64(k, commit)
}

// EncodeDeaths codes a list of deaths.
func EncodeDeaths(list []Death) []byte {
	c := &coder{}
	var seq uint64
	var at fhir.Instant
	for _, d := range list {
		c.uint(uint64(d.Section.Kind))
		c.uint(uint64(d.Section.Type))
		c.int(int64(d.Seq - seq))
		c.int(int64(d.Instant - at))
		c.uint(uint64(d.Length))
		c.uint(uint64(d.At - d.Instant))
		seq, at = d.Seq, d.Instant
	}
	return c.b
}

// DecodeDeaths appends the deaths coded in b to dst.
func DecodeDeaths(dst []Death, b []byte) ([]Death, error) {
	c := &coder{b: b}
	var seq uint64
	var at fhir.Instant
	for len(c.b) > 0 && !c.bad {
		d := Death{Section: segment.Section{Kind: segment.Kind(c.readUint()), Type: fhir.Type(c.readUint())}}
		seq += uint64(c.readInt())
		at += fhir.Instant(c.readInt())
		d.Seq, d.Instant, d.Length = seq, at, int32(c.readUint())
		d.At = at + fhir.Instant(c.readUint())
		dst = append(dst, d)
	}
	return dst, c.err("deaths")
}

// RowKey is the key of a resource's newest row.
func RowKey(dst []byte, k fhir.Key) []byte {
	return segment.PackID(append(dst, spaceRow, byte(k.Type)), k.ID)
}

// ParseRowKey is the inverse of RowKey.
func ParseRowKey(k []byte) (fhir.Key, error) {
	if len(k) < 3 {
		return fhir.Key{}, fmt.Errorf("%w: row key", ErrCorrupt)
	}
	return fhir.Key{Type: fhir.Type(k[1]), ID: segment.UnpackID(k[2:])}, nil
}

// A State is what decides about a resource's next change: its newest row's
// facts, but never its place, for every merge moves rows.
type State struct {
	Kind     segment.Kind // Live, Deleted, or Internal for the deletion of a resource never had
	Seq      uint64
	Instant  fhir.Instant
	Length   int32
	Clock    segment.Clock
	Hash     uint64
	Placed   fhir.Instant
	Patients uint32 // PatientsHash of the row's patients
	Life     segment.Life
}

// Section is where the row of a resource of type t stands.
func (s *State) Section(t fhir.Type) segment.Section {
	if s.Kind == segment.Internal {
		return segment.Section{Kind: segment.Internal, Type: segment.Unseen}
	}
	return segment.Section{Kind: s.Kind, Type: t}
}

// PatientsHash tells sets of patients apart; equal sets have equal hashes. Zero
// is kept for the empty set.
func PatientsHash(ids []string) uint32 {
	if len(ids) == 0 {
		return 0
	}
	h := fnv.New32a()
	for _, id := range ids {
		h.Write([]byte(id))
		h.Write([]byte{0})
	}
	return max(1, h.Sum32())
}

const (
	stateKind        = 3 // two bits
	stateVersion     = 1 << 2
	stateInherited   = 1 << 3
	stateUpdated     = 1 << 4
	stateTimestamp   = 1 << 5
	statePosition    = 1 << 6
	stateLife        = 1 << 7
	statePatients    = 1 << 8
	stateSincePlaced = 1 << 9
)

// Encode codes s; origin is the number of its partition.
func (s *State) Encode(dst []byte, origin uint64) []byte {
	c := &coder{b: dst}
	f := uint64(s.Kind) & stateKind
	set := func(cond bool, bit uint64) {
		if cond {
			f |= bit
		}
	}
	k := &s.Clock
	set(k.Version != segment.NoVersion, stateVersion)
	set(k.Inherited, stateInherited)
	set(k.LastUpdated != fhir.None, stateUpdated)
	set(k.Timestamp != fhir.None, stateTimestamp)
	set(k.Position != 0, statePosition)
	set(!s.Life.Empty(), stateLife)
	set(s.Patients != 0, statePatients)
	set(s.Placed != s.Instant, stateSincePlaced)
	c.uint(f)
	c.int(int64(s.Instant))
	c.uint(s.Seq)
	c.uint(uint64(s.Length))
	c.uint(origin)
	c.int(k.Offset)
	if s.Kind == segment.Live {
		c.b = binary.LittleEndian.AppendUint64(c.b, s.Hash)
	}
	if f&stateVersion != 0 {
		c.uint(uint64(k.Version))
	}
	if f&stateUpdated != 0 {
		c.int(int64(s.Instant) - int64(k.LastUpdated))
	}
	if f&stateTimestamp != 0 {
		c.int(int64(s.Instant) - int64(k.Timestamp))
	}
	if f&statePosition != 0 {
		c.uint(k.Position)
	}
	if f&statePatients != 0 {
		c.b = binary.LittleEndian.AppendUint32(c.b, s.Patients)
	}
	if f&stateSincePlaced != 0 {
		c.int(int64(s.Instant) - int64(s.Placed))
	}
	if f&stateLife != 0 {
		c.b = s.Life.Append(c.b, s.Instant)
	}
	return c.b
}

// DecodeState is the inverse of Encode; origin gives a number's partition.
func DecodeState(b []byte, origin func(uint64) (segment.Partition, bool)) (s State, err error) {
	c := &coder{b: b}
	f := c.readUint()
	s.Kind = segment.Kind(f & stateKind)
	s.Instant = fhir.Instant(c.readInt())
	s.Seq = c.readUint()
	s.Length = int32(c.readUint())
	k := &s.Clock
	var known bool
	if k.Origin, known = origin(c.readUint()); !known {
		c.bad = true
	}
	k.Offset = c.readInt()
	if s.Kind == segment.Live {
		s.Hash = binary.LittleEndian.Uint64(c.take(8))
	}
	k.Version, k.LastUpdated, k.Timestamp = segment.NoVersion, fhir.None, fhir.None
	k.Inherited = f&stateInherited != 0
	s.Placed, s.Life = s.Instant, segment.NoLife
	if f&stateVersion != 0 {
		k.Version = int64(c.readUint())
	}
	if f&stateUpdated != 0 {
		k.LastUpdated = s.Instant - fhir.Instant(c.readInt())
	}
	if f&stateTimestamp != 0 {
		k.Timestamp = s.Instant - fhir.Instant(c.readInt())
	}
	if f&statePosition != 0 {
		k.Position = c.readUint()
	}
	if f&statePatients != 0 {
		s.Patients = binary.LittleEndian.Uint32(c.take(4))
	}
	if f&stateSincePlaced != 0 {
		s.Placed = s.Instant - fhir.Instant(c.readInt())
	}
	if f&stateLife != 0 {
		if s.Life, c.b, err = segment.ParseLife(c.b, s.Instant); err != nil {
			return s, err
		}
	}
	if len(c.b) != 0 {
		c.bad = true
	}
	return s, c.err("row state")
}

// A Pin holds the segments of a snapshot and keeps its owner's rule.
type Pin struct {
	Watermark        fhir.Instant
	Epoch            uint64
	Created, Expires fhir.Instant
	Segments         []segment.ID // ascending
	Rule             []byte       // the owner's, not understood here
}

// PinKey is the key of the pin with the given id.
func PinKey(id string) []byte { return append([]byte{spacePin}, id...) }

// Encode codes p.
func (p *Pin) Encode() []byte {
	c := &coder{}
	c.int(int64(p.Watermark))
	c.uint(p.Epoch)
	c.int(int64(p.Created))
	c.int(int64(p.Expires))
	c.uint(uint64(len(p.Segments)))
	var last segment.ID
	for _, id := range p.Segments {
		c.int(int64(id - last))
		last = id
	}
	c.b = append(c.b, p.Rule...)
	return c.b
}

// DecodePin is the inverse of Encode.
func DecodePin(b []byte) (p Pin, err error) {
	c := &coder{b: b}
	p.Watermark = fhir.Instant(c.readInt())
	p.Epoch = c.readUint()
	p.Created = fhir.Instant(c.readInt())
	p.Expires = fhir.Instant(c.readInt())
	n := c.count()
	var last segment.ID
	for range n {
		last += segment.ID(c.readInt())
		p.Segments = append(p.Segments, last)
	}
	p.Rule = append([]byte(nil), c.b...)
	return p, c.err("pin")
}

// space returns the bounds of a key space for an iterator.
func space(b byte) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: []byte{b}, UpperBound: []byte{b + 1}}
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

// Partitions bounds the states of partitions.
func Partitions() *pebble.IterOptions { return space(spacePartition) }

// Joined bounds the partitions that have joined.
func Joined() *pebble.IterOptions { return space(spaceJoined) }

// Topics bounds the states of topics.
func Topics() *pebble.IterOptions { return space(spaceTopic) }

// Segments bounds the catalogue.
func Segments() *pebble.IterOptions { return space(spaceSegment) }

// Deaths bounds the deaths, by segment.
func Deaths() *pebble.IterOptions { return space(spaceDeaths) }

// Rows bounds the newest rows, by resource.
func Rows() *pebble.IterOptions { return space(spaceRow) }

// Allotted bounds the segments allotted to merges.
func Allotted() *pebble.IterOptions { return space(spaceAllotted) }

// Pins bounds the durable snapshots.
func Pins() *pebble.IterOptions { return space(spacePin) }

// Promises bounds the promises, the greatest last.
func Promises() *pebble.IterOptions { return space(spacePromise) }

// Groups bounds the members of Groups.
func Groups() *pebble.IterOptions { return space(spaceGroup) }

// DeathsOf bounds the deaths of one segment.
func DeathsOf(id segment.ID) (from, to []byte) {
	return DeathsKey(id, 0), DeathsKey(id+1, 0)
}

// ParseDeathsKey reads the segment of a deaths key.
func ParseDeathsKey(k []byte) (segment.ID, error) {
	if len(k) != 17 {
		return 0, fmt.Errorf("%w: deaths key", ErrCorrupt)
	}
	return segment.ID(binary.BigEndian.Uint64(k[1:])), nil
}
