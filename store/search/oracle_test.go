package search

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gofhir/fhirpath"

	"tidemark/store/fhir"
)

// An oracle evaluates the official expressions as FHIRPath, which our paths were
// made of by other means. It keeps what it has compiled.
type oracle struct {
	compiled    map[string]*fhirpath.Expression
	evaluations int
}

// found is what an expression leads to in a resource: objects as they are written,
// of strings what they say.
func (o *oracle) found(t *testing.T, p *parameter, body string) []string {
	t.Helper()
	e := o.compiled[p.expression]
	if e == nil {
		var err error
		if e, err = fhirpath.Compile(p.expression); err != nil {
			t.Fatalf("%s: %v", p.expression, err)
		}
		o.compiled[p.expression] = e
	}
	all, err := e.EvaluateWithOptions([]byte(body), fhirpath.WithResolver(typesOnly{}))
	if err != nil {
		t.Fatalf("%s: %s: %v", p.expression, body, err)
	}
	o.evaluations++
	var said []string
	for _, v := range all {
		if p.paths[0].typ != exists || v.String() != "false" { // a condition: what it says is what there is
			said = append(said, v.String())
		}
	}
	return said
}

// typesOnly resolves a reference to a resource of which only the type is known.
type typesOnly struct{}

var target = regexp.MustCompile(`^(?:.*/)?([A-Z][A-Za-z]+)(?:/[A-Za-z0-9.-]+$|\?)`)

func (typesOnly) Resolve(_ context.Context, reference string) ([]byte, error) {
	m := target.FindStringSubmatch(reference)
	if m == nil {
		return nil, errors.New("no type")
	}
	return fmt.Appendf(nil, `{"resourceType":%q,"id":"x"}`, m[1]), nil
}

// A sample is a value of a FHIR type, and how one searches for it. %d tells one
// value from another.
type sample struct{ json, query string }

var (
	coding  = `{"system":"urn:s","code":"c%d"}`
	plainly = sample{`"c%d"`, "c%d"}
	uri     = sample{`"urn:c:%d"`, "urn:c:%d"}
	moment  = sample{`"2021-0%d-02T03:04:05Z"`, "2021-0%[1]d"}
	amount  = sample{`{"value":%d.5,"system":"http://unitsofmeasure.org","code":"mg"}`, "%d.5|http://unitsofmeasure.org|mg"}
)

var samples = map[string]sample{
	"CodeableConcept": {`{"coding":[` + coding + `]}`, "urn:s|c%d"}, "Coding": {coding, "urn:s|c%d"},
	"Identifier": {`{"system":"urn:s","value":"c%d"}`, "urn:s|c%d"}, "ContactPoint": {`{"value":"c%d"}`, "c%d"},
	"code": plainly, "string": plainly, "markdown": plainly, "id": plainly, "uri": uri, "url": uri, "oid": uri,
	"canonical": {`"http://c.example/%d|1"`, "http://c.example/%d"}, "Reference": {`{"reference":"Basic/c%d"}`, "Basic/c%d"},
	"date": {`"2021-0%d-02"`, "2021-0%d"}, "dateTime": moment, "instant": moment,
	"Period":  {`{"start":"2021-0%[1]d-02","end":"2021-0%[1]d-03"}`, "2021-0%d"},
	"Timing":  {`{"event":["2021-0%[1]d-02","2021-0%[1]d-03"]}`, "2021-0%d"},
	"integer": {"%d", "%d"}, "positiveInt": {"%d", "%d"}, "unsignedInt": {"%d", "%d"}, "decimal": {"%d.5", "%d.5"},
	"Quantity": amount, "SimpleQuantity": amount, "Age": amount, "Duration": amount,
	"Money":     {`{"value":%d,"currency":"EUR"}`, "%d|urn:iso:std:iso:4217|EUR"},
	"Range":     {`{"low":{"value":%d},"high":{"value":%[1]d}}`, "%d"},
	"time":      {`"0%d:00:00"`, ""},
	"HumanName": {`{"family":"c%d"}`, "c%d"}, "Address": {`{"city":"c%d"}`, "c%d"},
}

// sampled is the nth value of a type and its search.
func sampled(typ string, n int) (raw, query string) {
	switch typ {
	case "boolean":
		raw = fmt.Sprint(n == 1)
		return raw, raw
	case exists:
		return "true", "true"
	}
	s, ok := samples[typ]
	switch { // what no parameter compares
	case ok:
	case typ[0] >= 'a':
		s = plainly
	default:
		s.json = `{"id":"c%d"}`
	}
	if s.query != "" {
		query = fmt.Sprintf(s.query, n)
	}
	return fmt.Sprintf(s.json, n), query
}

// Three ways to write elements that may repeat.
const (
	single = iota
	listed // each a list
	second // each a list, where another element stands first
)

// once are elements of which a Scanner knows that they cannot repeat.
var once = []string{"id", "meta", "lastUpdated"}

