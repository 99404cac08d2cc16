package bulk

import (
	"errors"
	"strings"
	"testing"

	"tidemark/api/export"
)

// What a search says is repeated in no error: it may name a patient.
func TestFilterOfWrongKindIsNotRepeated(t *testing.T) {
	for _, kind := range []string{"valueReference", "valueInteger"} {
		_, err := read([]param{{name: "_typeFilter", value: "Patient?name=Featherstone", kind: kind}}, asking{level: export.System})
		e, is := errors.AsType[*Error](err)
		if !is {
			t.Fatal(err)
		}
		for _, i := range e.Issues {
			if strings.Contains(i.Text, "Featherstone") {
				t.Errorf("%s: %s", kind, i.Text)
			}
		}
	}
}

// A search whose type cannot be read is left out, and what is left of the others
// would leave out what it asks for: there is no telling which type it means.
func TestLenientFilterOfMisspeltType(t *testing.T) {
	for _, wrong := range []string{"observation?code=b", "Observatoin?code=b"} {
		q, err := read([]param{{name: "_typeFilter", value: "Observation?code=a"}, {name: "_typeFilter", value: wrong}},
			asking{level: export.System, lenient: true, fromURL: true})
		if err == nil && len(q.Filters) > 0 {
			t.Errorf("%q: Observations with code b are not sent; filters %q, notes %v", wrong, q.Filters, q.Notes)
		}
	}
}

// A comma that is escaped is part of a value.
func TestEscapedCommaDividesNothing(t *testing.T) {
	q, err := read([]param{{name: "_typeFilter", value: `Observation?value-string=what\,Patient?active=true`}}, asking{level: export.System, fromURL: true})
	if err != nil || len(q.Filters) != 1 {
		t.Errorf("%q, %v", q.Filters, err)
	}
}

// A list may be written with a space behind its commas, as _type and _elements
// may: else the second search becomes a code of the first, and what it asks for is
// silently missing.
func TestListOfSearchesWithSpaces(t *testing.T) {
	q, err := read([]param{{name: "_typeFilter", value: "Observation?code=a, Observation?code=b"}}, asking{level: export.System, fromURL: true})
	if err == nil && len(q.Filters) != 2 {
		t.Errorf("no error, and as one search: %q", q.Filters)
	}
}
