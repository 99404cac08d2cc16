package segment

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"tidemark/store/fhir"
	"tidemark/store/internal/varint"
)

// Flags of a row in a chunk.
const (
	hasVersion = 1 << iota
	inheritedVersion
	hasUpdated
	hasTimestamp
	hasPosition
	hasLife
	sincePlaced // Placed differs from Instant
	upToPosition
)

// A coder codes the columns of a chunk, for the most part as varints.
type coder struct{ varint.Coder }

func (c *coder) flag(set bool) {
	if set {
		c.B = append(c.B, 1)
	} else {
		c.B = append(c.B, 0)
	}
}

func (c *coder) readFlag() bool { return c.Take(1)[0] != 0 }

func (c *coder) text(s string) { c.Uint(uint64(len(s))); c.B = append(c.B, s...) }

func (c *coder) readText() string { return string(c.Take(c.Count())) }

// instant codes an instant as its distance from base; None is told by a flag.
func (c *coder) since(base, i fhir.Instant) { c.Int(int64(base) - int64(i)) }

func (c *coder) readSince(base fhir.Instant) fhir.Instant {
	return base - fhir.Instant(c.ReadInt())
}

// chunkCompressors compress chunks. Deflate rather than zstd: half of a chunk is
// ids and hashes, which nothing compresses, and one codec less is one less to
// trust with what reindex needs.
var chunkCompressors = sync.Pool{New: func() any { return NewCompressor(FastLevel) }}

// maxChunk bounds what a damaged length can make us allocate, bytes.
const maxChunk = 1 << 30

func deflateChunk(raw []byte) []byte {
	c := chunkCompressors.Get().(*Compressor)
	defer chunkCompressors.Put(c)
	return append(binary.AppendUvarint(nil, uint64(len(raw))), c.Block(raw).Data...)
}

// inflateChunk inflates a chunk, or the first limit bytes of it.
func inflateChunk(chunk []byte, limit int) ([]byte, error) {
	size, n := binary.Uvarint(chunk)
	if n <= 0 || size > maxChunk {
		return nil, fmt.Errorf("%w: directory chunk", ErrCorrupt)
	}
	raw := make([]byte, min(int(size), limit))
	i := inflaters.Get().(*Inflater)
	defer inflaters.Put(i)
	inflate := i.fill
	if len(raw) < int(size) {
		inflate = i.begin
	}
	if err := inflate(raw, chunk[n:]); err != nil {
		return nil, fmt.Errorf("directory chunk: %w", err)
	}
	return raw, nil
}

// encodeChunk codes the rows of one block, column by column: ids and hashes are
// noise, everything else compresses well beside its like. What decides whether
// rows count comes first, then what they belong to: plans read no further.
func encodeChunk(rows []Row, origins *origins) []byte {
	c := &coder{varint.Coder{B: make([]byte, 0, 48*len(rows))}}
	encodeCells(c, rows)
	encodeLists(c, rows, func(r *Row) []string { return r.Patients }, c.id)
	encodeLists(c, rows, func(r *Row) []fhir.Key { return r.References }, c.key)
	internal := rows[0].Section.Kind == Internal
	for i := range rows {
		c.id(rows[i].Key.ID)
		if internal {
			c.Uint(uint64(rows[i].Key.Type))
		}
	}
	for i := range rows {
		if !internal && rows[i].Section.Kind == Live {
			c.B = binary.LittleEndian.AppendUint64(c.B, rows[i].Hash)
		}
	}
	for i := range rows {
		c.B = append(c.B, flags(&rows[i]))
	}
	last := map[int]int64{}
	for i := range rows {
		k := &rows[i].Clock
		o := origins.index(k.Origin)
		c.Uint(uint64(o))
		c.Int(k.Offset - last[o])
		last[o] = k.Offset
	}
	for i := range rows {
		encodeClock(c, &rows[i])
	}
	return deflateChunk(c.B)
}

func flags(r *Row) (f byte) {
	set := func(cond bool, bit byte) {
		if cond {
			f |= bit
		}
	}
	set(r.Clock.Version != NoVersion, hasVersion)
	set(r.Clock.Inherited || r.Clock.Told, inheritedVersion)
	set(r.Clock.LastUpdated != fhir.None, hasUpdated)
	set(r.Clock.Timestamp != fhir.None, hasTimestamp)
	set(r.Clock.Position != 0, hasPosition)
	set(!r.Life.Empty(), hasLife)
	set(r.Placed != r.Instant, sincePlaced)
	set(r.Clock.UpTo, upToPosition)
	return f
}

