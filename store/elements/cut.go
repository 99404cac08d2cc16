package elements

import (
	"tidemark/store/fhir"
	"tidemark/store/internal/compact"
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
	// Whether contained resources stay is found out when the first are met.
	contained, decided bool
}

func (c *cut) all() []byte {
	c.dst = append(c.dst, '{')
	empty, tagged := true, false
	end := members(c.line, 0, func(m member) bool {
		name := plain(c.dst, c.line[m.name:m.colon])
		isMeta := string(name) == "meta"
		if !isMeta && !c.stays(name) {
			return true
		}
		if !empty {
			c.dst = append(c.dst, ',')
		}
		empty = false
		if isMeta {
			tagged = true
			c.dst = append(c.dst, c.line[m.name:m.colon+1]...)
			c.dst = appendMeta(c.dst, c.line[m.colon+1:m.end])
		} else {
			c.dst = append(c.dst, c.line[m.name:m.end]...)
		}
		return true
	})
	if !tagged {
		if !empty {
			c.dst = append(c.dst, ',')
		}
		c.dst = append(c.dst, `"meta":{"tag":[`+subsetted+`]}`...)
	}
	return append(c.dst, c.line[end-1:]...)
}

// stays says whether a member is kept.
func (c *cut) stays(name []byte) bool {
	if c.keep.holds(name) {
		return true
	}
	if string(name) != "contained" {
		return false
	}
	if !c.decided {
		c.contained, c.decided = c.refersInside(), true
	}
	return c.contained
}

// refersInside says whether a member that is kept refers to a contained resource.
func (c *cut) refersInside() (found bool) {
	members(c.line, 0, func(m member) bool {
		if c.keep.holds(plain(c.dst, c.line[m.name:m.colon])) {
			found = refersInside(c.dst, c.line[m.colon+1:m.end])
		}
		return !found
	})
	return found
}

// refersInside looks for "reference":"#…", wherever it stands in v.
func refersInside(scratch, v []byte) bool {
	for i := 0; i < len(v); {
		if v[i] != '"' {
			i++
			continue
		}
		end := compact.SkipText(v, i)
		if end+1 < len(v) && v[end] == ':' && v[end+1] == '"' && string(plain(scratch, v[i:end])) == "reference" {
			ref := plain(scratch, v[end+1:compact.SkipText(v, end+1)])
			if len(ref) > 1 && ref[0] == '#' { // # alone is the resource itself
				return true
			}
		}
		i = end
	}
	return false
}

// appendMeta appends a meta with the tag.
func appendMeta(dst, meta []byte) []byte {
	if len(meta) == 0 || meta[0] != '{' { // no resource of ours
		return append(dst, meta...)
	}
	var tag []byte
	from, to := 0, 0
	members(meta, 0, func(m member) bool {
		if string(plain(dst, meta[m.name:m.colon])) == "tag" {
			from, to = m.colon+1, m.end
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
	members(tag, 0, func(m member) bool {
		value := tag[m.colon+1 : m.end]
		if value[0] != '"' {
			return true
		}
		switch string(plain(scratch, tag[m.name:m.colon])) {
		case "system":
			system = string(plain(scratch, value)) == subsettedSystem
		case "code":
			code = string(plain(scratch, value)) == subsettedCode
		}
		return true
	})
	return system && code
}
