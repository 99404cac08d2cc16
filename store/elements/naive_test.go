package elements

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
)

// A pair is a member as encoding/json reads it: its name, and its value's bytes.
type pair struct{ name, value string }

func pairs(t *testing.T, doc string) (all []pair) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(doc))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		name, err := d.Token()
		var value json.RawMessage
		if err := errors.Join(err, d.Decode(&value)); err != nil {
			t.Fatalf("%v: %s", err, doc)
		}
		all = append(all, pair{name.(string), string(value)})
	}
	return all
}

// naive says what Append should leave of a resource, the slow and obvious way.
func naive(t *testing.T, res fhir.Resource, values string) (want []pair) {
	t.Helper()
	all := pairs(t, string(res.Body))
	reached := map[string]bool{}
	for _, p := range all {
		if naiveKeeps(res.Key.Type.String(), values, p.name) {
			naiveReferences(json.NewDecoder(strings.NewReader(p.value)), reached)
		}
	}
	hasMeta := false
	for _, p := range all {
		switch {
		case p.name == "meta":
			hasMeta = true
			want = append(want, pair{"meta", naiveMeta(t, p.value, res.Subsetted)})
		case naiveKeeps(res.Key.Type.String(), values, p.name):
			want = append(want, p)
		case p.name == "contained":
			if list := naiveContained(p.value, reached); len(list) > 0 {
				want = append(want, pair{p.name, "[" + strings.Join(list, ",") + "]"})
			}
		}
	}
	if !hasMeta {
		want = append(want, pair{"meta", `{"tag":[` + ours + `]}`})
	}
	return want
}

// naiveContained are the contained resources that are reached, and those that are
// reached from them.
func naiveContained(value string, reached map[string]bool) (stay []string) {
	var list []json.RawMessage
	if json.Unmarshal([]byte(value), &list) != nil {
		return nil
	}
	if len(list) > maxInside {
		for _, text := range list[:min(len(list), len(list)*len(reached))] {
			stay = append(stay, string(text))
		}
		return stay
	}
	id := func(text json.RawMessage) string {
		var members map[string]json.RawMessage
		var id string
		if json.Unmarshal(text, &members) != nil || json.Unmarshal(members["id"], &id) != nil {
			return ""
		}
		return id
	}
	for before := -1; before < len(reached); {
		before = len(reached)
		for _, text := range list {
			if reached[id(text)] {
				naiveReferences(json.NewDecoder(bytes.NewReader(text)), reached)
			}
		}
	}
	for _, text := range list {
		if reached[id(text)] {
			stay = append(stay, string(text))
		}
	}
	return stay
}

// naiveLines are those of the table.
var naiveLines = func() map[string][]string {
	all := map[string][]string{}
	for line := range strings.Lines(definitions) {
		words := strings.Fields(line)
		all[words[0]] = words[1:]
	}
	return all
}()

func naiveKeeps(typ, values, name string) bool {
	name = strings.TrimPrefix(name, "_")
	switch name {
	case "resourceType", "id", "meta", "implicitRules", "modifierExtension":
		return true
	}
	for _, text := range naiveLines[typ] {
		one, other, _ := strings.Cut(text, ">")
		for value := range strings.SplitSeq(values, ",") {
			if other != "" && strings.TrimPrefix(strings.TrimSpace(value), typ+".") == one {
				values += "," + other
			}
		}
	}
	for _, text := range naiveLines[typ] {
		path, types, choice := strings.Cut(strings.TrimLeft(text, "*!+"), "=")
		path, _, _ = strings.Cut(path, ">")
		stem := strings.TrimSuffix(path, "[x]")
		rest, is := strings.CutPrefix(name, stem)
		if choice {
			is = is && rest != "" && strings.ToLower(rest[:1]) != rest[:1]
		} else {
			is = is && rest == ""
		}
		if is && strings.ContainsAny(text, "*!+") {
			return true
		}
		for value := range strings.SplitSeq(values, ",") {
			value = strings.TrimPrefix(strings.TrimSpace(value), typ+".")
			if is && (value == path || value == stem) {
				return true
			}
			if is && choice && value == name && strings.Contains("|"+types+"|", "|"+rest+"|") {
				return true
			}
		}
	}
	return false
}

// naiveReferences notes the ids of contained resources that a value refers to.
func naiveReferences(d *json.Decoder, ids map[string]bool) {
	token, err := d.Token()
	if err != nil {
		return
	}
	switch token {
	case json.Delim('['):
		for d.More() {
			naiveReferences(d, ids)
		}
	case json.Delim('{'):
		for d.More() {
			name, _ := d.Token()
			var value json.RawMessage
			var ref string
			if d.Decode(&value) != nil {
				return
			}
			if name == "reference" && json.Unmarshal(value, &ref) == nil && strings.HasPrefix(ref, "#") && ref != "#" {
				ids[ref[1:]] = true
			}
			naiveReferences(json.NewDecoder(bytes.NewReader(value)), ids)
		}
	default:
		return
	}
	_, _ = d.Token()
}

