// Package smart is SMART Backend Services for a server that only lets read
// (http://hl7.org/fhir/smart-app-launch/backend-services.html, version 2.2.0).
//
// A scope is what a client asks for and what it is told that it got; rights are what
// it may: the part of both that is about reading.
package smart

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"tidemark/store/fhir"
	"tidemark/store/search"
)

// A Right is to read resources of a type.
type Right struct {
	Type   fhir.Type // 0: all that there are and will be
	Read   bool      // r
	Search bool      // s
	// Query narrows it to what matches, as it follows the ? of a search; "": all.
	Query string

	dialect dialect // it is spoken of in
}

type dialect uint8

const (
	v2 dialect = iota
	v1         // .read and .*: they cannot say less than r and s of everything
)

// Rights are the union of several.
type Rights []Right

// ErrInvalidScope says that nothing is left of what was asked for (RFC 6749, 5.2).
var ErrInvalidScope = errors.New("no scope that was asked for can be granted")

// maxScopes is how many scopes of a request are looked at, maxConstraints how many that
// narrow the same type, and maxConstraint how long a constraint may be, bytes. A token has
// to fit into a header, and what it lets is found out for every type at each request:
// constraints are compared with one another for that.
const (
	maxScopes      = 200
	maxConstraints = 20
	maxConstraint  = 1 << 10
)

// Parse understands scopes of both dialects, with spaces between them (SMART 2.2.0,
// "Scopes for requesting FHIR Resources"). What grants no reading, or is none that we
// know, is left out: a client that asks for more than there is gets what there is.
func Parse(scopes string) (rights Rights) {
	for i, text := range strings.Fields(scopes) {
		if r, ok := parseScope(text); ok && i < maxScopes && rights.haveRoom(r) {
			rights = append(rights, r)
		}
	}
	return rights
}

// haveRoom tells whether one more would be looked at, once it is written and read again.
func (rights Rights) haveRoom(r Right) bool {
	if r.Query == "" {
		return len(rights) < maxScopes
	}
	same := 0
	for _, have := range rights {
		if have.Query != "" && have.Type == r.Type {
			same++
		}
	}
	return len(rights) < maxScopes && same < maxConstraints && len(r.Query) <= maxConstraint
}

func parseScope(text string) (r Right, ok bool) {
	text, query, constrained := strings.Cut(text, "?")
	resource, system := strings.CutPrefix(text, "system/")
	name, actions, dotted := strings.Cut(resource, ".")
	if !system || !dotted {
		return r, false
	}
	if name != "*" {
		if r.Type, ok = fhir.ParseType(name); !ok {
			return r, false
		}
	}
	switch actions {
	case "read", "*":
		r.Read, r.Search, r.dialect = true, true, v1
	default:
		if r.Read, r.Search, ok = parseActions(actions); !ok {
			return r, false
		}
	}
	if constrained {
		r.Query, r.dialect = query, v2
		if !constrains(r.Type, query) {
			return r, false
		}
	}
	return r, r.Read || r.Search
}

// parseActions understands a subset of cruds, in its order.
func parseActions(text string) (read, search, ok bool) {
	rest := "cruds"
	for _, c := range text {
		_, after, found := strings.Cut(rest, string(c))
		if !found {
			return false, false, false
		}
		rest = after
		read, search = read || c == 'r', search || c == 's'
	}
	return read, search, text != ""
}

// constrains tells whether a query can narrow resources of a type; of all types those
// parameters can that every resource has.
func constrains(t fhir.Type, query string) bool {
	if len(query) > maxConstraint {
		return false
	}
	name := "Basic" // has none of its own that begin with an underscore
	if t != 0 {
		name = t.String()
	} else if slices.ContainsFunc(strings.Split(query, "&"), func(p string) bool { return !strings.HasPrefix(p, "_") }) {
		return false
	}
	_, err := search.Parse(name+"?"+query, search.Env{})
	return err == nil
}

// Grant is what of the scopes that a client asks for it may have.
func (rights Rights) Grant(scopes string) (granted Rights, err error) {
	for _, want := range Parse(scopes) {
		for _, may := range rights {
			if r, ok := want.meet(may); ok && granted.haveRoom(r) {
				granted = granted.with(r)
			}
		}
	}
	if len(granted) == 0 {
		return nil, ErrInvalidScope
	}
	return granted, nil
}

// meet is what two rights have in common, in the dialect of the first where that can
// say it.
func (r Right) meet(o Right) (Right, bool) {
	m := Right{Type: cmp.Or(r.Type, o.Type), Read: r.Read && o.Read, Search: r.Search && o.Search, Query: both(r.Query, o.Query), dialect: r.dialect}
	if m.Query != "" || !m.Read || !m.Search {
		m.dialect = v2
	}
	return m, (r.Type == o.Type || r.Type == 0 || o.Type == 0) && (m.Read || m.Search)
}

// both is the search for what matches two.
func both(a, b string) string {
	switch {
	case a == "" || a == b:
		return b
	case b == "":
		return a
	}
	return a + "&" + b
}

