package search

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"tidemark/store/fhir"
)

// values are what each kind of parameter is asked for below.
var values = map[string][]string{
	"token":     {"a", "urn:s|a", "|a", "urn:s|", "true"},
	"reference": {"1", "Patient/1", "http://here/fhir/Patient/1", "urn:uuid:1|2"},
	"date":      {"2020", "gt2020-01-01T08:00", "ap2020-01-01"},
	"string":    {"a", "é"},
	"number":    {"1", "ne-1.5", "ap1e2"},
	"quantity":  {"1", "gt1.5||mg", "1|urn:s|mg"},
	"uri":       {"urn:a", "http://a|1"},
}

// A both is a search and the one that matches what it does not.
type both struct {
	text      string
	yes, miss *Matcher
}

// everything is searches for all parameters of some types.
var everything = sync.OnceValue(func() (all []both) {
	matcher := func(text string) *Matcher {
		q, err := Parse(text, Env{Bases: []string{"http://here/fhir"}, Now: 1767225600000})
		if err != nil {
			return nil
		}
		return New(q).Matcher()
	}
	for _, typ := range []string{"Observation", "Patient", "Condition", "Invoice", "ValueSet", "ExplanationOfBenefit"} {
		t, _ := fhir.ParseType(typ)
		for _, p := range Parameters(t) {
			at := typ + "?" + p.Code
			all = append(all, both{at, matcher(at + ":missing=false"), matcher(at + ":missing=true")})
			for _, v := range values[p.Kind] {
				for _, modifier := range []string{"", ":exact", ":contains", ":text", ":identifier", ":Patient"} {
					if m := matcher(at + modifier + "=" + v); m != nil {
						all = append(all, both{at + modifier + "=" + v, m, matcher(at + ":not=" + v)})
					}
				}
			}
		}
	}
	return all
})

