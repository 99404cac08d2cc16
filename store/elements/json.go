package elements

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"

	"tidemark/store/internal/compact"
)

// A member is a "name":value of an object, as places in its text: the name with
// its quotes is from name to colon, the value from behind that to end.
type member struct{ name, colon, end int }

// members calls fn for each member of the object at i, until it says false, and
// returns the place behind the object, or behind the last member seen.
func members(b []byte, i int, fn func(m member) bool) int {
	for i++; b[i] != '}'; {
		m := member{name: i, colon: compact.SkipText(b, i)}
		m.end = compact.Skip(b, m.colon+1)
		if !fn(m) {
			return m.end
		}
		if i = m.end; b[i] == ',' {
			i++
		}
	}
	return i + 1
}

// plain is what a string says. One with escapes is written into what dst has left,
// behind its end, and lives until something is appended there.
func plain(dst, quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	b, err := jsontext.AppendUnquote(dst, quoted)
	if err != nil { // only in what no scanner has seen
		return quoted[1 : len(quoted)-1]
	}
	return b[len(dst):]
}
