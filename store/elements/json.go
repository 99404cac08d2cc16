package elements

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// The functions below walk through JSON that was validated and compacted when it
// came in (fhir.Scanner): skip takes the place where something begins and returns
// the place behind it.

// A member is a "name":value of an object, as places in its text: the name with
// its quotes is from name to colon, the value from behind that to end.
type member struct{ name, colon, end int }

// members calls fn for each member of the object at i, until it says false, and
// returns the place behind the object, or behind the last member seen.
func members(b []byte, i int, fn func(m member) bool) int {
	for i++; b[i] != '}'; {
		m := member{name: i, colon: skipText(b, i)}
		m.end = skip(b, m.colon+1)
		if !fn(m) {
			return m.end
		}
		if i = m.end; b[i] == ',' {
			i++
		}
	}
	return i + 1
}

// skip passes by a value.
func skip(b []byte, i int) int {
	switch b[i] {
	case '"':
		return skipText(b, i)
	case '{', '[':
		return skipNested(b, i)
	}
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' {
		i++
	}
	return i
}

// skipText passes by a string: it ends with a quote that has an even number of
// backslashes before it.
func skipText(b []byte, i int) int {
	for i++; ; i++ {
		i += bytes.IndexByte(b[i:], '"')
		slashes := i
		for b[slashes-1] == '\\' {
			slashes--
		}
		if (i-slashes)%2 == 0 {
			return i + 1
		}
	}
}

func skipNested(b []byte, i int) int {
	for depth := 0; ; {
		switch b[i] {
		case '"':
			i = skipText(b, i)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
		i++
	}
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
