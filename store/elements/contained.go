package elements

import (
	"tidemark/store/compact"
)

// maxInside is of how many contained resources it is found out which are referred
// to; more than any resource has that somebody means to be read. Beyond it they
// all stay or go together.
const maxInside = 64

// Inside are the contained resources of a resource. It lives on the stack: claims
// come by the million, and each contains some.
type inside struct {
	list  []byte
	n     int
	text  [maxInside]span
	id    [maxInside]span // with its quotes; empty where there is none
	stays [maxInside]bool
	known bool // list is read: most often nothing refers to it
	more  bool // than maxInside
	any   bool // stays
}

// A span is a part of inside.list.
type span struct{ from, to int }

// appendContained appends what stays of the contained resources, a member: those
// that an element that is kept refers to, and those that they refer to. The others
// were not asked for, and the resource would be invalid with them (FHIR R4, dom-3).
func (c *cut) appendContained(m compact.Member, empty *bool) {
	in := inside{list: c.line[m.Colon+1 : m.End]}
	compact.Members(c.line, 0, func(m compact.Member) bool {
		if c.keep.holds(compact.Plain(c.dst, c.line[m.Name:m.Colon])) {
			in.reach(c.dst, c.line[m.Colon+1:m.End])
		}
		return true
	})
	if !in.any {
		return
	}
	c.comma(empty)
	c.dst = append(c.dst, c.line[m.Name:m.Colon+1]...)
	if in.more {
		c.dst = append(c.dst, in.list...)
		return
	}
	c.dst = append(c.dst, '[')
	first := true
	for i := range in.n {
		if in.stays[i] {
			c.comma(&first)
			c.dst = append(c.dst, in.list[in.text[i].from:in.text[i].to]...)
		}
	}
	c.dst = append(c.dst, ']')
}

// read finds the resources. To what is no list nothing can refer.
func (in *inside) read(scratch []byte) {
	in.known = true
	if in.list[0] != '[' {
		return
	}
	for i := 1; in.list[i] != ']'; {
		end := compact.Skip(in.list, i)
		if in.more = in.n == maxInside; in.more {
			return
		}
		in.text[in.n] = span{i, end}
		if in.list[i] == '{' {
			in.id[in.n] = in.idOf(scratch, i)
		}
		in.n++
		if i = end; in.list[i] == ',' {
			i++
		}
	}
}

// idOf is the id of the resource at a place.
func (in *inside) idOf(scratch []byte, at int) (id span) {
	compact.Members(in.list, at, func(m compact.Member) bool {
		if in.list[m.Colon+1] == '"' && string(compact.Plain(scratch, in.list[m.Name:m.Colon])) == "id" {
			id = span{m.Colon + 1, m.End}
		}
		return true
	})
	return id
}

// reach lets those stay that a text refers to, and those that they refer to.
func (in *inside) reach(scratch, text []byte) {
	for i := 0; i < len(text); {
		if text[i] != '"' {
			i++
			continue
		}
		end := compact.SkipText(text, i)
		if end+1 < len(text) && text[end] == ':' && text[end+1] == '"' && string(compact.Plain(scratch, text[i:end])) == "reference" {
			ref := compact.Plain(scratch, text[end+1:compact.SkipText(text, end+1)])
			if len(ref) > 1 && ref[0] == '#' { // # alone is the resource itself
				in.stay(append(scratch, ref[1:]...), len(scratch))
			}
		}
		i = end
	}
}

// stay lets those stay whose id is what scratch holds from a place on, and those
// that they refer to.
func (in *inside) stay(scratch []byte, from int) {
	if !in.known {
		in.read(scratch)
	}
	if in.more {
		in.any = true
		return
	}
	for i := range in.n {
		id := in.list[in.id[i].from:in.id[i].to]
		if !in.stays[i] && len(id) > 0 && string(compact.Plain(scratch, id)) == string(scratch[from:]) {
			in.stays[i], in.any = true, true
			in.reach(scratch, in.list[in.text[i].from:in.text[i].to])
		}
	}
}
