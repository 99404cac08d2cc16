package fhir

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tidemark/store/compact"
)

// fieldsOf are the fields of the value at i, found by walking.
func fieldsOf(b []byte, i, depth, listed int) (all []Field) {
	switch {
	case depth > listed:
	case b[i] == '[':
		for i++; b[i] != ']'; {
			end := compact.Skip(b, i)
			all = append(all, Field{depth, compact.Member{Name: i, Colon: i - 1, End: end}})
			all = append(all, fieldsOf(b, i, depth+1, listed)...)
			if i = end; b[i] == ',' {
				i++
			}
		}
	case b[i] == '{':
		compact.Members(b, i, func(m compact.Member) bool {
			all = append(all, Field{depth, m})
			all = append(all, fieldsOf(b, m.Colon+1, depth+1, listed)...)
			return true
		})
	}
	return all
}

// TestFields: what was noted on the way is what a walk finds, white space or not.
func TestFields(t *testing.T) {
	var s Scanner
	for _, doc := range []string{
		`{}`, `[]`, `"text"`, `{"a":1}`, "\n { \"a\" : 1 , \"b\" : { \"c\" : \"d\\\"\" , \"e\":[ { \"f\" : {} } ] } , \"g\":null } ",
		`{"payload":{"after":{"id":"p","body":"{\"id\":\"x\"}"},"op":"c"}}`, `[{"a":{"b":[[{"c":1}]]}}]`, "{\"\\u0061\" :\t{ \"ü\" : [ ] }}",
	} {
		for depth := range 7 {
			text, got, err := s.Fields([]byte(doc), depth)
			if err != nil {
				t.Fatalf("%s: %v", doc, err)
			}
			if plain, err := s.Compact([]byte(doc)); err != nil || string(plain) != string(text) {
				t.Fatalf("%s is compact as %s, and with its fields as %s, %v", doc, plain, text, err)
			}
			if diff := cmp.Diff(fieldsOf(text, 0, 1, depth), got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s to depth %d: -walked +noted:\n%s", doc, depth, diff)
			}
		}
	}
	many := `{"a":[{"b":[` + strings.Repeat("0,", 1<<20) + `0]}],"c":{}}`
	if text, got, err := s.Fields([]byte(many), 9); err != nil || len(got) != 0 || string(text) != many || cap(s.fields) > 1<<17 {
		t.Errorf("of very many: %d and room for %d, %v", len(got), cap(s.fields), err)
	}
	if _, got, err := s.Fields([]byte(`{"a":1,"b":}`), 2); err == nil || got != nil {
		t.Errorf("of what is no JSON: %v, %v", got, err)
	}
	if _, got, err := s.Fields([]byte(strings.Repeat(`{"a":`, 9)+`1`+strings.Repeat(`}`, 9)), 9); err != nil || len(got) != 9 || got[8].Depth != 9 {
		t.Errorf("of what is deep: %v, %v", got, err)
	}
}