// put makes a resource with a value where steps lead. It returns also the value, to
// which its filter may have added something.
func put(typ string, steps []step, raw string, shape int) (body, leaf string) {
	inner := raw
	for i, s := range slices.Backward(steps) {
		switch {
		case s.filter == "is":
			inner = strings.Replace(inner, "Basic/", s.want+"/", 1)
		case s.filter != "":
			inner = fmt.Sprintf(`{%q:%q,%s`, s.filter, s.want, inner[1:])
		}
		last := i == len(steps)-1
		if last {
			leaf = inner
		}
		switch {
		case slices.Contains(once, s.name):
		case shape == second && !last:
			inner = `[{"id":"other"},` + inner + `]`
		case shape != single:
			inner = "[" + inner + "]"
		}
		inner = fmt.Sprintf(`{%q:%s}`, s.name, inner)
	}
	head := fmt.Sprintf(`{"resourceType":%q,`, typ)
	if steps[0].name != "id" {
		head += `"id":"r",`
	}
	return head + inner[1:], leaf
}

// structure is the types of elements, such as Observation.value.
func structure(t *testing.T) map[string][]string {
	text, err := os.ReadFile("testdata/elements.txt")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if name, types, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			all[name] = strings.Fields(types)
		}
	}
	return all
}

func capital(typ string) string { return strings.ToUpper(typ[:1]) + typ[1:] }

// A pair is a parameter of a type.
type pair struct {
	*testing.T
	*oracle
	base, typ string
	*parameter
	reached map[string]bool // elements, choices as one, to which paths lead
}

func (p *pair) matches(value, body string) bool {
	p.Helper()
	escaped := strings.NewReplacer("%", "%25", "&", "%26").Replace(value)
	return match(p.T, p.typ+"?"+p.code+escaped, body)
}

// agree wants both to find something, or both nothing.
func (p *pair) agree(body string) {
	p.Helper()
	found := p.found(p.T, p.parameter, body)
	if got := p.matches(":missing=false", body); got != (len(found) > 0) {
		p.Errorf("%s.%s: %s: found %t, but %s finds %q", p.typ, p.code, body, got, p.expression, found)
	}
}

// unsearched are types to which expressions lead, that a search of that kind does
// not compare (FHIR R4, "Search parameter types"): to us they are not there.
var unsearched = map[string][]string{
	"date":      {"string", "Age", "Range"},
	"reference": {"Attachment"},
	"quantity":  {"SampledData"},
	"number":    {"Range"},
}

// mistaken are types of values where the oracle is wrong: as(dateTime) lets an
// instant pass, for it tells types of strings by what they look like.
var mistaken = map[string]string{"Condition.asserted-date": "instant"}

// TestOracle puts values into resources, for each parameter where its paths lead
// and where they do not, and wants the official expression to find the same.
func TestOracle(t *testing.T) {
	o := &oracle{compiled: map[string]*fhirpath.Expression{}}
	elements, pairs := structure(t), 0
	for _, base := range slices.Sorted(maps.Keys(table())) {
		types := []string{base}
		if base == "Resource" {
			types = []string{"Patient", "Bundle", "Parameters"}
		}
		for _, typ := range types {
			for _, code := range slices.Sorted(maps.Keys(table()[base])) {
				if p := table()[base][code]; len(p.paths) > 0 {
					(&pair{t, o, base, typ, p, map[string]bool{}}).compare(elements)
					pairs++
				}
			}
		}
	}
	t.Logf("%d pairs of type and parameter, %d evaluations", pairs, o.evaluations)
	if pairs < 1600 {
		t.Errorf("only %d pairs of type and parameter", pairs)
	}
}

func (p *pair) compare(elements map[string][]string) {
	for _, at := range p.paths {
		for shape := range second + 1 {
			p.positive(at, shape)
		}
		p.filteredOut(at)
		p.siblings(at, elements)
		raw, _ := sampled(at.typ, 1)
		body, _ := put(p.typ, at.steps, raw, listed)
		p.agree(fmt.Sprintf(`{"resourceType":%q,"id":"r","contained":[%s]}`, p.typ, body))
		body, _ = put(p.typ, at.steps[len(at.steps)-1:], raw, single)
		p.agree(body)
	}
	for _, name := range p.elements() {
		if !p.reached[name] {
			p.Errorf("%s.%s: no path leads to %s of %s", p.typ, p.code, name, p.expression)
		}
	}
}

// positive wants the value, and only that one, to be found by both.
func (p *pair) positive(at path, shape int) {
	raw, query := sampled(at.typ, 1)
	_, other := sampled(at.typ, 2)
	for _, s := range at.steps {
		if s.filter == "is" {
			query, other = strings.Replace(query, "Basic", s.want, 1), strings.Replace(other, "Basic", s.want, 1)
		}
	}
	if at.system != "" {
		query, other = at.system+"|"+query, at.system+"|"+other
	}
	body, leaf := put(p.typ, at.steps, raw, shape)
	want := []string{strings.Trim(leaf, `"`)}
	if got := p.found(p.T, p.parameter, body); !slices.Equal(want, got) {
		p.Errorf("%s.%s: %s: %s finds %q", p.typ, p.code, body, p.expression, got)
	}
	if !p.matches("="+query, body) {
		p.Errorf("%s.%s: %s: %s does not match", p.typ, p.code, body, query)
	}
	if at.typ != exists && p.matches("="+other, body) {
		p.Errorf("%s.%s: %s: %s matches", p.typ, p.code, body, other)
	}
}

