package search

import (
	"bytes"
	"slices"

	"tidemark/store/compact"
)

// A Filter is some searches for resources of one type, of which one must match
// (Bulk Data, "_typeFilter"). Several goroutines may use it, each with a Matcher.
type Filter struct {
	root    *node
	queries [][]int // their criteria
	all     []criterion
}

// A node is an element to which paths lead.
type node struct {
	step
	leaves   []leaf
	children []*node
}

// A leaf is an element whose value a criterion compares.
type leaf struct {
	criterion   int
	typ, system string
}

// A value is what a leaf leads to.
type value struct {
	raw         []byte // JSON
	typ, system string
}

// New makes a filter of searches for one type.
func New(queries ...*Query) *Filter {
	f := &Filter{root: &node{}}
	for _, q := range queries {
		var own []int
		for _, c := range q.criteria {
			own = append(own, len(f.all))
			for _, p := range c.param.paths {
				f.root.add(p, len(f.all))
			}
			f.all = append(f.all, c)
		}
		f.queries = append(f.queries, own)
	}
	return f
}

func (n *node) add(p path, criterion int) {
	for _, s := range p.steps {
		i := slices.IndexFunc(n.children, func(c *node) bool { return c.step == s })
		if i < 0 {
			i = len(n.children)
			n.children = append(n.children, &node{step: s})
		}
		n = n.children[i]
	}
	n.leaves = append(n.leaves, leaf{criterion, p.typ, p.system})
}

// A Matcher is a Filter at work.
type Matcher struct {
	*Filter
	hit  []bool // criteria of which a value has matched
	line []byte
}

// Matcher returns one that is its caller's alone.
func (f *Filter) Matcher() *Matcher {
	return &Matcher{Filter: f, hit: make([]bool, len(f.all))}
}

// Match tells whether a resource matches: compact JSON that a fhir.Scanner has
// passed.
func (m *Matcher) Match(line []byte) bool {
	clear(m.hit)
	m.line = line
	m.object(0, m.root)
	return slices.ContainsFunc(m.queries, m.met)
}

// met tells whether all criteria of a search are.
func (m *Matcher) met(query []int) bool {
	for _, i := range query {
		if m.hit[i] == m.all[i].negate {
			return false
		}
	}
	return true
}

// object goes through the object at i, which n has led to.
func (m *Matcher) object(i int, n *node) int {
	return members(m.line, i, func(name []byte, at int) int {
		end := -1
		for _, child := range n.children {
			if string(name) == child.name {
				end = m.value(at, child)
			}
		}
		if end < 0 {
			end = compact.Skip(m.line, at)
		}
		return end
	})
}

// value goes through the value at i, or all of an array.
func (m *Matcher) value(i int, n *node) int {
	if m.line[i] == '[' {
		for i++; m.line[i] != ']'; {
			if i = m.value(i, n); m.line[i] == ',' {
				i++
			}
		}
		return i + 1
	}
	if len(n.leaves) == 0 && n.filter == "" && m.line[i] == '{' {
		return m.object(i, n)
	}
	end := compact.Skip(m.line, i)
	raw := m.line[i:end]
	if raw[0] == 'n' || !n.passes(raw) { // null
		return end
	}
	for _, l := range n.leaves {
		if !m.hit[l.criterion] {
			m.hit[l.criterion] = m.all[l.criterion].test.matches(value{raw: raw, typ: l.typ, system: l.system})
		}
	}
	if len(n.children) > 0 && raw[0] == '{' {
		m.object(i, n)
	}
	return end
}

// passes tells whether a value is as the step's filter says.
func (n *node) passes(raw []byte) bool {
	switch n.filter {
	case "":
		return true
	case "is":
		return string(referredType(raw)) == n.want
	}
	return string(text(raw, n.filter)) == n.want
}

// referredType is the type that a Reference says it leads to, without looking
// there.
func referredType(raw []byte) []byte {
	ref, _, conditional := bytes.Cut(text(raw, "reference"), []byte("?"))
	ref, _, _ = bytes.Cut(ref, []byte("/_history/"))
	at := bytes.LastIndexByte(ref, '/')
	switch {
	case conditional: // Type?criteria
		return ref[at+1:]
	case at < 0:
		return text(raw, "type")
	}
	ref = ref[:at]
	return ref[bytes.LastIndexByte(ref, '/')+1:]
}

// has tells whether a member of an object, or one of a list, is what fn looks for.
func has(v []byte, name string, fn func(v []byte) bool) (found bool) {
	member(v, name, func(v []byte) { found = found || fn(v) })
	return found
}
