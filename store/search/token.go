package search

import (
	"bytes"
	"slices"
)

// A tokenTest compares codes, literally but without regard to case (FHIR R4,
// "token"). Lists may be as long as a value set, so a resource is read once for all.
type tokenTest []token

type token struct {
	system   string
	anywhere bool   // whatever the system
	code     []byte // none: any
}

// exists is the type of paths that only tell whether something is there.
const exists = "exists"

func parseToken(p *parameter, text string) (test, error) {
	if p.paths[0].typ == exists {
		return parseExists(p, text)
	}
	parts := splitUnescaped(text, '|')
	switch {
	case len(parts) == 1:
		return tokenTest{{anywhere: true, code: []byte(unescape(text))}}, nil
	case len(parts) > 2:
		return nil, wrong("a value of the search parameter %s has more than one |: right is system|code; a | in either is written \\|", p.code)
	case parts[0] == "" && parts[1] == "":
		return nil, wrong("a value of the search parameter %s is | alone: right is system|code, |code, system| or code", p.code)
	}
	return tokenTest{{system: unescape(parts[0]), code: []byte(unescape(parts[1]))}}, nil
}

func (t tokenTest) matches(v value) bool {
	switch v.typ {
	case "CodeableConcept":
		return has(v.raw, "coding", func(c []byte) bool { return t.coded(text(c, "system"), text(c, "code")) })
	case "Coding":
		return t.coded(text(v.raw, "system"), text(v.raw, "code"))
	case "Identifier":
		return t.coded(text(v.raw, "system"), text(v.raw, "value"))
	case "ContactPoint": // has no namespace; clients write phone|555
		said, system := text(v.raw, "value"), text(v.raw, "system")
		return slices.ContainsFunc(t, func(w token) bool { return (w.system == "" || string(system) == w.system) && w.says(said) })
	case "boolean":
		return slices.ContainsFunc(t, func(w token) bool {
			return (w.system == "" || w.system == "http://hl7.org/fhir/special-values") && bytes.Equal(v.raw, w.code)
		})
	}
	if v.raw[0] != '"' {
		return false
	}
	said := plain(v.raw)
	switch {
	case v.typ == "id":
		return slices.ContainsFunc(t, func(w token) bool { return w.system == "" && bytes.Equal(said, w.code) })
	case v.system == "": // of several value sets' systems nobody wrote which
		return slices.ContainsFunc(t, func(w token) bool { return w.says(said) })
	}
	return t.coded([]byte(v.system), said)
}

func (t tokenTest) coded(system, code []byte) bool {
	return slices.ContainsFunc(t, func(w token) bool {
		return (w.anywhere || string(system) == w.system) && (len(w.code) == 0 || w.says(code))
	})
}

// says compares what has a code.
func (w token) says(said []byte) bool { return len(w.code) > 0 && bytes.EqualFold(said, w.code) }

// An existsTest wants something to be there, and not to be false.
type existsTest struct{}

func parseExists(p *parameter, text string) (test, error) {
	switch text {
	case "true":
		return existsTest{}, nil
	case "false":
		return nil, unsupported("the search parameter %s with false in a list is not supported", p.code)
	}
	return nil, wrong("the value of the search parameter %s is not a boolean: right is true or false", p.code)
}

func (existsTest) matches(v value) bool { return string(v.raw) != "false" }

// A displayTest compares what stands beside a code for people to read.
type displayTest struct{ start string }

func (t displayTest) matches(v value) bool {
	starts := func(b []byte) bool { return b != nil && startsWith(b, t.start) }
	switch v.typ {
	case "CodeableConcept":
		return starts(text(v.raw, "text")) || has(v.raw, "coding", func(c []byte) bool { return starts(text(c, "display")) })
	case "Coding", "Reference":
		return starts(text(v.raw, "display"))
	case "Identifier":
		return has(v.raw, "type", func(c []byte) bool { return starts(text(c, "text")) })
	}
	return false
}

// A uriTest compares letter by letter; a canonical without the version if none is
// wanted.
type uriTest string

func (t uriTest) matches(v value) bool {
	if v.raw[0] != '"' {
		return false
	}
	said := plain(v.raw)
	return string(said) == string(t) || v.typ == "canonical" && sameURL(said, string(t), '|')
}