// FuzzMatch wants whatever passes a Scanner to be searched without a panic, and a
// search and its opposite to differ.
func FuzzMatch(f *testing.F) {
	for _, body := range []string{
		`{"resourceType":"Patient","id":"p","name":[null,{"given":["a",null,{}],"family":""}],"_birthDate":{},"birthDate":"2020","telecom":{"system":"phone","value":1},"identifier":[[{"value":"a"}],"b"],"\u0067ender":"\u0061"}`,
		`{"resourceType":"Observation","id":"o","valueQuantity":{"value":1e999,"code":"mg"},"component":[{"valueQuantity":{"value":"1"}},[],{}],"code":{"coding":{"code":null,"system":"urn:s"}},"subject":{"reference":"/"},"effectivePeriod":{"start":"x"},"effectiveTiming":{"event":[null],"repeat":[]}}`,
		`{"id":"i","totalNet":{"value":-0,"currency":{}},"resourceType":"Invoice","meta":{"tag":[{}],"lastUpdated":"2020-01-01T00:00:00Z","profile":["|"]}}`,
		`{"resourceType":"Condition","id":"c","onsetRange":{"low":[],"high":{"value":1}},"subject":{"reference":"?/_history/","type":""},"code":[[[[{"coding":[[{"code":"a"}]]}]]]]}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var s fhir.Scanner
		r, err := s.Scan(body)
		if err != nil {
			return
		}
		line := slices.Concat(r.Body, []byte("\n"))
		for _, b := range everything() {
			got := b.yes.Match(line)
			if b.yes.Match(r.Body) != got {
				t.Errorf("%s: the newline matters", b.text)
			}
			if b.miss != nil && plainOrMissing(b.text) && b.miss.Match(line) == got {
				t.Errorf("%s: %t, and so is its opposite", b.text, got)
			}
		}
	})
}

// plainOrMissing tells whether a search of everything has an opposite.
func plainOrMissing(text string) bool {
	name, _, valued := strings.Cut(text, "=")
	return !valued || !strings.Contains(name, ":")
}

// odd is JSON that a Scanner passes and FHIR does not know at most places.
var odd = []string{
	`null`, `[]`, `[null]`, `{}`, `""`, `"\u0000\ud83d\ude00"`, `"\\"`, `0`, `-1e-999`, `1e999`, `true`, `[[[{}],"a"]]`, `"/"`, `"?"`, `"|"`, `"Patient/"`, `"/_history/"`,
	`{"coding":"a","system":1,"code":{},"value":[],"reference":null,"identifier":[[]],"start":"","end":0,"event":{},"repeat":[{}],"low":"a","high":[{"value":"1"}],"display":true,"currency":[]}`,
	`{"coding":[null,{}],"code":"","value":"","reference":"","identifier":{},"start":"0000","end":"9999-12-31T23:59:60Z","repeat":{"boundsPeriod":[{"end":"x"}]},"low":{"value":1e999},"family":[""],"line":[[]]}`,
}

// TestOddValues puts them wherever a path leads, and at each step to there.
func TestOddValues(t *testing.T) {
	for typ, params := range table() {
		if typ == "Resource" {
			typ = "Basic"
		}
		for code, p := range params {
			var searches []*Matcher
			for _, v := range values[p.kind] {
				if q, err := Parse(typ+"?"+code+"="+v, Env{}); err == nil {
					searches = append(searches, New(q).Matcher())
				}
			}
			for _, at := range p.paths {
				for n := range at.steps {
					for _, v := range odd {
						if at.steps[n].filter != "" && (v[0] != '{' || v == `{}`) { // put adds to it
							continue
						}
						body, _ := put(typ, at.steps[:n+1], v, listed)
						for _, m := range searches {
							m.Match([]byte(body))
						}
					}
				}
			}
		}
	}
}

// TestMatchAllocates nothing while texts are ASCII and names have no escapes.
func TestMatchAllocates(t *testing.T) {
	long := strings.Repeat("long", 20)
	body := []byte(`{"resourceType":"Patient","id":"p","meta":{"lastUpdated":"2020-01-01T00:00:00Z","tag":[{"system":"http://` + long + `","code":"` + long + `"}],"profile":["http://` + long + `|1"]},"identifier":[{"system":"urn:` + long + `","value":"` + long + `"}],"active":true,"name":[{"family":"` + long + `","given":["` + long + `"]}],"telecom":[{"system":"phone","value":"` + long + `"}],"gender":"male","birthDate":"1970-01-01","address":[{"city":"` + long + `"}],"generalPractitioner":[{"reference":"http://` + long + `/Practitioner/1","display":"` + long + `"}]}`)
	other := []byte(`{"resourceType":"Observation","id":"o","valueQuantity":{"value":1.5,"system":"http://` + long + `","code":"` + long + `"},"effectivePeriod":{"start":"2020-01-01"},"status":"final"}`)
	for query, body := range map[string][]byte{
		"Patient?_tag=http://" + long + "|x":     body,
		"Patient?_profile=http://x":              body,
		"Patient?_lastUpdated=gt2021":            body,
		"Patient?identifier=urn:" + long + "|x":  body,
		"Patient?identifier=x,y,z":               body,
		"Patient?name=X" + long:                  body,
		"Patient?name:contains=g" + long + "x":   body,
		"Patient?name:exact=x":                   body,
		"Patient?phone=x":                        body,
		"Patient?birthdate=1971":                 body,
		"Patient?address=x":                      body,
		"Patient?general-practitioner=2":         body,
		"Patient?general-practitioner:text=x":    body,
		"Patient?general-practitioner=urn:uuid:": body,
		"Patient?active=false&gender=female":     body,
		"Patient?deceased=true":                  body,
		"Observation?value-quantity=1|urn:s|mg":  other,
		"Observation?value-quantity=1.5||mg":     other,
		"Observation?date=lt2020":                other,
		"Observation?status=amended":             other,
	} {
		m := matcher(t, []string{query})
		if n := testing.AllocsPerRun(100, func() { m.Match(body) }); n > 0 {
			t.Errorf("%s: %v allocations", query, n)
		}
	}
}

// TestMatchers uses one Filter in many goroutines.
func TestMatchers(t *testing.T) {
	q, err := Parse("Patient?name=a,é&birthdate=gt2020", Env{})
	if err != nil {
		t.Fatal(err)
	}
	f := New(q)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			m := f.Matcher()
			for range 100 {
				if !m.Match([]byte(`{"resourceType":"Patient","name":[{"family":"É"}],"birthDate":"2021"}`)) || m.Match([]byte(`{"resourceType":"Patient","name":[{"family":"É"}]}`)) {
					t.Error("wrong")
				}
			}
		})
	}
	all.Wait()
}

// FuzzParse wants searches to be understood or refused with a fault fit to show.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"Patient?name=a&birthdate=ge2020-01-01T00:00%2B01:00", `Observation?value-quantity=5.4|urn:s|m\|g&code:not=a|b,\,`,
		"Patient?general-practitioner:Practitioner=http://a/b&_id=1", "Patient?a%", "Condition?onset-age=ap-1.50e-3", "?=", "Patient?:=", "Observation?date=ne2020-01-01T08:0",
	} {
		f.Add(text)
	}
	body := []byte(`{"resourceType":"Patient","id":"p","name":[{"family":"a"}],"birthDate":"2020"}`)
	f.Fuzz(func(t *testing.T, text string) {
		q, err := Parse(text, Env{Now: 1767225600000})
		if err != nil {
			fault, ok := errors.AsType[*Fault](err)
			if !ok || fault.Reason == "" || len(fault.Reason) > 4096 || !utf8.ValidString(fault.Reason) {
				t.Errorf("%#v", err)
			}
			return
		}
		New(q, q).Matcher().Match(body)
	})
}

// TestFaultsKeepValues sends a name as the value of everything: nothing says it.
func TestFaultsKeepValues(t *testing.T) {
	const canary = "Mustermann"
	faults := 0
	for typ, params := range table() {
		for code := range params {
			if typ == "Resource" || typ == "DomainResource" {
				continue
			}
			for _, form := range []string{"=" + canary, "=x/" + canary + "/y/z", "=" + canary + "|b|c|d", "=2020-" + canary, "=1." + canary, "=," + canary, "=%zz" + canary, ":in=" + canary, ":missing=" + canary, ":identifier=a|b|" + canary, ".name=" + canary, ":Patient=Group/" + canary} {
				_, err := Parse(typ+"?"+code+form, Env{})
				if err == nil {
					continue
				}
				if faults++; strings.Contains(err.Error(), canary) {
					t.Errorf("%s?%s%s: %v", typ, code, form, err)
				}
			}
		}
	}
	if faults < 10_000 {
		t.Errorf("only %d faults", faults)
	}
}
