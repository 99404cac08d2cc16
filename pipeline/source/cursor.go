package source

import (
	"encoding/binary"
	"math"
)

// A cursor reads the fields of one Kafka message and remembers the first
// fault: a read past the end or a malformed number yields zero from then on.
// Nothing is allocated by a length that the remaining bytes cannot hold.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n < 0 || n > len(c.b) {
		c.bad = true
		return nil
	}
	head := c.b[:n:n]
	c.b = c.b[n:]
	return head
}

func (c *cursor) bool() bool { return c.int8() != 0 }

func (c *cursor) int8() int8 {
	if b := c.take(1); b != nil {
		return int8(b[0])
	}
	return 0
}

func (c *cursor) int16() int16 {
	if b := c.take(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (c *cursor) int32() int32 {
	if b := c.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (c *cursor) int64() int64 {
	if b := c.take(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

// uvarint reads an unsigned varint of at most 32 bits.
func (c *cursor) uvarint() uint32 {
	if len(c.b) > 0 && c.b[0] < 0x80 && !c.bad { // nearly all of them
		v := c.b[0]
		c.b = c.b[1:]
		return uint32(v)
	}
	v, n := binary.Uvarint(c.b)
	if c.bad || n <= 0 || n > binary.MaxVarintLen32 || v > math.MaxUint32 {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return uint32(v)
}

// varint reads a zigzag varint of at most 32 bits.
func (c *cursor) varint() int {
	v := c.uvarint()
	return int(int32(v>>1) ^ -int32(v&1))
}

// varlong reads a zigzag varint of at most 64 bits.
func (c *cursor) varlong() int64 {
	v, n := binary.Varint(c.b)
	if c.bad || n <= 0 {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}

// varbytes reads bytes behind a zigzag length; any negative length is null.
func (c *cursor) varbytes() []byte {
	if n := c.varint(); n >= 0 {
		return c.take(n)
	}
	return nil
}

// count reads an array's length; each element has at least size bytes, so a
// longer array than the message can hold is a fault and not an allocation.
// A null array counts as empty.
func (c *cursor) count(size int) int { return c.bound(int(c.int32()), size) }

// compactCount is count as flexible messages write it: one more than the
// length, as a varint.
func (c *cursor) compactCount(size int) int { return c.bound(int(c.uvarint())-1, size) }

func (c *cursor) bound(n, size int) int {
	if n < 0 {
		return 0
	}
	if c.bad || n > len(c.b)/size {
		c.bad = true
		return 0
	}
	return n
}

func (c *cursor) string() string        { return string(c.take(int(c.int16()))) }
func (c *cursor) compactString() string { return string(c.take(max(0, int(c.uvarint())-1))) }

// tags passes over the tagged fields that end each part of a flexible message.
func (c *cursor) tags() { c.eachTag(func(uint32, cursor) {}) }

// eachTag hands the tagged fields over.
func (c *cursor) eachTag(fn func(tag uint32, field cursor)) {
	for range c.uvarint() {
		tag := c.uvarint()
		field := c.take(int(c.uvarint()))
		if c.bad {
			return
		}
		fn(tag, cursor{b: field})
	}
}