func encodeClock(c *coder, r *Row) {
	k := &r.Clock
	if k.Version != NoVersion {
		c.Uint(uint64(k.Version))
	}
	if k.LastUpdated != fhir.None {
		c.since(r.Instant, k.LastUpdated)
	}
	if k.Timestamp != fhir.None {
		c.since(r.Instant, k.Timestamp)
	}
	if k.Position != 0 {
		c.Uint(k.Position)
	}
	if r.Placed != r.Instant {
		c.since(r.Instant, r.Placed)
	}
	if !r.Life.Empty() {
		c.B = r.Life.Append(c.B, r.Instant)
	}
}

// Lists are a list for each row of a block, over names of which the block has
// each once.
type Lists[K any] struct {
	Names []K
	at    []uint32 // places in Names, row by row
	ends  []uint32 // of each row's in at
}

// Of are the places in Names of row i's list.
func (l *Lists[K]) Of(i int) []uint32 {
	from := uint32(0)
	if i > 0 {
		from = l.ends[i-1]
	}
	return l.at[from:l.ends[i]:l.ends[i]]
}

// of is row i's list.
func (l *Lists[K]) of(i int) []K {
	places := l.Of(i)
	if len(places) == 0 {
		return nil
	}
	list := make([]K, len(places))
	for j, p := range places {
		list[j] = l.Names[p]
	}
	return list
}

// encodeLists codes each distinct name of the chunk once.
func encodeLists[K comparable](c *coder, rows []Row, of func(*Row) []K, code func(K)) {
	index := map[K]uint64{}
	var names []K
	for i := range rows {
		for _, n := range of(&rows[i]) {
			if _, ok := index[n]; !ok {
				index[n] = uint64(len(names))
				names = append(names, n)
			}
		}
	}
	c.Uint(uint64(len(names)))
	for _, n := range names {
		code(n)
	}
	if len(names) == 0 {
		return
	}
	for i := range rows {
		c.Uint(uint64(len(of(&rows[i]))))
	}
	for i := range rows {
		for _, n := range of(&rows[i]) {
			c.Uint(index[n])
		}
	}
}

func readLists[K any](c *coder, rows int, read func() K) Lists[K] {
	l := Lists[K]{Names: make([]K, c.Count()), ends: make([]uint32, rows)}
	for i := range l.Names {
		l.Names[i] = read()
	}
	if len(l.Names) == 0 {
		return l
	}
	total := uint64(0)
	for i := range l.ends {
		total += uint64(c.Count())
		l.ends[i] = uint32(total)
	}
	if c.Bad || total > uint64(len(c.B)) { // each place takes a byte at least
		c.Bad = true
		return Lists[K]{ends: make([]uint32, rows)}
	}
	l.at = make([]uint32, total)
	for i := range l.at {
		p := c.ReadUint()
		if p >= uint64(len(l.Names)) {
			c.Bad, p = true, 0
		}
		l.at[i] = uint32(p)
	}
	return l
}

// key codes a key of whatever type.
func (c *coder) key(k fhir.Key) {
	c.B = append(c.B, byte(k.Type))
	c.id(k.ID)
}

func (c *coder) readKey() fhir.Key {
	return fhir.Key{Type: fhir.Type(c.Take(1)[0]), ID: c.readID()}
}

// decodeChunk is the inverse of encodeChunk for n rows of sec.
func decodeChunk(dst []Row, chunk []byte, n int, sec Section, origins []Partition) ([]Row, error) {
	raw, err := inflateChunk(chunk, maxChunk)
	if err != nil {
		return dst, err
	}
	c := &coder{varint.Coder{B: raw}}
	if n > len(raw) {
		return dst, fmt.Errorf("%w: directory chunk is too short for its rows", ErrCorrupt)
	}
	at := len(dst)
	dst = append(dst, make([]Row, n)...)
	rows := dst[at:]
	internal := sec.Kind == Internal
	for i, cell := range readCells(c, n) {
		rows[i].Seq, rows[i].Instant, rows[i].Length = cell.Seq, cell.Instant, cell.Length
	}
	patients, references := readLists(c, n, c.readID), readLists(c, n, c.readKey)
	for i := range rows {
		rows[i].Patients, rows[i].References = patients.of(i), references.of(i)
	}
	for i := range rows {
		rows[i].Section, rows[i].Life = sec, NoLife
		rows[i].Key = fhir.Key{Type: sec.Type, ID: c.readID()}
		if internal {
			rows[i].Key.Type = fhir.Type(c.ReadUint())
		}
	}
	for i := range rows {
		if sec.Kind == Live {
			rows[i].Hash = binary.LittleEndian.Uint64(c.Take(8))
		}
	}
	f := c.Take(n)
	last := make([]int64, len(origins))
	for i := range rows {
		o := c.ReadUint()
		if o >= uint64(len(origins)) || len(f) < n {
			return dst[:at], fmt.Errorf("%w: directory chunk names an unknown origin", ErrCorrupt)
		}
		last[o] += c.ReadInt()
		rows[i].Clock.Origin, rows[i].Clock.Offset = origins[o], last[o]
	}
	for i := range rows {
		decodeClock(c, &rows[i], f[i])
	}
	if c.Bad || len(c.B) != 0 {
		return dst[:at], fmt.Errorf("%w: directory chunk", ErrCorrupt)
	}
	return dst, nil
}

