package search

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// The functions below walk through JSON that was validated and compacted when it
// came in (fhir.Scanner): they take the place where something begins and return
// the place behind it.

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

// members calls fn for each member of the object at i, with its name's bytes and
// the place of its value; fn returns the place behind that.
func members(b []byte, i int, fn func(name []byte, at int) int) int {
	if b[i+1] == '}' {
		return i + 2
	}
	for b[i] != '}' {
		from := i + 2 // behind { or , and the quote
		end := skipText(b, from-1)
		i = fn(plain(b[from-1:end]), end+1)
	}
	return i + 1
}

// each calls fn for a value, or for each of an array's.
func each(v []byte, fn func(v []byte)) {
	if v[0] != '[' {
		fn(v)
		return
	}
	for i := 1; v[i] != ']'; {
		end := skip(v, i)
		each(v[i:end], fn)
		if i = end; v[i] == ',' {
			i++
		}
	}
}

// member calls fn for the value of a member, for each if it is an array.
func member(v []byte, name string, fn func(v []byte)) {
	if v[0] != '{' {
		return
	}
	members(v, 0, func(n []byte, at int) int {
		end := skip(v, at)
		if string(n) == name {
			each(v[at:end], fn)
		}
		return end
	})
}

// text is what a member says that is a string, nil if there is none.
func text(v []byte, name string) (found []byte) {
	member(v, name, func(v []byte) {
		if v[0] == '"' {
			found = plain(v)
		}
	})
	return found
}

// plain is what a string says.
func plain(quoted []byte) []byte {
	raw := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	b, err := jsontext.AppendUnquote(nil, quoted)
	if err != nil {
		return raw
	}
	return b
}
