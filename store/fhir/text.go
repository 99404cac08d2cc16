package fhir

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// A string is passed by eight bytes at a time. The lowest bit that special
// leaves marks the first byte that ends a run of plain ASCII: a quote, a
// backslash, a control character, or part of something wider. Bits above it may
// come from a borrow and say nothing.
const (
	ones   = 0x0101010101010101
	highs  = 0x80 * ones
	blanks = ' ' * ones
	quotes = '"' * ones
	slants = '\\' * ones
)

func special(w uint64) uint64 {
	return (w | (w - blanks) | ((w ^ quotes) - ones) | ((w ^ slants) - ones)) & highs
}

// text reads a string from behind its opening quote to behind the closing one.
func (s *Scanner) text(i int) (end int, escaped bool) {
	src, start, wide := s.src, i, false
	for {
		for i+8 <= len(src) {
			if m := special(binary.LittleEndian.Uint64(src[i:])); m != 0 {
				i += bits.TrailingZeros64(m) >> 3
				break
			}
			i += 8
		}
		if i >= len(src) {
			return s.fail(i, reasonEnd), false
		}
		switch c := src[i]; {
		case c == '"':
			if wide && !utf8.Valid(src[start:i]) {
				return s.fail(start, reasonUTF8), false
			}
			return i + 1, escaped
		case c == '\\':
			escaped = true
			if i = s.escape(i + 1); i < 0 {
				return i, false
			}
		case c < ' ':
			return s.fail(i, reasonControl), false
		default:
			wide = wide || c >= utf8.RuneSelf
			i++
		}
	}
}

// escape reads an escape sequence from behind its backslash. A surrogate needs
// its other half: without it there is no character, and clients differ on what
// they make of it.
func (s *Scanner) escape(i int) int {
	if i >= len(s.src) {
		return s.fail(i, reasonEnd)
	}
	switch s.src[i] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 1
	case 'u':
	default:
		return s.fail(i, reasonEscape)
	}
	r := hex4(s.src[i+1:])
	switch {
	case r < 0:
		return s.fail(i, reasonEscape)
	case !utf16.IsSurrogate(r):
		return i + 5
	}
	rest := s.src[i+5:]
	if len(rest) < 2 || rest[0] != '\\' || rest[1] != 'u' ||
		utf16.DecodeRune(r, hex4(rest[2:])) == utf8.RuneError {
		return s.fail(i, reasonSurrogate)
	}
	return i + 11
}

// hex4 reads four hexadecimal digits, -1 if there are none.
func hex4(b []byte) rune {
	if len(b) < 4 {
		return -1
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}
