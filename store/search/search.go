// Package search answers whether a resource matches a FHIR search, such as
// Observation?category=laboratory&date=gt2026-01-01, from the resource's bytes
// and in one pass over them.
//
// It knows the search parameters of FHIR R4 from HL7's own definitions
// (parameters.txt, made by gen). It refuses to know anything beside the resource:
// terminologies, other resources and so chained parameters.
package search

import (
	"fmt"
	"strconv"
	"strings"

	"tidemark/store/fhir"
)

// A Query is one search that was understood: all its criteria must be met.
type Query struct {
	Type     fhir.Type
	criteria []criterion
}

// A criterion is one parameter of a search, with the values of which one must
// match.
type criterion struct {
	param *parameter
	// negate: none of the values may match (:not), nor need there be any.
	negate bool
	test   test
}

// A test compares one value of a resource.
type test interface {
	matches(v value) bool
}

// An Env is what a search is about beside resources.
type Env struct {
	// Bases are those of our own resources, as in fhir.Scanner.OwnBases.
	Bases []string
	// Now is what ap, approximately, measures a date's distance from.
	Now fhir.Instant
}

// A Fault says why a search is refused. It names parameters, and values only where
// those can be no patient's data: an instant or a number that is none.
type Fault struct {
	// Unsupported: a FHIR server may know what to do, this one does not.
	Unsupported bool
	Reason      string
}

func (f *Fault) Error() string { return f.Reason }

func wrong(format string, args ...any) error { return &Fault{Reason: fmt.Sprintf(format, args...)} }

func unsupported(format string, args ...any) error {
	return &Fault{Unsupported: true, Reason: fmt.Sprintf(format, args...)}
}

// Parse understands a search: a resource type, ? and parameters as they stand in a
// URL. The error is a *Fault.
func Parse(text string, env Env) (*Query, error) {
	name, rest, ok := strings.Cut(text, "?")
	if !ok {
		return nil, wrong("it is not of the form Type?parameter=value")
	}
	typ, known := fhir.ParseType(name)
	if !known {
		return nil, wrong("what stands before ? is not a resource type of FHIR R4 (4.0.1)")
	}
	q := &Query{Type: typ}
	for pair := range strings.SplitSeq(rest, "&") {
		if pair == "" {
			continue
		}
		c, err := parseCriterion(typ, pair, env)
		if err != nil {
			return nil, err
		}
		q.criteria = append(q.criteria, c)
	}
	if len(q.criteria) == 0 {
		return nil, wrong("no parameter follows %s?", name)
	}
	return q, nil
}

func parseCriterion(typ fhir.Type, pair string, env Env) (criterion, error) {
	rawName, rawValue, _ := strings.Cut(pair, "=")
	name, ok1 := unescapeURL(rawName)
	text, ok2 := unescapeURL(rawValue)
	if !ok1 || !ok2 {
		return criterion{}, wrong("a parameter has a broken percent-escape: a %% itself is written %%25")
	}
	code, modifier, _ := strings.Cut(name, ":")
	p, err := lookUp(typ, code)
	if err != nil {
		return criterion{}, err
	}
	if text == "" {
		return criterion{}, wrong("the search parameter %s has no value", code)
	}
	c := criterion{param: p}
	switch {
	case modifier == "missing":
		if c.negate = text == "true"; !c.negate && text != "false" {
			return c, wrong("the value of %s:missing is not a boolean: right is true or false", code)
		}
		c.test = present{}
		return c, nil
	case modifier == "not" && p.kind == "token":
		c.negate, modifier = true, ""
	}
	if p.paths[0].typ == exists && modifier == "" && text == "false" { // so is what is not there
		c.negate, text = !c.negate, "true"
	}
	tests := anyOf{}
	for _, v := range splitUnescaped(text, ',') {
		t, err := p.parse(modifier, v, env)
		if err != nil {
			return c, err
		}
		tests = append(tests, t)
	}
	c.test = tests.joined()
	return c, nil
}

// parse understands one value.
func (p *parameter) parse(modifier, text string, env Env) (test, error) {
	if text == "" {
		return nil, wrong("the search parameter %s has an empty value in its list", p.code)
	}
	if folds := p.kind == "string" && modifier != "exact" || modifier == "text"; folds && fold(unescape(text)) == "" {
		return nil, wrong("a value of the search parameter %s is accents alone", p.code)
	}
	if modifier == "text" && (p.kind == "token" || p.kind == "reference") {
		return displayTest{fold(unescape(text))}, nil
	}
	switch {
	case p.kind == "reference":
		return parseReference(p, modifier, text, env.Bases)
	case p.kind == "string" && (modifier == "exact" || modifier == "contains"):
		return parseString(modifier, text), nil
	case modifier != "":
		return nil, unsupported("the modifier %s of the search parameter %s is not supported", shown(":"+modifier), p.code)
	}
	switch p.kind {
	case "string":
		return parseString("", text), nil
	case "token":
		return parseToken(p, text)
	case "date":
		return parseDate(p, text, env.Now)
	case "number":
		return parseNumber(p, text)
	case "quantity":
		return parseQuantity(p, text)
	default: // uri
		return uriTest(unescape(text)), nil
	}
}

// shown is a client's word as a fault may show it: quoted, as far as it can be printed, and
// not long.
func shown(word string) string {
	word = strings.Map(func(c rune) rune {
		if c > ' ' && c < 0x7f {
			return c
		}
		return -1
	}, word)
	return strconv.Quote(word[:min(len(word), 32)])
}

// quoted is a malformed date or number as a fault may show it: one that has other
// characters may be somebody's name.
func quoted(text string) string {
	if _, rest := prefixed(text); strings.Trim(rest, "0123456789+-.,:/ TZeE") != "" {
		return "what stands there"
	}
	return strconv.Quote(text[:min(len(text), 32)])
}

type anyOf []test

// joined is the same test with as few steps as there can be.
func (t anyOf) joined() test {
	if len(t) == 1 {
		return t[0]
	}
	var tokens tokenTest
	for _, t := range t {
		if t, ok := t.(tokenTest); ok {
			tokens = append(tokens, t...)
		}
	}
	if len(tokens) == len(t) {
		return tokens
	}
	return t
}

func (t anyOf) matches(v value) bool {
	for _, t := range t {
		if t.matches(v) {
			return true
		}
	}
	return false
}

// present matches whatever is there.
type present struct{}

func (present) matches(value) bool { return true }
