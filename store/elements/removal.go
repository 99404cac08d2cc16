package elements

import (
	"slices"
	"strings"
	"sync"

	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// A Removal is elements that are taken out of resources, whoever asks for them: the
// opposite of a Projection. It is never changed and may be shared by goroutines. A nil
// one takes nothing out.
//
// With an element go those that an invariant forbids without it, and the narrative,
// which says in words what was taken out. What else a resource contained for it goes,
// too: contained resources to which nothing refers any more. Resources inside of others
// are treated as those of their type: contained ones, and the entries of a Bundle.
type Removal struct {
	of []*branch // by the number of the type; nil: nothing
}

// A branch is what is taken out of a resource, or of an element of one.
type branch struct {
	gone  selection
	below map[string]*branch
}

// What ParseRemoval refuses beside what Parse does.
const (
	reasonUntyped   = "it does not say of which resource type: right is ExplanationOfBenefit.total"
	reasonMandatory = "a resource without it would be invalid, or mean something else: withhold the resource with a filter instead"
	reasonBelow     = "below the root only what says amounts of money in Claim, ClaimResponse and ExplanationOfBenefit can be taken out, where FHIR R4 does not demand it: such as Claim.item.net"
)

// ParseRemoval understands elements that are to be taken out: each is Type.element, an
// element at the root, or one of those below it that are money.
func ParseRemoval(values []string) (*Removal, []Fault) {
	if len(values) == 0 {
		return nil, nil
	}
	r := &Removal{of: make([]*branch, len(table()))}
	var faults []Fault
	for _, value := range values {
		if reason := r.add(value); reason != "" {
			faults = append(faults, Fault{value, reason})
		}
	}
	return r, faults
}

func (r *Removal) add(value string) (reason string) {
	first, path, _ := strings.Cut(value, ".")
	typ, known := fhir.ParseType(first)
	if known && strings.Contains(path, ".") {
		if !slices.Contains(money()[typ], path) {
			return reasonBelow
		}
		r.at(typ).add(strings.Split(path, "."))
		return ""
	}
	e, reason := parseEntry(value)
	if reason != "" {
		return reason
	}
	if e.typ == 0 {
		return reasonUntyped
	}
	found, ok := e.in(e.typ)
	if !ok {
		return missing(e.typ)
	}
	if least()[e.typ].has(found) {
		return reasonMandatory
	}
	gone := &r.at(e.typ).gone
	gone.add(found)
	for _, own := range table()[e.typ] {
		if own.beside == found.name {
			gone.add(own)
		}
	}
	return ""
}

// has says whether an element, or the choice of which it is one name, is in the lists.
func (s *selection) has(e element) bool {
	return s.named([]byte(e.name)) || slices.Contains(s.stems, e.name)
}

// at is what is taken out of a type.
func (r *Removal) at(t fhir.Type) *branch {
	if r.of[t] == nil {
		r.of[t] = &branch{gone: selection{names: []string{"text"}}}
	}
	return r.of[t]
}

func (b *branch) add(path []string) {
	if len(path) == 1 {
		b.gone.add(element{name: path[0]})
		return
	}
	if b.below == nil {
		b.below = map[string]*branch{}
	}
	if b.below[path[0]] == nil {
		b.below[path[0]] = &branch{}
	}
	b.below[path[0]].add(path[1:])
}

// money is the elements below the root that are amounts of money, or from which these
// follow, and of which there need be none (FHIR R4, definitions of the three types). In
// a ClaimResponse its adjudications are mandatory, and not their amounts.
var money = sync.OnceValue(func() map[fhir.Type][]string {
	each := func(parents, names string) (paths []string) {
		for parent := range strings.FieldsSeq(parents) {
			for name := range strings.FieldsSeq(names) {
				paths = append(paths, parent+"."+name)
			}
		}
		return paths
	}
	const items, added = "item item.detail item.detail.subDetail", "addItem addItem.detail addItem.detail.subDetail"
	const price = "unitPrice factor net"
	all := map[fhir.Type][]string{}
	for name, paths := range map[string][]string{
		"Claim":                each(items, price),
		"ExplanationOfBenefit": append(each(items+" "+added, price+" adjudication"), "benefitBalance.financial"),
		"ClaimResponse":        append(each(added, price), each(items+" "+added, "adjudication.amount adjudication.value")...),
	} {
		t, _ := fhir.ParseType(name)
		all[t] = paths
	}
	return all
})

// whole keeps all but the contained resources to which nothing refers.
var whole = selection{names: []string{"contained"}, rest: true}

// Append appends what is left of a resource, as Projection.Append takes it. The tag
// SUBSETTED is in every one of a type of which something is taken out, also where there
// was nothing of it.
func (r *Removal) Append(dst, line []byte, t fhir.Type) []byte {
	if r == nil {
		return append(dst, line...)
	}
	from := len(dst)
	dst, cut := r.resource(dst, line, t)
	if !cut {
		dst = append(dst[:from], line...)
	}
	return dst
}

// resource appends what is left of one, and tells whether it is less than there was.
func (r *Removal) resource(dst, line []byte, t fhir.Type) ([]byte, bool) {
	var b *branch
	if int(t) < len(r.of) {
		b = r.of[t]
	}
	from, subsetted := len(dst), b != nil
	dst = append(dst, '{')
	empty := true
	end := compact.Members(line, 0, func(m compact.Member) bool {
		name := compact.Plain(dst, line[m.Name:m.Colon])
		if b != nil && b.gone.named(name) {
			return true
		}
		within := b.under(name)
		deep := string(name) == "contained" || holdsResources(t)
		dst = between(dst, &empty)
		dst = append(dst, line[m.Name:m.Colon+1]...)
		value := line[m.Colon+1 : m.End]
		switch {
		case within != nil:
			dst = within.value(dst, value)
		case deep:
			var cut bool
			dst, cut = r.inside(dst, value)
			subsetted = subsetted || cut
		default:
			dst = append(dst, value...)
		}
		return true
	})
	dst = append(dst, line[end-1:]...)
	if !subsetted {
		return dst, false
	}
	mid := len(dst)
	c := cut{dst: dst, line: dst[from:mid], keep: &whole}
	dst = c.all()
	return append(dst[:from], dst[mid:]...), true
}

// holdsResources tells whether resources stand in elements of a type.
func holdsResources(t fhir.Type) bool { return t == bundleType || t == parametersType }

var (
	bundleType, _     = fhir.ParseType("Bundle")
	parametersType, _ = fhir.ParseType("Parameters")
)

// inside appends a value in which resources may stand.
func (r *Removal) inside(dst, value []byte) ([]byte, bool) {
	less := false
	switch value[0] {
	case '[':
		dst = append(dst, '[')
		empty := true
		for i := 1; value[i] != ']'; {
			end := compact.Skip(value, i)
			var cut bool
			dst, cut = r.inside(between(dst, &empty), value[i:end])
			less = less || cut
			if i = end; value[i] == ',' {
				i++
			}
		}
		return append(dst, ']'), less
	case '{':
		if t := typeIn(dst, value); t != 0 {
			from := len(dst)
			if dst, less = r.resource(dst, value, t); !less {
				dst = append(dst[:from], value...)
			}
			return dst, less
		}
		dst = append(dst, '{')
		empty := true
		compact.Members(value, 0, func(m compact.Member) bool {
			dst = append(between(dst, &empty), value[m.Name:m.Colon+1]...)
			var cut bool
			dst, cut = r.inside(dst, value[m.Colon+1:m.End])
			less = less || cut
			return true
		})
		return append(dst, '}'), less
	}
	return append(dst, value...), false
}

// typeIn is the type of the resource that an object is; 0 if it is none.
func typeIn(scratch, object []byte) (t fhir.Type) {
	compact.Members(object, 0, func(m compact.Member) bool {
		if object[m.Colon+1] == '"' && string(compact.Plain(scratch, object[m.Name:m.Colon])) == "resourceType" {
			t, _ = fhir.ParseType(string(compact.Plain(scratch, object[m.Colon+1:m.End])))
		}
		return t == 0
	})
	return t
}

// under is what is taken out of an element.
func (b *branch) under(name []byte) *branch {
	if b == nil {
		return nil
	}
	return b.below[string(name)]
}

// value appends what is left of an element, or of each of a list.
func (b *branch) value(dst, value []byte) []byte {
	switch value[0] {
	case '[':
		dst = append(dst, '[')
		empty := true
		for i := 1; value[i] != ']'; {
			end := compact.Skip(value, i)
			dst = b.value(between(dst, &empty), value[i:end])
			if i = end; value[i] == ',' {
				i++
			}
		}
		return append(dst, ']')
	case '{':
		dst = append(dst, '{')
		empty := true
		compact.Members(value, 0, func(m compact.Member) bool {
			name := compact.Plain(dst, value[m.Name:m.Colon])
			if b.gone.named(name) {
				return true
			}
			within := b.under(name)
			dst = append(between(dst, &empty), value[m.Name:m.Colon+1]...)
			if within != nil {
				dst = within.value(dst, value[m.Colon+1:m.End])
			} else {
				dst = append(dst, value[m.Colon+1:m.End]...)
			}
			return true
		})
		return append(dst, '}')
	}
	return append(dst, value...)
}

// between appends what divides a member from the one before it.
func between(dst []byte, empty *bool) []byte {
	if !*empty {
		dst = append(dst, ',')
	}
	*empty = false
	return dst
}

// Inside calls fn for the resources that stand inside of one, as deep as they stand:
// contained ones, and those in a Bundle or in Parameters.
func Inside(line []byte, t fhir.Type, fn func(t fhir.Type, resource []byte)) {
	compact.Members(line, 0, func(m compact.Member) bool {
		if holdsResources(t) || string(compact.Plain(nil, line[m.Name:m.Colon])) == "contained" {
			within(line[m.Colon+1:m.End], fn)
		}
		return true
	})
}

func within(value []byte, fn func(t fhir.Type, resource []byte)) {
	switch value[0] {
	case '[':
		for i := 1; value[i] != ']'; {
			end := compact.Skip(value, i)
			within(value[i:end], fn)
			if i = end; value[i] == ',' {
				i++
			}
		}
	case '{':
		if t := typeIn(nil, value); t != 0 {
			fn(t, value)
			Inside(value, t, fn)
			return
		}
		compact.Members(value, 0, func(m compact.Member) bool {
			within(value[m.Colon+1:m.End], fn)
			return true
		})
	}
}
