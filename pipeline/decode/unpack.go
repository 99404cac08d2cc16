package decode

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"
)

// Why what is in a column is no resource.
const (
	reasonBody     = "body is neither JSON nor gzip nor base64 or hexadecimal digits of these"
	reasonBodySize = "body is larger than the limit for records (kafka.max_record) when it is unpacked"
)

// unpack is the resource in a column: JSON; or gzip, of UTF-8 or UTF-16, as bytes, base64 or
// hexadecimal digits.
func (c *changes) unpack(column cell) ([]byte, fault) {
	b := column.text
	if column.kind == isText && !startsObject(b) {
		var ok bool
		if b, ok = digits(b); !ok {
			return nil, reasonBody
		}
	}
	if bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		var reason fault
		if b, reason = c.inflate(b); reason != "" {
			return nil, reason
		}
	}
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	b = bytes.TrimPrefix(b, []byte("\xff\xfe"))
	if len(b) >= 2 && b[1] == 0 {
		b = fromUTF16(b)
	}
	if !startsObject(b) {
		return nil, reasonBody
	}
	return b, ""
}

// digits are the bytes that hexadecimal digits or base64 stand for. What may be either is the
// first: base64 of gzip or of JSON never is.
func digits(text []byte) ([]byte, bool) {
	if len(bytes.Trim(text, "0123456789abcdefABCDEF")) > 0 {
		return base64Text(text)
	}
	b := make([]byte, hex.DecodedLen(len(text)))
	_, err := hex.Decode(b, text)
	return b, err == nil
}

// An inflater reads gzip; what it needs for that is many times what most resources need.
type inflater struct {
	from bytes.Reader
	gzip gzip.Reader
	to   bytes.Buffer
}

// maxInflated bounds what an inflater keeps for the next resource.
const maxInflated = 1 << 20

func (c *changes) inflate(b []byte) ([]byte, fault) {
	z := c.inflaters.Get().(*inflater)
	defer c.inflaters.Put(z)
	defer z.forget()
	z.from.Reset(b)
	if z.gzip.Reset(&z.from) != nil {
		return nil, reasonBody
	}
	n, err := z.to.ReadFrom(io.LimitReader(&z.gzip, c.maxRecord+1))
	switch {
	case err != nil:
		return nil, reasonBody
	case n > c.maxRecord:
		return nil, reasonBodySize
	}
	return bytes.Clone(z.to.Bytes()), ""
}

// forget is called before the next resource.
func (z *inflater) forget() {
	z.from.Reset(nil)
	if z.to.Reset(); z.to.Cap() > maxInflated {
		z.to = bytes.Buffer{}
	}
}

func startsObject(b []byte) bool {
	b = bytes.TrimLeft(b, " \t\r\n")
	return len(b) > 0 && b[0] == '{'
}

// fromUTF16 reads little-endian UTF-16.
func fromUTF16(b []byte) []byte {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	out := make([]byte, 0, len(b))
	for _, r := range utf16.Decode(units) {
		out = utf8.AppendRune(out, r)
	}
	return out
}