func naiveMeta(t *testing.T, meta string, subsetted bool) string {
	t.Helper()
	if subsetted {
		return meta
	}
	tag := "null"
	for _, p := range pairs(t, meta) {
		if p.name == "tag" {
			tag = p.value
		}
	}
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(tag), &list); err != nil {
		list = []json.RawMessage{json.RawMessage(tag)}
	}
	var texts []string
	for _, m := range append(list, json.RawMessage(ours)) {
		texts = append(texts, string(m))
	}
	joined := "[" + strings.Join(texts, ",") + "]"
	var parts []string
	has := false
	for _, p := range pairs(t, meta) {
		name, _ := json.Marshal(p.name)
		if p.name == "tag" {
			has, p.value = true, joined
		}
		parts = append(parts, string(name)+":"+p.value)
	}
	if !has {
		parts = append(parts, `"tag":`+joined)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// check holds Append against the naive way, and against the scanner.
func check(t *testing.T, s *fhir.Scanner, p *Projection, values string, res fhir.Resource) {
	t.Helper()
	got := p.Append(nil, res.Body, res.Key.Type)
	want, left := naive(t, res, values), pairs(t, string(got))
	for _, list := range [][]pair{want, left} {
		for i, m := range list {
			if m.name == "meta" { // its names may be escaped
				list[i].value = canonical(t, m.value)
			}
		}
	}
	if diff := gocmp.Diff(want, left, gocmp.AllowUnexported(pair{})); diff != "" {
		t.Fatalf("_elements=%s (-naive +got):\n%s", values, diff)
	}
	again, err := s.Scan(got)
	switch {
	case err != nil:
		t.Fatalf("no resource any more: %v: %s", err, got)
	case !bytes.Equal(again.Body, got):
		t.Fatalf("not compact: %s", got)
	case again.Key != res.Key, again.Version != res.Version, again.LastUpdated != res.LastUpdated:
		t.Fatalf("another resource: %s", got)
	case !again.Subsetted:
		t.Fatalf("not tagged: %s", got)
	}
	if twice := p.Append(nil, got, res.Key.Type); !bytes.Equal(twice, got) {
		t.Fatalf("cut again\n%s\n%s", twice, got)
	}
	for _, m := range left {
		if m.name != "meta" && m.name != "contained" && !bytes.Contains(res.Body, []byte(`":`+m.value)) {
			t.Fatalf("not a span of the resource: %s", m.value)
		}
	}
}

// canonical writes the names of a meta in one way, and leaves values as they are.
func canonical(t *testing.T, meta string) string {
	t.Helper()
	var b strings.Builder
	for _, p := range pairs(t, meta) {
		name, _ := json.Marshal(p.name)
		b.WriteString(string(name) + ":" + p.value + "\n")
	}
	return b.String()
}

var valueLists = []string{
	"id",
	"Patient.name,Patient.birthDate,Observation.value,Observation.effectiveDateTime,code",
	"text,contained,extension,identifier",
	"value[x],onset,period,Claim.item,ExplanationOfBenefit.contained,member",
	"valueQuantity,subject,patient,provider,medication,medicationReference",
}

func TestDocuments(t *testing.T) {
	f, err := os.Open(filepath.Join("..", "fhir", "testdata", "documents.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	checkLines(t, f)
}

// TestSynthea is about synthetic patients, as far as they are there.
func TestSynthea(t *testing.T) {
	for _, path := range syntheaFiles(t, "*") {
		t.Run(filepath.Base(path), func(t *testing.T) { checkLines(t, open(t, path)) })
	}
}

func syntheaFiles(tb testing.TB, name string) []string {
	tb.Helper()
	dir := cmp.Or(os.Getenv("TIDEMARK_SYNTHEA"), filepath.Join("..", "..", "..", "shared", "data", "synthea"))
	files, err := filepath.Glob(filepath.Join(dir, name+".ndjson.gz"))
	if err != nil || len(files) == 0 {
		tb.Skipf("no synthetic patients in %s: set TIDEMARK_SYNTHEA", dir)
	}
	return files
}

func open(tb testing.TB, path string) io.Reader {
	tb.Helper()
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	return z
}

// maxLines of a file tell what there is to tell: naive is slow.
const maxLines = 500

// checkLines cuts each line that the scanner takes in one way, by turns.
func checkLines(t *testing.T, r io.Reader) {
	t.Helper()
	var s fhir.Scanner
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	n := 0
	for n < maxLines && lines.Scan() {
		res, err := s.Scan(lines.Bytes())
		if err != nil {
			continue
		}
		values := valueLists[n%len(valueLists)]
		check(t, &s, parse(t, values), values, res)
		n++
	}
	if err := lines.Err(); err != nil || n == 0 {
		t.Fatalf("%d lines: %v", n, err)
	}
}

// FuzzAppend cuts whatever the scanner takes for a resource to whatever Parse
// takes for elements.
func FuzzAppend(f *testing.F) {
	for _, c := range appendCases {
		f.Add([]byte(c.doc), c.values)
	}
	for _, values := range valueLists {
		f.Add([]byte(`{"resourceType":"Patient","id":"p","contained":[{}],"text":{"div":"<"}}`), values)
	}
	f.Fuzz(func(t *testing.T, doc []byte, values string) {
		p, faults := Parse([]string{values})
		left := 0
		if p != nil {
			left = len(p.entries)
		}
		if n := strings.Count(values, ",") + 1; left+len(faults) != n {
			t.Fatalf("%q: %d entries, %d faults", values, left, len(faults))
		}
		var s fhir.Scanner
		res, err := s.Scan(doc)
		if err != nil || p == nil {
			return
		}
		body := bytes.Clone(res.Body)
		check(t, &s, p, values, res)
		if !bytes.Equal(body, res.Body) {
			t.Fatal("Append changed what it read")
		}
	})
}
