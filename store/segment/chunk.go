package segment

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"sync"

	"tidemark/store/fhir"
)

// Flags of a row in a chunk.
const (
	hasVersion = 1 << iota
	inheritedVersion
	hasUpdated
	hasTimestamp
	hasPosition
	hasLife
	hasPatients
	sincePlaced // Placed differs from Instant
)

// A coder writes and reads the varint columns of a chunk. Reading beyond the
// end or a value that cannot be sets bad, asked once at the end.
type coder struct {
	b   []byte
	bad bool
}

func (c *coder) uint(v uint64) { c.b = binary.AppendUvarint(c.b, v) }
func (c *coder) int(v int64)   { c.b = binary.AppendVarint(c.b, v) }
func (c *coder) text(s string) { c.uint(uint64(len(s))); c.b = append(c.b, s...) }

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
		return make([]byte, max(0, min(n, 16)))
	}
	t := c.b[:n]
	c.b = c.b[n:]
	return t
}

// count reads a number of things that take at least one byte each, so a damaged
// count cannot make us allocate more than the chunk's own size.
func (c *coder) count() int {
	n := c.readUint()
	if n > uint64(len(c.b)) {
		c.bad = true
		return 0
	}
	return int(n)
}

func (c *coder) readText() string { return string(c.take(c.count())) }

// instant codes an instant as its distance from base; None is told by a flag.
func (c *coder) since(base, i fhir.Instant) { c.int(int64(base) - int64(i)) }

func (c *coder) readSince(base fhir.Instant) fhir.Instant {
	return base - fhir.Instant(c.readInt())
}

// PackID appends id in its short form: a lower-case UUID as a zero byte and its
// 16 bytes, anything else as it is. FHIR's ids never start with a zero byte.
func PackID(dst []byte, id string) []byte {
	if len(id) != 36 || id[8] != '-' || id[13] != '-' || id[18] != '-' || id[23] != '-' {
		return append(dst, id...)
	}
	at := len(dst)
	dst = append(dst, 0)
	for i := 0; i < 36; {
		if id[i] == '-' && (i == 8 || i == 13 || i == 18 || i == 23) {
			i++
			continue
		}
		hi, lo := nibble(id[i]), nibble(id[i+1])
		if hi > 15 || lo > 15 {
			return append(dst[:at], id...)
		}
		dst = append(dst, hi<<4|lo)
		i += 2
	}
	return dst
}

