package decode

import (
	"bytes"
	"io"

	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// A node is a value whose members or elements, and those within them, were noted when its
// document was validated: to read some of them is not to pass by the others. One of these is
// a resource, mostly, which is most of the document and takes long to pass by. The zero node:
// there is none, or it is null.
type node struct {
	value
	document value
	within   []fhir.Field // each before those within it
}

// nodes validates JSON of any kind. The scanner's errors are ours and hold nothing of it.
func (c *changes) nodes(src []byte) (node, error) {
	s := c.scanners.Get().(*fhir.Scanner)
	defer c.scanners.Put(s)
	text, fields, err := s.Fields(src, c.depth)
	return node{text, text, fields}, err
}

// fields calls fn for each of a node's own, until it fails. Of an element the name is nil.
func (n node) fields(fn func(name []byte, is node) error) error {
	if len(n.within) == 0 {
		return n.walk(fn)
	}
	for rest := n.within; len(rest) > 0; {
		f, end := rest[0], 1
		for end < len(rest) && rest[end].Depth > f.Depth {
			end++
		}
		var name []byte
		if f.Name < f.Colon {
			name = n.document[f.Name:f.Colon]
		}
		if err := fn(name, node{n.document[f.Colon+1 : f.End], n.document, rest[1:end]}); err != nil {
			return err
		}
		rest = rest[end:]
	}
	return nil
}

// walk is fields of what lies deeper than was noted.
func (n node) walk(fn func(name []byte, is node) error) (err error) {
	switch v := n.value; {
	case v.isObject():
		compact.Members(v, 0, func(m compact.Member) bool {
			err = fn(v[m.Name:m.Colon], node{value: v[m.Colon+1 : m.End]})
			return err == nil
		})
	case v.isList():
		for i := 1; v[i] != ']' && err == nil; {
			end := compact.Skip(v, i)
			err = fn(nil, node{value: v[i:end]})
			if i = end; v[i] == ',' {
				i++
			}
		}
	}
	return err
}

// read takes members of an object by their names, into places in the same order. What is
// null is as good as missing. The answer is false if one of them comes twice: readers differ
// on which counts.
func (n node) read(names []string, into []node) bool {
	return n.readAs(names, into, func(name []byte, wanted string) bool { return string(name) == wanted })
}

// readFold is read for names in whatever case of letters.
func (n node) readFold(names []string, into []node) bool {
	return n.readAs(names, into, func(name []byte, wanted string) bool { return bytes.EqualFold(name, []byte(wanted)) })
}

func (n node) readAs(names []string, into []node, is func(name []byte, wanted string) bool) bool {
	clear(into)
	if !n.isObject() {
		return true
	}
	once := true
	_ = n.fields(func(name []byte, v node) error { // fn does not fail
		name = compact.Plain(nil, name)
		for i, wanted := range names {
			if is(name, wanted) {
				once = once && into[i].value == nil
				into[i] = v
			}
		}
		return nil
	})
	for i := range into {
		if into[i].none() {
			into[i] = node{}
		}
	}
	return once
}

// member is one of an object's by name; the zero node if there is none.
func (n node) member(name string) node {
	var at [1]node
	n.read([]string{name}, at[:])
	return at[0]
}

// at follows names through objects.
func (n node) at(names ...string) node {
	for _, name := range names {
		n = n.member(name)
	}
	return n
}

// each calls fn for each element of a list, until it fails.
func (n node) each(fn func(element node) error) error {
	if !n.isList() {
		return nil
	}
	return n.fields(func(_ []byte, v node) error { return fn(v) })
}

// first is a list's first element; the zero node if there is none.
func (n node) first() (first node) {
	_ = n.each(func(element node) error {
		first = element
		return io.EOF
	})
	return first
}
