package elements

import (
	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// The tag of a resource that is not whole (FHIR R4, "_elements": it must not be
// written over the whole one).
const (
	subsettedSystem = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
	subsettedCode   = "SUBSETTED"
	subsetted       = `{"system":"` + subsettedSystem + `","code":"` + subsettedCode + `"}`
)

// Append appends the cut resource to dst. line is what a fhir.Scanner made of it,
// Resource.Body, also with meta.versionId and meta.lastUpdated injected; t is its
// type. What follows the resource, as a newline, stays.
//
// The tag SUBSETTED is in every one, also where there was nothing to cut: it then
// depends on the request alone, and nobody takes a line for the whole resource
// because this one happened to be short.
func (p *Projection) Append(dst, line []byte, t fhir.Type) []byte {
	if p == nil {
		return append(dst, line...)
	}
	c := cut{dst: dst, line: line, keep: p.selection(t)}
	return c.all()
}

// selection is that of a type; those that the table lacks keep what all do.
func (p *Projection) selection(t fhir.Type) *selection {
	if int(t) >= len(p.keep) {
		t = 0
	}
	return &p.keep[t]
}

// A cut is one resource under the knife.
type cut struct {
	dst, line []byte
	keep      *selection
}

func (c *cut) all() []byte {
	c.dst = append(c.dst, '{')
	empty, tagged := true, false
	end := compact.Members(c.line, 0, func(m compact.Member) bool {
		name := compact.Plain(c.dst, c.line[m.Name:m.Colon])
		switch {
		case string(name) == "meta":
			tagged = true
			c.comma(&empty)
			c.dst = append(c.dst, c.line[m.Name:m.Colon+1]...)
			c.dst = appendMeta(c.dst, c.line[m.Colon+1:m.End])
		case c.keep.holds(name):
			c.comma(&empty)
			c.dst = append(c.dst, c.line[m.Name:m.End]...)
		case string(name) == "contained":
			c.appendContained(m, &empty)
		}
		return true
	})
	if !tagged {
		c.comma(&empty)
		c.dst = append(c.dst, `"meta":{"tag":[`+subsetted+`]}`...)
	}
	return append(c.dst, c.line[end-1:]...)
}

// comma divides a member from the one before it.
func (c *cut) comma(empty *bool) {
	if !*empty {
		c.dst = append(c.dst, ',')
	}
	*empty = false
}

// appendMeta appends a meta with the tag.
func appendMeta(dst, meta []byte) []byte {
	if len(meta) == 0 || meta[0] != '{' { // no resource of ours
		return append(dst, meta...)
	}
	var tag []byte
	from, to := 0, 0
	compact.Members(meta, 0, func(m compact.Member) bool {
		if string(compact.Plain(dst, meta[m.Name:m.Colon])) == "tag" {
			from, to = m.Colon+1, m.End
			tag = meta[from:to]
		}
		return tag == nil
	})
	switch {
	case tag == nil:
		dst = append(dst, meta[:len(meta)-1]...)
		if len(meta) > len("{}") {
			dst = append(dst, ',')
		}
		return append(dst, `"tag":[`+subsetted+`]}`...)
	case hasTag(dst, tag):
		return append(dst, meta...)
	}
	dst = appendTag(append(dst, meta[:from]...), tag)
	return append(dst, meta[to:]...)
}

// appendTag appends the value of meta.tag with ours at its end. It should be a
// list, and the scanner lets pass one that is null, or a tag without a list.
func appendTag(dst, tag []byte) []byte {
	switch tag[0] {
	case '[':
		dst = append(dst, tag[:len(tag)-1]...)
		if len(tag) > len("[]") {
			dst = append(dst, ',')
		}
	case '{':
		dst = append(append(append(dst, '['), tag...), ',')
	default:
		dst = append(dst, '[')
	}
	return append(dst, subsetted+"]"...)
}

// hasTag says whether ours is among the tags. It looks through lists, as the
// scanner does for fhir.Resource.Subsetted.
func hasTag(scratch, tag []byte) bool {
	switch tag[0] {
	case '{':
		return isSubsetted(scratch, tag)
	case '[':
		for i := 1; tag[i] != ']'; {
			end := compact.Skip(tag, i)
			if hasTag(scratch, tag[i:end]) {
				return true
			}
			if i = end; tag[i] == ',' {
				i++
			}
		}
	}
	return false
}

func isSubsetted(scratch, tag []byte) bool {
	system, code := false, false
	compact.Members(tag, 0, func(m compact.Member) bool {
		value := tag[m.Colon+1 : m.End]
		if value[0] != '"' {
			return true
		}
		switch string(compact.Plain(scratch, tag[m.Name:m.Colon])) {
		case "system":
			system = string(compact.Plain(scratch, value)) == subsettedSystem
		case "code":
			code = string(compact.Plain(scratch, value)) == subsettedCode
		}
		return true
	})
	return system && code
}
