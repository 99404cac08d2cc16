package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// searched are the types of values that a kind of parameter compares.
var searched = map[string][]string{
	"token":     {"Coding", "CodeableConcept", "Identifier", "ContactPoint", "code", "boolean", "id", "string", "uri"},
	"reference": {"Reference", "canonical", "uri"},
	"date":      {"date", "dateTime", "instant", "Period", "Timing"},
	"string":    {"string", "markdown", "HumanName", "Address", "code"},
	"uri":       {"uri", "url", "canonical", "oid"},
	"number":    {"integer", "decimal", "positiveInt", "unsignedInt"},
	"quantity":  {"Quantity", "Money", "Age", "Duration", "Range", "SimpleQuantity"},
}

// unsearched are expressions that lead to no element of the resource itself, or
// to none that could be compared: the parameters are in the table without a path.
var unsearched = map[string]bool{
	"Bundle.composition": true, // another resource
	"Bundle.message":     true,
}

// paths are where the values of a parameter lie in resources of a type.
func (m *model) paths(base string, p parameter) ([]string, error) {
	types := searched[p.Type]
	if p.Code == "phonetic" { // a search by sound
		return nil, nil
	}
	if types == nil || p.Expression == "" || unsearched[base+"."+p.Code] {
		return nil, nil
	}
	if base == "Patient" && p.Code == "deceased" {
		return []string{"deceasedBoolean:exists", "deceasedDateTime:exists"}, nil
	}
	var paths []string
	for _, branch := range split(p.expressionOf(base), '|') {
		places, err := m.branch(base, strings.TrimSpace(branch))
		if err != nil {
			return nil, err
		}
		for _, at := range places {
			if !slices.Contains(types, at.typ) {
				continue
			}
			path := at.path + ":" + at.typ
			if at.system != "" {
				path += "=" + at.system
			}
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%s leads to nothing that a %s compares", p.Expression, p.Type)
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// expressionOf is the part of an expression that is about a type: those of
// several types stand in one SearchParameter.
func (p parameter) expressionOf(base string) string {
	var own []string
	for _, branch := range split(p.Expression, '|') {
		branch = strings.TrimSpace(branch)
		if of := strings.TrimLeft(branch, "("); strings.HasPrefix(of, base+".") || !prefixed.MatchString(of) {
			own = append(own, branch)
		}
	}
	return strings.Join(own, " | ")
}

var (
	prefixed = regexp.MustCompile(`^[A-Z][A-Za-z]*\.`)
	as       = regexp.MustCompile(`\(([A-Za-z.]+) as ([A-Za-z]+)\)`)
	asType   = regexp.MustCompile(`^(?:as|ofType)\(([A-Za-z]+)\)$`)
	isType   = regexp.MustCompile(`^where\(resolve\(\) is ([A-Za-z]+)\)$`)
	equals   = regexp.MustCompile(`^where\(([a-z]+) ?= ?'([^' {}:]+|http[^' {}]+)'\)$`)
)

// branch follows one path of an expression.
func (m *model) branch(base, text string) ([]place, error) {
	text = as.ReplaceAllString(text, "$1.as($2)")
	steps := split(text, '.')
	if steps[0] == base || steps[0] == "Resource" || steps[0] == "DomainResource" {
		steps = steps[1:]
	}
	at, err := m.root(base)
	if err != nil {
		return nil, err
	}
	places := []place{at}
	for _, step := range steps {
		if places, err = m.step(places, step); err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
	}
	return places, nil
}

func (m *model) step(from []place, step string) ([]place, error) {
	if of := asType.FindStringSubmatch(step); of != nil {
		return narrow(from, of[1])
	}
	var to []place
	for _, p := range from {
		switch {
		case isType.MatchString(step):
			p.path += "{" + "is=" + isType.FindStringSubmatch(step)[1] + "}"
			to = append(to, p)
		case equals.MatchString(step):
			e := equals.FindStringSubmatch(step)
			p.path += "{" + e[1] + "=" + e[2] + "}"
			to = append(to, p)
		case strings.ContainsAny(step, "()[] "):
			return nil, fmt.Errorf("unknown step %s", step)
		default:
			children, err := m.children(p, step)
			if err != nil {
				return nil, err
			}
			to = append(to, children...)
		}
	}
	return to, nil
}

// narrow keeps the places of one type; the definitions write dateTime in two ways.
func narrow(from []place, typ string) ([]place, error) {
	kept := slices.DeleteFunc(slices.Clone(from), func(p place) bool {
		return !strings.EqualFold(p.typ, typ) && (p.typ != "Quantity" || typ != "SimpleQuantity")
	})
	if len(kept) == 0 {
		return nil, fmt.Errorf("nothing is a %s", typ)
	}
	return kept, nil
}

// split splits outside of parentheses and quotes.
func split(text string, sep byte) []string {
	var parts []string
	depth, quoted, from := 0, false, 0
	for i := range len(text) {
		switch c := text[i]; {
		case c == '\'':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == sep && depth == 0:
			parts = append(parts, text[from:i])
			from = i + 1
		}
	}
	return append(parts, text[from:])
}
