package search

import (
	_ "embed"
	"slices"
	"strings"
	"sync"

	"tidemark/store/fhir"
)

//go:embed parameters.txt
var definitions string

// A parameter is a search parameter of one type.
type parameter struct {
	code       string
	kind       string // token, reference, date ...
	expression string // FHIRPath, of which the paths were made
	paths      []path // none: not supported
}

// A path is where values of a parameter lie.
type path struct {
	steps  []step
	typ    string // of the values
	system string // of a code, where its value set has one only
}

// A step leads to an element of one name, if it is as a filter says.
type step struct{ name, filter, want string }

// table is all parameters, by type and code.
var table = sync.OnceValue(func() map[string]map[string]*parameter {
	all := map[string]map[string]*parameter{}
	for line := range strings.Lines(definitions) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		p := &parameter{code: f[1], kind: f[2], expression: f[3]}
		for text := range strings.FieldsSeq(f[4]) {
			p.paths = append(p.paths, parsePath(text))
		}
		if all[f[0]] == nil {
			all[f[0]] = map[string]*parameter{}
		}
		all[f[0]][f[1]] = p
	}
	return all
})

// parsePath reads a path as parameters.txt has it.
func parsePath(text string) path {
	var p path
	for {
		end := strings.IndexAny(text, ".:{")
		s := step{name: text[:end]}
		if text = text[end:]; text[0] == '{' {
			filter, rest, _ := strings.Cut(text[1:], "}")
			s.filter, s.want, _ = strings.Cut(filter, "=")
			text = rest
		}
		p.steps = append(p.steps, s)
		if text[0] == ':' {
			p.typ, p.system, _ = strings.Cut(text[1:], "=")
			return p
		}
		text = text[1:]
	}
}

// results are parameters that say how an answer looks, which a filter cannot
// (Bulk Data, "_typeFilter").
var results = []string{"_sort", "_count", "_include", "_revinclude", "_summary", "_total", "_elements", "_contained", "_containedType", "_score", "_format", "_pretty"}

// lookUp finds the parameter that can be asked for.
func lookUp(typ fhir.Type, code string) (*parameter, error) {
	base, _, chained := strings.Cut(code, ".")
	p := table()[typ.String()][base]
	if p == nil {
		p = table()["Resource"][base]
	}
	switch {
	case slices.Contains(results, base):
		return nil, wrong("%s says how an answer looks, and cannot be part of a filter", base)
	case slices.Contains([]string{"_has", "_filter", "_text", "_content", "_query", "_list", "_type"}, base):
		return nil, unsupported("the search parameter %s is not supported", base)
	case p == nil:
		return nil, wrong("%s is not a search parameter of %s in FHIR R4%s", shown(base), typ, codes(typ))
	case chained:
		return nil, unsupported("the search parameter %s is chained, which is not supported: only the resource itself is looked at", base)
	case len(p.paths) == 0:
		return nil, unsupported("the search parameter %s of %s (%s) is not supported", base, typ, p.kind)
	}
	return p, nil
}

// codes tells which parameters there are.
func codes(typ fhir.Type) string {
	all := Parameters(typ)
	if len(all) == 0 {
		return ""
	}
	var names []string
	for _, p := range all {
		names = append(names, p.Code)
	}
	return ": known are " + strings.Join(names, ", ")
}

// A Parameter is one that can be asked for.
type Parameter struct{ Code, Kind string }

// Parameters lists those of a type, with those of all types, by code.
func Parameters(typ fhir.Type) []Parameter {
	var all []Parameter
	for _, of := range []string{"Resource", typ.String()} {
		for _, p := range table()[of] {
			if len(p.paths) > 0 {
				all = append(all, Parameter{p.code, p.kind})
			}
		}
	}
	slices.SortFunc(all, func(a, b Parameter) int { return strings.Compare(a.Code, b.Code) })
	return all
}
