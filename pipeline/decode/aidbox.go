package decode

import (
	_ "embed"
	"slices"
	"strings"
	"sync"

	"tidemark/store/compact"
)

//go:generate go run ./gen -jar $FHIR_R4_JAR -out choices.txt

//go:embed choices.txt
var choicesText string

// An elementKind is what elements of a name are in FHIR.
type elementKind struct {
	types     []string // of a choice
	reference bool     // some of that name are references
}

// elementKinds are the elements that Aidbox writes in a way of its own, by name.
var elementKinds = sync.OnceValue(func() map[string]elementKind {
	kinds := map[string]elementKind{}
	for line := range strings.Lines(choicesText) {
		words := strings.Fields(line)
		if words[0] == "#" {
			continue
		}
		k := elementKind{types: words[1:]}
		if k.types[0] == "&" {
			k.types, k.reference = k.types[1:], true
		}
		k.reference = k.reference || slices.Contains(k.types, referenceType)
		kinds[words[0]] = k
	}
	return kinds
})

const referenceType = "Reference"

// fromAidbox makes FHIR of a resource in Aidbox's format: there a reference has type and id
// apart, and a choice is an object whose member says the type. What Aidbox calls first-class
// extensions are attributes of a site's own, which nothing tells from elements: they stay as
// they are.
func fromAidbox(_ *changes, s *said) fault {
	s.body = appendAidbox(make([]byte, 0, len(s.body)+64), s.body, "contained") // a whole resource, and no reference
	return ""
}

// appendAidbox appends the value of an element of some name as FHIR has it.
func appendAidbox(b []byte, v value, name string) []byte {
	switch {
	case v.isList():
		return appendAidboxList(b, v, name)
	case !v.isObject():
		return append(b, v...)
	}
	if name != "contained" {
		if ref := aidboxReference(v, name); ref != nil {
			return ref.appendTo(b)
		}
	}
	b = append(b, '{')
	open := len(b)
	compact.Members(v, 0, func(m compact.Member) bool {
		if len(b) > open {
			b = append(b, ',')
		}
		name, inner := string(v[m.Name+1:m.Colon-1]), value(v[m.Colon+1:m.End])
		if typed := appendChoice(b, name, inner); typed != nil {
			b = typed
			return true
		}
		b = append(b, v[m.Name:m.Colon+1]...)
		b = appendAidbox(b, inner, name)
		return true
	})
	return append(b, '}')
}

func appendAidboxList(b []byte, v value, name string) []byte {
	b = append(b, '[')
	open := len(b)
	_ = node{value: v}.each(func(e node) error { // fn does not fail
		if len(b) > open {
			b = append(b, ',')
		}
		b = appendAidbox(b, e.value, name)
		return nil
	})
	return append(b, ']')
}

// appendChoice appends the members that FHIR has for a choice, {"value": {"string": "x"}} as
// "valueString": "x"; nil if it is none. What is said of a primitive value beside it stands
// under its name with an underscore.
func appendChoice(b []byte, name string, v value) []byte {
	kind, known := elementKinds()[name]
	if !known || !v.isObject() || members(v) > 2 {
		return nil
	}
	typ, is, first := "", true, true
	compact.Members(v, 0, func(m compact.Member) bool {
		member := strings.TrimPrefix(string(v[m.Name+1:m.Colon-1]), "_")
		is = slices.Contains(kind.types, member) && (typ == "" || typ == member)
		typ = member
		return is
	})
	if !is || typ == "" {
		return nil
	}
	compact.Members(v, 0, func(m compact.Member) bool {
		if !first {
			b = append(b, ',')
		}
		b, first = append(b, '"'), false
		if v[m.Name+1] == '_' {
			b = append(b, '_')
		}
		b = append(append(append(b, name...), strings.ToUpper(typ[:1])...), typ[1:]...)
		b = appendAidbox(append(b, '"', ':'), v[m.Colon+1:m.End], name)
		return true
	})
	return b
}

// An aidboxRef is a reference: what it says, and its other members.
type aidboxRef struct {
	typ, id, uri, local []byte
	rest                []byte // each with a comma before it
}

// aidboxReference reads a reference; nil if v is none.
func aidboxReference(v value, name string) *aidboxRef {
	var ref aidboxRef
	is := true
	compact.Members(v, 0, func(m compact.Member) bool {
		inner := value(v[m.Colon+1 : m.End])
		switch string(v[m.Name+1 : m.Colon-1]) {
		case "resourceType":
			ref.typ = inner.text()
		case "id":
			ref.id = inner.text()
		case "uri":
			ref.uri = inner.text()
		case "localRef":
			ref.local = inner.text()
		case "display", "type", "extension", "_display", "_type":
			ref.rest = appendAidbox(append(append(ref.rest, ','), v[m.Name:m.Colon+1]...), inner, "")
		case "identifier":
			if !inner.isObject() { // of a resource it is a list
				is = false
			}
			ref.rest = appendAidbox(append(append(ref.rest, ','), v[m.Name:m.Colon+1]...), inner, "")
		default:
			is = false
		}
		return is
	})
	switch {
	case !is:
		return nil
	case ref.typ != nil && ref.id != nil, (ref.uri != nil || ref.local != nil) && elementKinds()[name].reference:
		return &ref
	}
	return nil
}

func (r *aidboxRef) appendTo(b []byte) []byte {
	b = append(b, `{"reference":`...)
	switch {
	case r.local != nil:
		b = quote(b, "#"+strings.TrimPrefix(string(r.local), "#"))
	case r.uri != nil:
		b = quote(b, string(r.uri))
	default:
		b = quote(b, string(r.typ)+"/"+string(r.id))
	}
	return append(append(b, r.rest...), '}')
}
