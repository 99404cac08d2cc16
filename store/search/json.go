package search

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"

	"tidemark/store/compact"
)

// The functions below walk through JSON as package compact does.

// members calls fn for each member of the object at i, with its name's bytes and
// the place of its value; fn returns the place behind that.
func members(b []byte, i int, fn func(name []byte, at int) int) int {
	if b[i+1] == '}' {
		return i + 2
	}
	for b[i] != '}' {
		from := i + 2 // behind { or , and the quote
		end := compact.SkipText(b, from-1)
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
		end := compact.Skip(v, i)
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
		end := compact.Skip(v, at)
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
