// Package elements cuts resources to the root elements that a client asked for:
// the _elements parameter of a Bulk Data export, as in Patient.name or id.
//
// It cuts bytes: what stays is copied as it stands, so numbers keep their text,
// members their order, and what is unknown its place. It knows the root elements
// of FHIR R4 from HL7's own definitions (elements.txt, made by gen), and refuses
// to know anything below them.
//
// What is always kept: resourceType, id, meta, implicitRules, modifierExtension,
// elements of which there must be one, and modifier elements, for without these
// others mean something else. The specification of _elements asks for the
// mandatory ones and leaves the rest to the server. Mandatory is also what an
// invariant demands, as one of identifier and name of an Organization (org-1): a
// resource that is cut stays valid. One exception is a Bundle that is a document
// or a message, which invariants would keep whole.
//
// Contained resources are an element as others are, with one exception: those stay
// to which an element that stays refers, and those to which these refer. A
// medication that is only a link to nowhere would be no medication, and the
// resource would be invalid (ref-1).
package elements

import (
	"slices"
	"strings"

	"tidemark/store/fhir"
)

// A Projection is what _elements asks for. It is never changed and may be shared
// by goroutines. A nil one stands for no _elements: it cuts nothing.
type Projection struct {
	entries []entry
	// By the number of the type: whether some entry applies to it, what stays of it.
	asked []bool
	keep  []selection
}

// An entry is one value of the parameter: an element of one type, or of all types
// that have it.
type entry struct {
	value string
	typ   fhir.Type // 0 for all
	name  string
}

// A Fault says why a value is refused. The value is the client's text, the reason
// holds nothing of it but names of FHIR.
type Fault struct{ Value, Reason string }

// What Parse and Unmet refuse.
const (
	reasonEmpty   = "there is nothing where an element should be"
	reasonNested  = "only root elements can be asked for, as in Patient.name"
	reasonType    = "what stands before the dot is not a resource type of FHIR R4 (4.0.1)"
	reasonBare    = "it is a resource type without an element: right is Patient.name"
	reasonNowhere = "no resource type of FHIR R4 (4.0.1) has such a root element"
	reasonUnmet   = "no resource type that is asked for has this element"
)

// Parse understands the values of _elements: each is Type.element, element, or a
// list of these with commas. A choice is named as FHIR does (value or value[x],
// which is all of its JSON names) or by a JSON name (valueQuantity, which is that
// one). Values that are refused are not part of the projection; when none is left
// it is nil.
func Parse(values []string) (*Projection, []Fault) {
	p := &Projection{asked: make([]bool, len(least())), keep: slices.Clone(least())}
	var faults []Fault
	for _, list := range values {
		for value := range strings.SplitSeq(list, ",") {
			e, reason := parseEntry(strings.TrimSpace(value))
			if reason == "" && !p.add(e) {
				reason = missing(e.typ)
			}
			if reason != "" {
				faults = append(faults, Fault{e.value, reason})
			}
		}
	}
	if len(p.entries) == 0 {
		return nil, faults
	}
	return p, faults
}

func parseEntry(value string) (e entry, reason string) {
	e = entry{value: value, name: value}
	if value == "" {
		return e, reasonEmpty
	}
	first, rest, dotted := strings.Cut(value, ".")
	typ, known := fhir.ParseType(first)
	switch {
	case !dotted && known:
		return e, reasonBare
	case !dotted:
		return e, ""
	case strings.Contains(rest, "."), !known && !capital(first):
		return e, reasonNested
	case !known:
		return e, reasonType
	case rest == "":
		return e, reasonEmpty
	}
	e.typ, e.name = typ, rest
	return e, ""
}

func missing(t fhir.Type) string {
	if t == 0 {
		return reasonNowhere
	}
	return t.String() + " has no such root element in FHIR R4 (4.0.1)"
}

// add takes an entry in, unless no type has its element.
func (p *Projection) add(e entry) bool {
	found := false
	for t := range p.keep {
		element, ok := e.in(fhir.Type(t))
		if !ok {
			continue
		}
		found = true
		if !p.asked[t] {
			p.asked[t] = true
			p.keep[t] = p.keep[t].clone()
		}
		p.keep[t].add(element)
		if other, ok := (entry{name: element.beside}).in(fhir.Type(t)); ok {
			p.keep[t].add(other)
		}
	}
	if found {
		p.entries = append(p.entries, e)
	}
	return found
}

// in finds what an entry means for a type: an element, or one name of a choice.
func (e entry) in(t fhir.Type) (element, bool) {
	if e.typ != 0 && e.typ != t {
		return element{}, false
	}
	stem, isChoice := strings.CutSuffix(e.name, "[x]")
	for _, own := range table()[t] {
		switch {
		case own.name == stem && (!isChoice || own.choice != nil):
			return own, true
		case slices.Contains(own.choice, e.name):
			return element{name: e.name}, true
		}
	}
	return element{}, false
}

// Applies says whether anything of the type is asked for. Resources of the others
// are cut to what is always kept.
func (p *Projection) Applies(t fhir.Type) bool {
	return p != nil && int(t) < len(p.asked) && p.asked[t]
}

// Unmet lists the values that ask for an element that none of the types has.
func (p *Projection) Unmet(types []fhir.Type) []Fault {
	if p == nil {
		return nil
	}
	var faults []Fault
	for _, e := range p.entries {
		has := func(t fhir.Type) bool { _, ok := e.in(t); return ok }
		if !slices.ContainsFunc(types, has) {
			faults = append(faults, Fault{e.value, reasonUnmet})
		}
	}
	return faults
}

// A selection is the members of a resource that are kept.
type selection struct {
	names []string
	stems []string // of choices: all names go with it that go on with a capital letter
	rest  bool     // everything else is kept instead
}

func (s selection) clone() selection {
	return selection{slices.Clone(s.names), slices.Clone(s.stems), s.rest}
}

// add must not make the lists longer than the type's elements: holds goes through
// them for each member of each resource.
func (s *selection) add(e element) {
	list := &s.names
	if e.choice != nil {
		list = &s.stems
	}
	if !slices.Contains(*list, e.name) {
		*list = append(*list, e.name)
	}
}

// holds says whether a member stays.
func (s *selection) holds(name []byte) bool { return s.named(name) != s.rest }

// named says whether a member is in the lists. What a primitive has beside its value is in a
// sibling with an underscore (FHIR R4, "JSON representation of primitive elements").
func (s *selection) named(name []byte) bool {
	if len(name) > 0 && name[0] == '_' {
		name = name[1:]
	}
	// Comparing this way makes no string of the name.
	if slices.ContainsFunc(s.names, func(own string) bool { return string(name) == own }) {
		return true
	}
	for _, stem := range s.stems {
		if len(name) > len(stem) && string(name[:len(stem)]) == stem && capital(name[len(stem):]) {
			return true
		}
	}
	return false
}

func capital[T string | []byte](s T) bool { return len(s) > 0 && 'A' <= s[0] && s[0] <= 'Z' }
