package segment

import (
	"encoding/hex"
)

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
		c.B = append(append(c.B, 0), p[1:]...)
		return
	}
	c.B = append(append(c.B, byte(len(p)+1)), p...)
}

func (c *coder) readID() string {
	n := c.Take(1)[0]
	if n == 0 {
		var p [17]byte
		copy(p[1:], c.Take(16))
		return UnpackID(p[:])
	}
	return string(c.Take(int(n) - 1))
}
