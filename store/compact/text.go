package compact

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"unicode/utf16"
	"unicode/utf8"
)

// Strings are passed by eight bytes at a time: a resource that stands in a message as text
// has a quote with a backslash every few bytes, and a call for each of these costs more than
// the bytes between.
const (
	ones   = 0x0101010101010101
	highs  = 0x80 * ones
	quotes = '"' * ones
	slants = '\\' * ones
)

// zero marks the zero bytes of w. Above the lowest mark there may be wrong ones, from a borrow.
func zero(w uint64) uint64 { return (w - ones) & ^w & highs }

// SkipText passes by a string.
func SkipText(b []byte, i int) int {
	for i++; ; {
		for i+8 <= len(b) {
			w := binary.LittleEndian.Uint64(b[i:])
			if m := zero(w^quotes) | zero(w^slants); m != 0 {
				i += bits.TrailingZeros64(m) >> 3
				break
			}
			i += 8
		}
		switch b[i] {
		case '"':
			return i + 1
		case '\\':
			i++ // whatever follows belongs to it
		}
		i++
	}
}

// Plain is what a string says. One with escapes is written into what dst has left,
// behind its end, and lives until something is appended there.
func Plain(dst, quoted []byte) []byte {
	raw := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	return Unescape(dst, raw)[len(dst):]
}

// Unescape appends what a string says; raw is what stands between its quotes. It may write
// as far behind the end of its answer as raw is long, and eight bytes more.
func Unescape(dst, raw []byte) []byte {
	n := len(dst)
	dst = slices.Grow(dst, len(raw)+8)
	dst = dst[:cap(dst)]
	for i := 0; i < len(raw); {
		for i+8 <= len(raw) {
			w := binary.LittleEndian.Uint64(raw[i:])
			binary.LittleEndian.PutUint64(dst[n:], w)
			if m := zero(w ^ slants); m != 0 {
				plain := bits.TrailingZeros64(m) >> 3
				i, n = i+plain, n+plain
				break
			}
			i, n = i+8, n+8
		}
		switch {
		case i == len(raw):
		case raw[i] != '\\':
			dst[n] = raw[i]
			i, n = i+1, n+1
		case raw[i+1] == 'u':
			r, width := unicodeEscape(raw[i:])
			n += utf8.EncodeRune(dst[n:], r)
			i += width
		default:
			dst[n] = escaped(raw[i+1])
			i, n = i+2, n+1
		}
	}
	return dst[:n]
}

// escaped is the character that one of two characters stands for.
func escaped(c byte) byte {
	switch c {
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}

// unicodeEscape reads \uXXXX, or the two of them that make a pair of surrogates.
func unicodeEscape(b []byte) (r rune, width int) {
	if r = hex4(b[2:]); utf16.IsSurrogate(r) {
		return utf16.DecodeRune(r, hex4(b[8:])), 12
	}
	return r, 6
}

// hex4 reads four hexadecimal digits.
func hex4(b []byte) (r rune) {
	for _, c := range b[:4] {
		if c > '9' {
			c = c | 0x20 - 'a' + 10 + '0'
		}
		r = r<<4 | rune(c-'0')
	}
	return r
}