// filteredOut puts the value where a filter does not let it pass.
func (p *pair) filteredOut(at path) {
	raw, _ := sampled(at.typ, 1)
	for i, s := range at.steps {
		if s.filter == "" {
			continue
		}
		steps := slices.Clone(at.steps)
		for _, want := range []string{"Group", "fax", s.want + "x"} {
			steps[i].want = want
			body, _ := put(p.typ, steps, raw, listed)
			p.agree(body)
		}
		steps[i].filter = "id"
		body, _ := put(p.typ, steps, raw, listed)
		p.agree(body)
	}
}

// siblings puts values of the other types where one can be of several. It wants
// paths to know the types of what they lead to.
func (p *pair) siblings(at path, elements map[string][]string) {
	name := p.base
	for i, s := range at.steps {
		element, typ := elementOf(name, s.name, elements)
		types := elements[name+"."+element]
		name += "." + element
		if i == len(at.steps)-1 && typ != at.typ && at.typ != exists {
			p.Errorf("%s.%s: %s is of the type %s, not %s", p.typ, p.code, name, typ, at.typ)
		}
		if len(types) == 1 {
			continue
		}
		for _, typ := range types {
			if slices.Contains(unsearched[p.kind], typ) || mistaken[p.typ+"."+p.code] == typ {
				continue
			}
			steps := slices.Clone(at.steps[:i+1])
			steps[i].name = element + capital(typ)
			raw, _ := sampled(typ, 1)
			if steps[i].filter != "" && raw[0] != '{' {
				continue
			}
			body, _ := put(p.typ, steps, raw, single)
			p.agree(body)
		}
	}
	p.reached[name] = true
}

// elementOf is the element that a JSON name stands for, and which type of it.
func elementOf(in, name string, elements map[string][]string) (element, typ string) {
	if types := elements[in+"."+name]; len(types) == 1 {
		return name, types[0]
	}
	for full, types := range elements {
		element, ok := strings.CutPrefix(full, in+".")
		for _, typ := range types {
			if ok && len(types) > 1 && element+capital(typ) == name {
				return element, typ
			}
		}
	}
	return name, "" // a part of a resource
}

var function = regexp.MustCompile(`\.(?:as|where|ofType|exists)\((?:[^()]|\(\))*\)| as [A-Za-z]+| and .*|[() ]`)

// elements are those to which an expression leads, read in another way than gen
// does: without its filters.
func (p *pair) elements() []string {
	var names []string
	for branch := range strings.SplitSeq(p.expression, "|") {
		name := function.ReplaceAllString(branch, "")
		if _, rest, ok := strings.Cut(name, "."); ok && name[0] >= 'A' && name[0] <= 'Z' {
			name = rest
		}
		names = append(names, p.base+"."+name)
	}
	return names
}

// TestOracleSynthea compares with resources that nobody made for this test.
func TestOracleSynthea(t *testing.T) {
	dir := cmp.Or(os.Getenv("TIDEMARK_SYNTHEA"), "../../../shared/data/synthea")
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson.gz"))
	if err != nil || len(files) == 0 {
		t.Skipf("no synthetic resources in %s", dir)
	}
	o := &oracle{compiled: map[string]*fhirpath.Expression{}}
	resources, some := 0, 0
	for _, file := range files {
		for _, line := range sampleLines(t, file, 40) {
			resources++
			some += o.compareAll(t, line)
		}
	}
	t.Logf("%d resources, %d evaluations, of which %d found something", resources, o.evaluations, some)
}

// compareAll compares all parameters of a resource's type, and tells how many are
// not missing.
func (o *oracle) compareAll(t *testing.T, line []byte) (some int) {
	var s fhir.Scanner
	r, err := s.Scan(line)
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []string{"Resource", r.Key.Type.String()} {
		for _, p := range table()[of] {
			if len(p.paths) == 0 {
				continue
			}
			q := &Query{Type: r.Key.Type, criteria: []criterion{{param: p, test: present{}}}}
			got := New(q).Matcher().Match(r.Body)
			want := o.found(t, p, string(r.Body))
			if got != (len(want) > 0) {
				t.Errorf("%s.%s: found %t, but %s finds %q", r.Key.Type, p.code, got, p.expression, want)
			}
			if got {
				some++
			}
		}
	}
	return some
}

// sampleLines are some lines of a file from all over it.
func sampleLines(t *testing.T, file string, some int) [][]byte {
	lines := bytes.SplitAfter(unzipped(t, file), []byte("\n"))
	lines = lines[:len(lines)-1]
	var picked [][]byte
	for i := 0; i < len(lines); i += max(1, len(lines)/some) {
		picked = append(picked, lines[i])
	}
	return picked
}

func unzipped(t testing.TB, file string) []byte {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(z); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