func nibble(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// UnpackID is the inverse of PackID.
func UnpackID(p []byte) string {
	if len(p) != 17 || p[0] != 0 {
		return string(p)
	}
	var u [36]byte
	hex.Encode(u[0:8], p[1:5])
	hex.Encode(u[9:13], p[5:7])
	hex.Encode(u[14:18], p[7:9])
	hex.Encode(u[19:23], p[9:11])
	hex.Encode(u[24:36], p[11:17])
	u[8], u[13], u[18], u[23] = '-', '-', '-', '-'
	return string(u[:])
}

// ids codes ids as a length (0 for a UUID) and the packed bytes.
func (c *coder) id(id string) {
	var tmp [65]byte
	p := PackID(tmp[:0], id)
	if len(p) == 17 && p[0] == 0 {
		c.b = append(append(c.b, 0), p[1:]...)
		return
	}
	c.b = append(append(c.b, byte(len(p)+1)), p...)
}

func (c *coder) readID() string {
	n := c.take(1)[0]
	if n == 0 {
		var p [17]byte
		copy(p[1:], c.take(16))
		return UnpackID(p[:])
	}
	return string(c.take(int(n) - 1))
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

func inflateChunk(chunk []byte) ([]byte, error) {
	size, n := binary.Uvarint(chunk)
	if n <= 0 || size > maxChunk {
		return nil, fmt.Errorf("%w: directory chunk", ErrCorrupt)
	}
	raw := make([]byte, size)
	i := inflaters.Get().(*Inflater)
	defer inflaters.Put(i)
	if err := i.fill(raw, chunk[n:]); err != nil {
		return nil, fmt.Errorf("directory chunk: %w", err)
	}
	return raw, nil
}

// encodeChunk codes the rows of one block, column by column: ids and hashes are
// noise, everything else compresses well beside its like.
func encodeChunk(rows []Row, origins *origins) []byte {
	c := &coder{b: make([]byte, 0, 48*len(rows))}
	internal := rows[0].Section.Kind == Internal
	for i := range rows {
		c.id(rows[i].Key.ID)
		if internal {
			c.uint(uint64(rows[i].Key.Type))
		}
	}
	for i := range rows {
		if !internal && rows[i].Section.Kind == Live {
			c.b = binary.LittleEndian.AppendUint64(c.b, rows[i].Hash)
		}
	}
	var seq uint64
	var at fhir.Instant
	for i := range rows {
		r := &rows[i]
		c.int(int64(r.Seq - seq))
		c.int(int64(r.Instant - at))
		seq, at = r.Seq, r.Instant
	}
	for i := range rows {
		c.uint(uint64(rows[i].Length))
	}
	for i := range rows {
		c.b = append(c.b, flags(&rows[i]))
	}
	last := map[int]int64{}
	for i := range rows {
		k := &rows[i].Clock
		o := origins.index(k.Origin)
		c.uint(uint64(o))
		c.int(k.Offset - last[o])
		last[o] = k.Offset
	}
	for i := range rows {
		encodeClock(c, &rows[i])
	}
	encodePatients(c, rows)
	return deflateChunk(c.b)
}

func flags(r *Row) (f byte) {
	set := func(cond bool, bit byte) {
		if cond {
			f |= bit
		}
	}
	set(r.Clock.Version != NoVersion, hasVersion)
	set(r.Clock.Inherited, inheritedVersion)
	set(r.Clock.LastUpdated != fhir.None, hasUpdated)
	set(r.Clock.Timestamp != fhir.None, hasTimestamp)
	set(r.Clock.Position != 0, hasPosition)
	set(!r.Life.Empty(), hasLife)
	set(len(r.Patients) != 0, hasPatients)
	set(r.Placed != r.Instant, sincePlaced)
	return f
}

func encodeClock(c *coder, r *Row) {
	k := &r.Clock
	if k.Version != NoVersion {
		c.uint(uint64(k.Version))
	}
	if k.LastUpdated != fhir.None {
		c.since(r.Instant, k.LastUpdated)
	}
	if k.Timestamp != fhir.None {
		c.since(r.Instant, k.Timestamp)
	}
	if k.Position != 0 {
		c.uint(k.Position)
	}
	if r.Placed != r.Instant {
		c.since(r.Instant, r.Placed)
	}
	if !r.Life.Empty() {
		c.b = r.Life.Append(c.b, r.Instant)
	}
}

// Append codes l relative to base.
func (l *Life) Append(dst []byte, base fhir.Instant) []byte {
	c := &coder{b: dst}
	var f uint64
	if l.FloorVersion != NoVersion {
		f |= 1
	}
	if l.FloorUpdated != fhir.None {
		f |= 2
	}
	if l.Reborn {
		f |= 4
	}
	c.uint(f)
	if f&1 != 0 {
		c.uint(uint64(l.FloorVersion))
	}
	if f&2 != 0 {
		c.since(base, l.FloorUpdated)
	}
	c.uint(uint64(len(l.Tombstones)))
	for _, t := range l.Tombstones {
		c.since(base, t)
	}
	return c.b
}

// ParseLife is the inverse of Append; it returns the bytes that follow.
func ParseLife(b []byte, base fhir.Instant) (l Life, rest []byte, err error) {
	c := &coder{b: b}
	l = c.readLife(base)
	if c.bad {
		return l, nil, ErrCorrupt
	}
	return l, c.b, nil
}

func (c *coder) readLife(base fhir.Instant) Life {
	l := NoLife
	f := c.readUint()
	if f&1 != 0 {
		l.FloorVersion = int64(c.readUint())
	}
	if f&2 != 0 {
		l.FloorUpdated = c.readSince(base)
	}
	l.Reborn = f&4 != 0
	if n := c.count(); n > 0 {
		l.Tombstones = make([]fhir.Instant, n)
		for i := range l.Tombstones {
			l.Tombstones[i] = c.readSince(base)
		}
	}
	return l
}

// encodePatients codes each distinct patient of the chunk once.
func encodePatients(c *coder, rows []Row) {
	index := map[string]uint64{}
	var names []string
	for i := range rows {
		for _, p := range rows[i].Patients {
			if _, ok := index[p]; !ok {
				index[p] = uint64(len(names))
				names = append(names, p)
			}
		}
	}
	c.uint(uint64(len(names)))
	for _, p := range names {
		c.id(p)
	}
	for i := range rows {
		if len(rows[i].Patients) == 0 {
			continue
		}
		c.uint(uint64(len(rows[i].Patients)))
		for _, p := range rows[i].Patients {
			c.uint(index[p])
		}
	}
}

// decodeChunk is the inverse of encodeChunk for n rows of sec.
func decodeChunk(dst []Row, chunk []byte, n int, sec Section, origins []Partition) ([]Row, error) {
	raw, err := inflateChunk(chunk)
	if err != nil {
		return dst, err
	}
	c := &coder{b: raw}
	if n > len(raw) {
		return dst, fmt.Errorf("%w: directory chunk is too short for its rows", ErrCorrupt)
	}
	at := len(dst)
	dst = append(dst, make([]Row, n)...)
	rows := dst[at:]
	internal := sec.Kind == Internal
	for i := range rows {
		rows[i].Section, rows[i].Life = sec, NoLife
		rows[i].Key = fhir.Key{Type: sec.Type, ID: c.readID()}
		if internal {
			rows[i].Key.Type = fhir.Type(c.readUint())
		}
	}
	for i := range rows {
		if sec.Kind == Live {
			rows[i].Hash = binary.LittleEndian.Uint64(c.take(8))
		}
	}
	var seq uint64
	var instant fhir.Instant
	for i := range rows {
		seq += uint64(c.readInt())
		instant += fhir.Instant(c.readInt())
		rows[i].Seq, rows[i].Instant = seq, instant
	}
	for i := range rows {
		l := c.readUint()
		if l > math.MaxInt32 {
			c.bad = true
		}
		rows[i].Length = int32(l)
	}
	f := c.take(n)
	last := make([]int64, len(origins))
	for i := range rows {
		o := c.readUint()
		if o >= uint64(len(origins)) || len(f) < n {
			return dst[:at], fmt.Errorf("%w: directory chunk names an unknown origin", ErrCorrupt)
		}
		last[o] += c.readInt()
		rows[i].Clock.Origin, rows[i].Clock.Offset = origins[o], last[o]
	}
	for i := range rows {
		decodeClock(c, &rows[i], f[i])
	}
	decodePatients(c, rows, f)
	if c.bad || len(c.b) != 0 {
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

// decodeCells reads the three columns of Cells and skips what stands before.
func decodeCells(chunk []byte, n int, sec Section) ([]Cell, error) {
	raw, err := inflateChunk(chunk)
	if err != nil {
		return nil, err
	}
	c := &coder{b: raw}
	if n > len(raw) {
		return nil, fmt.Errorf("%w: directory chunk is too short for its rows", ErrCorrupt)
	}
	for range n {
		if size := int(c.take(1)[0]); size == 0 {
			c.take(16)
		} else {
			c.take(size - 1)
		}
		if sec.Kind == Internal {
			c.readUint()
		}
	}
	if sec.Kind == Live {
		c.take(8 * n)
	}
	cells := make([]Cell, n)
	var last Cell
	for i := range cells {
		last.Seq += uint64(c.readInt())
		last.Instant += fhir.Instant(c.readInt())
		cells[i] = last
	}
	for i := range cells {
		cells[i].Length = int32(c.readUint())
	}
	if c.bad {
		return nil, fmt.Errorf("%w: directory chunk", ErrCorrupt)
	}
	return cells, nil
}

func decodeClock(c *coder, r *Row, f byte) {
	k := &r.Clock
	k.Version, k.LastUpdated, k.Timestamp, r.Placed = NoVersion, fhir.None, fhir.None, r.Instant
	if f&hasVersion != 0 {
		k.Version = int64(c.readUint())
	}
	k.Inherited = f&inheritedVersion != 0
	if f&hasUpdated != 0 {
		k.LastUpdated = c.readSince(r.Instant)
	}
	if f&hasTimestamp != 0 {
		k.Timestamp = c.readSince(r.Instant)
	}
	if f&hasPosition != 0 {
		k.Position = c.readUint()
	}
	if f&sincePlaced != 0 {
		r.Placed = c.readSince(r.Instant)
	}
	if f&hasLife != 0 {
		r.Life = c.readLife(r.Instant)
	}
}

func decodePatients(c *coder, rows []Row, f []byte) {
	names := make([]string, c.count())
	for i := range names {
		names[i] = c.readID()
	}
	for i := range rows {
		if f[i]&hasPatients == 0 {
			continue
		}
		n := c.count()
		rows[i].Patients = make([]string, 0, n)
		for range n {
			p := c.readUint()
			if p >= uint64(len(names)) {
				c.bad = true
				return
			}
			rows[i].Patients = append(rows[i].Patients, names[p])
		}
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
