// Package varint codes the numbers of segment directories and of the index.
package varint

import "encoding/binary"

// A Coder appends numbers to B, or takes them from its front. Reading beyond
// the end, or a value that cannot be, sets Bad, which is asked once at the end.
type Coder struct {
	B   []byte
	Bad bool
}

// Uint appends v as LEB128.
func (c *Coder) Uint(v uint64) { c.B = binary.AppendUvarint(c.B, v) }

// Int appends v as zigzag LEB128.
func (c *Coder) Int(v int64) { c.B = binary.AppendVarint(c.B, v) }

// ReadUint is the inverse of Uint.
func (c *Coder) ReadUint() uint64 {
	v, n := binary.Uvarint(c.B)
	if n <= 0 {
		c.Bad = true
		return 0
	}
	c.B = c.B[n:]
	return v
}

// ReadInt is the inverse of Int.
func (c *Coder) ReadInt() int64 {
	v, n := binary.Varint(c.B)
	if n <= 0 {
		c.Bad = true
		return 0
	}
	c.B = c.B[n:]
	return v
}

// Take takes n bytes. Where so many are not left they are zeros, 16 at most:
// enough for what has a fixed width.
func (c *Coder) Take(n int) []byte {
	if n < 0 || n > len(c.B) {
		c.Bad = true
		return make([]byte, min(max(n, 0), 16))
	}
	t := c.B[:n]
	c.B = c.B[n:]
	return t
}

// Count reads a number of things that take at least a byte each, so that a
// damaged one cannot make us allocate more than what was read.
func (c *Coder) Count() int {
	n := c.ReadUint()
	if n > uint64(len(c.B)) {
		c.Bad = true
		return 0
	}
	return int(n)
}
