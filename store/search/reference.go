package search

import (
	"bytes"
	"strings"

	"tidemark/store/fhir"
)

// A referenceTest compares what references say; nothing is looked up.
type referenceTest struct {
	typ, id string // of a resource here; no typ: any
	url     string // of one elsewhere
	literal string // of a canonical, whosever
	bases   []string
}

func parseReference(p *parameter, modifier, value string, bases []string) (test, error) {
	if modifier == "identifier" {
		t, err := parseToken(p, value)
		if err != nil {
			return nil, err
		}
		return identifierTest{t}, nil
	}
	ref := unescape(value)
	t := referenceTest{literal: ref, bases: bases}
	if modifier != "" {
		if _, known := fhir.ParseType(modifier); !known {
			return nil, unsupported("the modifier %s of the search parameter %s is not supported: it is not a resource type of FHIR R4 either", shown(":"+modifier), p.code)
		}
		t.typ = modifier
	}
	if typ, id, ok := fhir.ParseReference([]byte(ref), bases); ok {
		if _, known := fhir.ParseType(string(typ)); !known {
			return nil, wrong("a value of the search parameter %s refers to a type that is not one of FHIR R4: right is an id, Type/id or a URL", p.code)
		}
		if t.typ != "" && t.typ != string(typ) {
			return nil, wrong("a value of the search parameter %s:%s refers to another type", p.code, modifier)
		}
		t.typ, t.id = string(typ), string(id)
		return t, nil
	}
	if strings.Contains(ref, ":") {
		t.url = ref
		return t, nil
	}
	if key, err := fhir.ParseKey("Basic/" + ref); err == nil {
		t.id = key.ID
		return t, nil
	}
	return nil, wrong("a value of the search parameter %s is not a reference: right is an id, Type/id or a URL", p.code)
}

func (t referenceTest) matches(v value) bool {
	if v.typ != "Reference" { // a canonical or a uri
		return v.raw[0] == '"' && sameURL(plain(v.raw), t.literal, '|')
	}
	if v.raw[0] != '{' {
		return false
	}
	ref := text(v.raw, "reference")
	if t.url != "" {
		return sameURL(ref, t.url, 0) && (t.typ == "" || string(referredType(v.raw)) == t.typ)
	}
	typ, id, ok := fhir.ParseReference(ref, t.bases)
	return ok && string(id) == t.id && (t.typ == "" || string(typ) == t.typ)
}

// sameURL compares URLs, and without its version if the one that is wanted has
// none.
func sameURL(said []byte, want string, version byte) bool {
	if string(said) == want {
		return true
	}
	if version == 0 {
		plain, _, _ := bytes.Cut(said, []byte("/_history/"))
		return string(plain) == want
	}
	plain, _, _ := bytes.Cut(said, []byte{version})
	return string(plain) == want
}

// An identifierTest compares the identifier of a Reference.
type identifierTest struct{ test }

func (t identifierTest) matches(v value) bool {
	return v.raw[0] == '{' && has(v.raw, "identifier", func(raw []byte) bool {
		return t.test.matches(value{raw: raw, typ: "Identifier"})
	})
}
