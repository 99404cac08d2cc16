package fhir

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const ownBase = "http://own.example/fhir"

func TestCompartmentTypes(t *testing.T) {
	types := map[string]bool{"Patient": true}
	for path, list := range compartments {
		if path == "securityContext" { // of what no export of Patients holds
			continue
		}
		for typ := range strings.FieldsSeq(list) {
			types[typ] = true
		}
	}
	if len(types) != 68 {
		t.Errorf("%d types, want the 66 of the official table, Device and Task", len(types))
	}
	for _, typ := range AllTypes() {
		if got := InPatientCompartment(typ); got != types[typ.String()] {
			t.Errorf("InPatientCompartment(%s) = %v", typ, got)
		}
	}
	for name := range patientPaths {
		if _, ok := ParseType(name); !ok {
			t.Errorf("the table has %s, which is no type", name)
		}
	}
}

// TestCompartments scans documents of every type, with references at every path
// of every type (so mostly at places that mean nothing there), written in all
// the ways we could think of, and compares with the naive reading.
func TestCompartments(t *testing.T) {
	s := Scanner{OwnBases: []string{"http://other.example/", ownBase + "/"}}
	for _, typ := range AllTypes() {
		edges := 0
		for seed := range uint64(60) {
			g := generator{rand.New(rand.NewPCG(seed, uint64(typ)))}
			doc := g.document(typ.String())
			got, err := s.Scan(doc)
			if err != nil {
				t.Fatalf("%s, seed %d: %v\n%s", typ, seed, err, doc)
			}
			want := naive(t, doc, ownBase)
			if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Resource{}, "Body", "Meta")); diff != "" {
				t.Fatalf("%s, seed %d (-want +got):\n%s\n%s", typ, seed, diff, doc)
			}
			edges += len(got.Patients)
		}
		if (edges > 0) != (InPatientCompartment(typ) || typ == Binary) {
			t.Errorf("%s: %d edges found", typ, edges)
		}
	}
}

// TestEachPath proves of each row of the table alone that it is followed.
func TestEachPath(t *testing.T) {
	var s Scanner
	for path, types := range compartments {
		for typ := range strings.FieldsSeq(types) {
			value := `{"reference":"Patient/p-1"}`
			steps := strings.Split(path, ".")
			for _, name := range slices.Backward(steps) {
				value = fmt.Sprintf(`{%q:%s}`, name, value)
			}
			for _, doc := range []string{
				`{"resourceType":"` + typ + `","id":"x",` + value[1:],
				`{"id":"x",` + value[1:len(value)-1] + `,"resourceType":"` + typ + `"}`,
			} {
				res, err := s.Scan([]byte(doc))
				if err != nil || !slices.Equal(res.Patients, []string{"p-1"}) {
					t.Errorf("%s.%s leads to %v, %v", typ, path, res.Patients, err)
				}
			}
		}
	}
}

// A generator invents documents: valid JSON, seldom sensible FHIR. The same
// seed gives the same document.
type generator struct{ *rand.Rand }

func (g generator) oneIn(n int) bool { return g.IntN(n) == 0 }

func (g generator) document(typ string) []byte {
	members := []string{
		g.name("resourceType") + ":" + g.text(typ),
		g.name("id") + ":" + g.text(fmt.Sprintf("id-%d", g.IntN(1000))),
		`"contained":[{"resourceType":"Observation","id":"c","subject":{"reference":"Patient/contained"}}]`,
		`"extension":[{"url":"u","valueReference":{"reference":"Patient/extension"},"subject":{"reference":"Patient/extension"}}]`,
	}
	if g.oneIn(2) {
		members = append(members, g.meta())
	}
	// One element of each name: a path would not be followed twice.
	heads := map[string]string{}
	for _, path := range slices.Sorted(maps.Keys(compartments)) {
		head, rest, _ := strings.Cut(path, ".")
		if g.oneIn(3) && (heads[head] == "" || g.oneIn(2)) {
			heads[head] = rest
		}
	}
	if typ == "Group" {
		members = append(members, `"member":`+g.list(g.member))
		delete(heads, "member")
	}
	for _, path := range pathsOf(typ) {
		if head, rest, _ := strings.Cut(path, "."); head != "member" && !g.oneIn(4) {
			heads[head] = rest
		}
	}
	for _, head := range slices.Sorted(maps.Keys(heads)) {
		members = append(members, g.name(head)+":"+g.element(heads[head]))
	}
	g.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	if g.oneIn(2) { // as nearly everybody writes it
		slices.SortStableFunc(members, func(a, b string) int {
			return strings.Compare(fmt.Sprint(!strings.Contains(a, "resourceType")), fmt.Sprint(!strings.Contains(b, "resourceType")))
		})
	}
	return []byte(g.space() + "{" + g.space() + strings.Join(members, g.space()+","+g.space()) + g.space() + "}" + g.space())
}