// with adds a right, unless another gives all of it; and takes out what it gives.
func (rights Rights) with(r Right) Rights {
	if slices.ContainsFunc(rights, func(have Right) bool { return have.gives(r) }) {
		return rights
	}
	return append(slices.DeleteFunc(rights, r.gives), r)
}

// gives tells whether who has r has o.
func (r Right) gives(o Right) bool {
	return (r.Type == 0 || r.Type == o.Type) && (r.Read || !o.Read) && (r.Search || !o.Search) && (r.Query == "" || r.Query == o.Query)
}

// String is how the scopes of the rights are written.
func (rights Rights) String() string {
	list := make([]string, 0, len(rights))
	for _, r := range rights {
		list = append(list, r.String())
	}
	return strings.Join(list, " ")
}

func (r Right) String() string {
	text := "system/*."
	if r.Type != 0 {
		text = "system/" + r.Type.String() + "."
	}
	if r.dialect == v1 {
		return text + "read"
	}
	if r.Read {
		text += "r"
	}
	if r.Search {
		text += "s"
	}
	if r.Query != "" {
		text += "?" + r.Query
	}
	return text
}

// Reads tells whether resources of a type may be read at all, by their ids (r).
func (rights Rights) Reads(t fhir.Type) bool {
	return slices.ContainsFunc(rights, func(r Right) bool { return r.Read && r.covers(t) })
}

// Exports tells whether resources of a type may be exported, which is to find and to
// read them: r and s.
func (rights Rights) Exports(t fhir.Type) bool {
	return rights.Reads(t) && slices.ContainsFunc(rights, func(r Right) bool { return r.Search && r.covers(t) })
}

func (r Right) covers(t fhir.Type) bool { return r.Type == 0 || r.Type == t }

// Filters are the searches of which a resource of a type must match one to be
// exported; nil if all may be. To find it and to read it, one of each must let.
func (rights Rights) Filters(t fhir.Type) (queries []string) {
	for i, found := range rights {
		for k, read := range rights {
			if !found.Search || !read.Read || !found.covers(t) || !read.covers(t) {
				continue
			}
			if i != k && (found.Read || read.Search) {
				continue // the one that is both lets all of this, and comes by itself
			}
			query := both(found.Query, read.Query)
			if query == "" {
				return nil
			}
			queries = append(queries, query)
		}
	}
	return least(t, queries)
}

// least are searches of a type without those that are narrower than another.
func least(t fhir.Type, queries []string) (list []string) {
	slices.SortFunc(queries, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(a, "&"), strings.Count(b, "&")), strings.Compare(a, b))
	})
	var kept [][]string
	for _, q := range queries {
		parts := strings.Split(q, "&")
		narrower := func(than []string) bool {
			return !slices.ContainsFunc(than, func(p string) bool { return !slices.Contains(parts, p) })
		}
		if !slices.ContainsFunc(kept, narrower) {
			kept, list = append(kept, parts), append(list, t.String()+"?"+q)
		}
	}
	return list
}

// All tells whether the rights are to everything, with types that are to come.
func (rights Rights) All() bool {
	var read, search bool
	for _, r := range rights {
		if r.Type == 0 && r.Query == "" {
			read, search = read || r.Read, search || r.Search
		}
	}
	return read && search
}

// Covers tells whether whoever has the rights may export every resource of a type
// that others may. Of constraints it knows only which parts they share: a token that
// says the same in other words has to be asked for in the same.
func (rights Rights) Covers(t fhir.Type, others Rights) bool {
	return !others.Exports(t) || rights.Exports(t) && narrow(others.Filters(t), rights.Filters(t))
}

// CoversReads tells in the same way whether whoever has the rights may read by its id
// every resource of a type that others may.
func (rights Rights) CoversReads(t fhir.Type, others Rights) bool {
	return !others.Reads(t) || rights.Reads(t) && narrow(others.Constraints(t), rights.Constraints(t))
}

// narrow tells whether all that one of some searches finds one of others does; nil finds
// all.
func narrow(queries, than []string) bool {
	if queries == nil || than == nil {
		return than == nil
	}
	return !slices.ContainsFunc(queries, func(q string) bool {
		return !slices.ContainsFunc(than, func(t string) bool { return narrows(q, t) })
	})
}

// narrows tells whether a search asks for all that another does.
func narrows(query, than string) bool {
	_, query, _ = strings.Cut(query, "?")
	_, than, _ = strings.Cut(than, "?")
	parts := strings.Split(query, "&")
	return !slices.ContainsFunc(strings.Split(than, "&"), func(p string) bool { return !slices.Contains(parts, p) })
}

// Constraints are the searches of which a resource of a type must match one to be
// read by its id (r); nil if all may be.
func (rights Rights) Constraints(t fhir.Type) (queries []string) {
	for _, r := range rights {
		if !r.Read || !r.covers(t) {
			continue
		}
		if r.Query == "" {
			return nil
		}
		queries = append(queries, r.Query)
	}
	return least(t, queries)
}
