package search

import "strings"

// prefixes say how a value compares (FHIR R4, "Prefixes").
var prefixes = []string{"eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"}

// prefixed takes a prefix off; without one it is eq.
func prefixed(text string) (prefix, rest string) {
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(text, p); ok {
			return p, rest
		}
	}
	return "eq", text
}

// An interval is all that lies from first to last, both included.
type interval[T int64 | float64] struct{ first, last T }

func (a interval[T]) holds(b interval[T]) bool { return a.first <= b.first && b.last <= a.last }

func (a interval[T]) meets(b interval[T]) bool { return a.first <= b.last && b.first <= a.last }

// compare tells whether what a resource says compares to what is wanted as a
// prefix has it; about is what is near enough for ap.
func compare[T int64 | float64](prefix string, said, want, about interval[T]) bool {
	switch prefix {
	case "eq":
		return want.holds(said)
	case "ne":
		return !want.holds(said)
	case "gt":
		return said.last > want.last
	case "lt":
		return said.first < want.first
	case "ge":
		return said.last > want.last || want.holds(said)
	case "le":
		return said.first < want.first || want.holds(said)
	case "sa":
		return said.first > want.last
	case "eb":
		return said.last < want.first
	default: // ap
		return about.meets(said)
	}
}