func (g generator) meta() string {
	members := []string{
		`"versionId":"7"`, `"lastUpdated":"2026-01-02T03:04:05.123456+01:00"`, `"profile":["http://example.org"]`,
		`"tag":` + g.list(func() string {
			return fmt.Sprintf(`{"system":%q,"code":%q}`,
				g.pick("http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "http://example.org"), g.pick("SUBSETTED", "ACTREASON"))
		}),
	}
	g.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	return `"meta":{` + strings.Join(members[:g.IntN(len(members)+1)], ",") + `}`
}

// element is what stands at the rest of a path.
func (g generator) element(rest string) string {
	return g.list(func() string {
		head, rest, _ := strings.Cut(rest, ".")
		if head == "" {
			return g.reference()
		}
		return `{"note":["x",1.00,true,null],` + g.name(head) + `:` + g.element(rest) + `,"subject":{"reference":"Patient/too-deep"}}`
	})
}

func (g generator) reference() string {
	if g.oneIn(12) {
		return "null"
	}
	ref := g.text(g.target())
	return g.pick(
		`{"reference":`+ref+`}`,
		`{"type":"Patient","identifier":{"value":"1"}}`,
		`{"display":"D. \u00e9 Canary","reference":`+ref+`,"identifier":{"assigner":{"reference":"Patient/assigner"}}}`,
		`{`+g.name("reference")+g.space()+`:`+g.space()+ref+`}`,
		`{"reference":null}`,
		`{}`)
}

func (g generator) target() string {
	id := fmt.Sprintf("p-%d", g.IntN(4))
	if g.oneIn(2) {
		return "Patient/" + id
	}
	return g.pick("Patient/"+id+"/_history/3", ownBase+"/Patient/"+id, ownBase+"/Patient/"+id+"/_history/1",
		"http://foreign.example/fhir/Patient/"+id, ownBase+"Patient/"+id, "Practitioner/"+id, "Group/"+id, "#"+id, "urn:uuid:0c2f4a51-93b6-4e7a-8d0f-1b7ad92c4405",
		"Patient?identifier=x|"+id, "Patient/", "Patient/"+id+"/", "Patient/"+id+"/_history/", "patient/"+id, "/Patient/"+id, "Patient/a b", "", "Patient",
		"Patient/"+strings.Repeat("9", 64), "Patient/"+strings.Repeat("9", 65))
}

func (g generator) member() string {
	members := []string{`"entity":` + g.reference()}
	if g.oneIn(2) {
		members = append(members, `"inactive":`+g.pick("true", "false", "null"))
	}
	if g.oneIn(2) {
		members = append(members, fmt.Sprintf(`"period":{"start":%q,"end":%q}`, g.dateTime(), g.dateTime()))
	}
	g.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	return "{" + strings.Join(members, g.space()+",") + "}"
}

func (g generator) dateTime() string {
	return g.pick("2024", "2024-02", "2024-02-29", "2024-02-29T10:00:00+01:00", "2024-02-29T10:00:00.1Z", "2024-02-29T10:00:00.123-05:00")
}

// list writes one element plain or a few as a list, in it perhaps another.
func (g generator) list(element func() string) string {
	if g.oneIn(3) {
		return element()
	}
	all := make([]string, g.IntN(4))
	for i := range all {
		all[i] = element()
	}
	return "[" + g.space() + strings.Join(all, g.space()+",") + "]"
}

// text writes a string, sometimes with escapes that nobody needs.
func (g generator) text(s string) string {
	if g.oneIn(4) {
		s = strings.ReplaceAll(s, "/", `\/`)
	}
	if g.oneIn(4) {
		s = strings.Replace(s, "a", `\u0061`, 1)
	}
	return `"` + s + `"`
}

func (g generator) name(s string) string {
	if g.oneIn(10) {
		return fmt.Sprintf(`"\u%04X%s"`, s[0], s[1:])
	}
	return `"` + s + `"`
}

func (g generator) space() string { return g.pick("", "", "", " ", "\n\t", "\r\n  ") }

func (g generator) pick(of ...string) string { return of[g.IntN(len(of))] }

// What the generator writes must be JSON, or the comparison proves little.
func TestGenerator(t *testing.T) {
	for seed := range uint64(200) {
		g := generator{rand.New(rand.NewPCG(seed, 0))}
		if doc := g.document("Group"); !json.Valid(doc) {
			t.Fatalf("seed %d: not JSON: %s", seed, doc)
		}
	}
}

// TestMayNamePatient: whatever a directory, a formulary or terminology is made
// of names nobody; all that can lie in a compartment may, and what holds anything.
func TestMayNamePatient(t *testing.T) {
	for name, want := range map[string]bool{
		"Organization": false, "Practitioner": false, "PractitionerRole": false, "Location": false, "HealthcareService": false, "Endpoint": false,
		"OrganizationAffiliation": false, "InsurancePlan": false, "MedicationKnowledge": false, "Medication": false, "Slot": false, "ValueSet": false,
		"Patient": true, "Observation": true, "Schedule": true, "Basic": true, "Device": true, "Task": true,
		"Binary": true, "Bundle": true, "Parameters": true, "GuidanceResponse": true, "Contract": true, "VerificationResult": true, "BiologicallyDerivedProduct": true,
	} {
		typ, ok := ParseType(name)
		if !ok || MayNamePatient(typ) != want {
			t.Errorf("%s: got %v, want %v", name, MayNamePatient(typ), want)
		}
	}
}