// A Cell is what decides whether a row counts.
type Cell struct {
	Seq     uint64
	Instant fhir.Instant
	Length  int32
}

// Bound is the row's place in the order of time.
func (c *Cell) Bound() Bound { return Bound{c.Instant, c.Seq} }

func encodeCells(c *coder, rows []Row) {
	var seq uint64
	var at fhir.Instant
	for i := range rows {
		r := &rows[i]
		c.Int(int64(r.Seq - seq))
		c.Int(int64(r.Instant - at))
		seq, at = r.Seq, r.Instant
	}
	for i := range rows {
		c.Uint(uint64(rows[i].Length))
	}
}

func readCells(c *coder, n int) []Cell {
	cells := make([]Cell, n)
	var last Cell
	for i := range cells {
		last.Seq += uint64(c.ReadInt())
		last.Instant += fhir.Instant(c.ReadInt())
		cells[i] = last
	}
	for i := range cells {
		l := c.ReadUint()
		if l > math.MaxInt32 {
			c.Bad = true
		}
		cells[i].Length = int32(l)
	}
	return cells
}

// Links are what decides whether the rows of a block count, and what they belong
// to.
type Links struct {
	Cells      []Cell
	Patients   Lists[string]
	References Lists[fhir.Key]
}

// What a row takes at the head of a chunk, nearly always at most: its Cell, and
// its Links. Bytes.
const (
	usualCell  = 8
	usualLinks = 32
)

// decodeHead reads the first columns of a chunk with read, and inflates little
// more, if a row takes no more there than is usual.
func decodeHead[H any](chunk []byte, n, usual int, read func(*coder) H) (H, error) {
	var none H
	for _, size := range []int{n * usual, maxChunk} {
		raw, err := inflateChunk(chunk, size)
		if err != nil {
			return none, err
		}
		if n > len(raw) {
			break
		}
		c := &coder{varint.Coder{B: raw}}
		if head := read(c); !c.Bad {
			return head, nil
		}
	}
	return none, fmt.Errorf("%w: directory chunk", ErrCorrupt)
}

func decodeCells(chunk []byte, n int) ([]Cell, error) {
	return decodeHead(chunk, n, usualCell, func(c *coder) []Cell { return readCells(c, n) })
}

func decodeLinks(chunk []byte, n int) (Links, error) {
	return decodeHead(chunk, n, usualLinks, func(c *coder) Links {
		return Links{readCells(c, n), readLists(c, n, c.readID), readLists(c, n, c.readKey)}
	})
}

func decodeClock(c *coder, r *Row, f byte) {
	k := &r.Clock
	k.Version, k.LastUpdated, k.Timestamp, r.Placed = NoVersion, fhir.None, fhir.None, r.Instant
	if f&hasVersion != 0 {
		k.Version = int64(c.ReadUint())
	}
	inherited := f&inheritedVersion != 0
	k.Inherited, k.Told, k.UpTo = inherited && f&hasVersion != 0, inherited && f&hasVersion == 0, f&upToPosition != 0
	if f&hasUpdated != 0 {
		k.LastUpdated = c.readSince(r.Instant)
	}
	if f&hasTimestamp != 0 {
		k.Timestamp = c.readSince(r.Instant)
	}
	if f&hasPosition != 0 {
		k.Position = c.ReadUint()
	}
	if f&sincePlaced != 0 {
		r.Placed = c.readSince(r.Instant)
	}
	if f&hasLife != 0 {
		r.Life = c.readLife(r.Instant)
	}
}

// origins numbers the partitions that a segment's rows came from.
type origins struct {
	list []Partition
	at   map[Partition]int
}

func (o *origins) index(p Partition) int {
	if i, ok := o.at[p]; ok {
		return i
	}
	if o.at == nil {
		o.at = map[Partition]int{}
	}
	o.at[p] = len(o.list)
	o.list = append(o.list, p)
	return len(o.list) - 1
}
