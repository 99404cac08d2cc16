package elements

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
)

// parse is for values that nothing is wrong with.
func parse(tb testing.TB, values ...string) *Projection {
	tb.Helper()
	p, faults := Parse(values)
	if len(faults) > 0 {
		tb.Fatal(faults)
	}
	return p
}

func typeOf(tb testing.TB, name string) fhir.Type {
	tb.Helper()
	t, ok := fhir.ParseType(name)
	if !ok {
		tb.Fatalf("no type %s", name)
	}
	return t
}

func TestParseFaults(t *testing.T) {
	for value, want := range map[string]string{
		"":                      reasonEmpty,
		" ":                     reasonEmpty,
		"id,":                   reasonEmpty,
		",id":                   reasonEmpty,
		"Patient.":              reasonEmpty,
		".name":                 reasonNested,
		"Patient":               reasonBare,
		"Patients.name":         reasonType,
		"Resource.id":           reasonType,
		"patient.name":          reasonNested,
		"name.family":           reasonNested,
		"Patient.name.family":   reasonNested,
		"Patients.name.family":  reasonNested,
		"nope":                  reasonNowhere,
		"Name":                  reasonNowhere,
		"resourceType":          reasonNowhere,
		"_birthDate":            reasonNowhere,
		"name[x]":               reasonNowhere,
		"valueAttachment":       reasonNowhere,
		"valueq":                reasonNowhere,
		"Patient.status":        "Patient has no such root element in FHIR R4 (4.0.1)",
		"Patient.valueQuantity": "Patient has no such root element in FHIR R4 (4.0.1)",
		"Observation.status[x]": "Observation has no such root element in FHIR R4 (4.0.1)",
		"Observation.value[X]":  "Observation has no such root element in FHIR R4 (4.0.1)",
		"Binary.text":           "Binary has no such root element in FHIR R4 (4.0.1)",
	} {
		_, faults := Parse([]string{value})
		if len(faults) != 1 || faults[0].Reason != want {
			t.Errorf("%q: %v, want %s", value, faults, want)
		}
	}
}

// TestParseRest is for lenient clients: what is left when faults are ignored.
func TestParseRest(t *testing.T) {
	p, faults := Parse([]string{"Patient.name, nope", "", " Observation.code ,a.b"})
	want := []Fault{{"nope", reasonNowhere}, {"", reasonEmpty}, {"a.b", reasonNested}}
	if diff := cmp.Diff(want, faults); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	for name, want := range map[string]bool{"Patient": true, "Observation": true, "Encounter": false} {
		if got := p.Applies(typeOf(t, name)); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if p, _ := Parse([]string{"nope"}); p != nil {
		t.Error("a projection of nothing")
	}
	if p, faults := Parse(nil); p != nil || faults != nil {
		t.Error("no values are something")
	}
}

func TestApplies(t *testing.T) {
	for _, c := range []struct{ values, in, notIn string }{
		{"id", "Patient Observation Binary Parameters", ""},
		{"Patient.id", "Patient", "Observation"},
		{"name", "Patient Organization", "Observation"},
		{"text", "Patient", "Binary Bundle Parameters"},
		{"value", "Observation", "Patient"},
		{"value[x]", "Observation", "Patient"},
		{"valueQuantity", "Observation", "Patient"},
		{"deceased,Goal.start", "Patient FamilyMemberHistory Goal", "Slot Observation"},
		{"start", "Goal Slot Appointment", "Patient"},
		{"start[x]", "Goal", "Slot Appointment"},
	} {
		p := parse(t, c.values)
		for name := range strings.FieldsSeq(c.in) {
			if !p.Applies(typeOf(t, name)) {
				t.Errorf("%s does not apply to %s", c.values, name)
			}
		}
		for name := range strings.FieldsSeq(c.notIn) {
			if p.Applies(typeOf(t, name)) {
				t.Errorf("%s applies to %s", c.values, name)
			}
		}
		if p.Applies(0) || p.Applies(60000) {
			t.Errorf("%s applies to no type", c.values)
		}
	}
	if (*Projection)(nil).Applies(typeOf(t, "Patient")) {
		t.Error("nothing applies")
	}
}

func TestUnmet(t *testing.T) {
	p := parse(t, "id,name,Observation.code", "valueQuantity", "Patient.birthDate")
	for types, want := range map[string][]string{
		"Patient Observation": nil,
		"Patient":             {"Observation.code", "valueQuantity"},
		"Observation":         {"name", "Patient.birthDate"},
		"":                    {"id", "name", "Observation.code", "valueQuantity", "Patient.birthDate"},
	} {
		var list []fhir.Type
		for name := range strings.FieldsSeq(types) {
			list = append(list, typeOf(t, name))
		}
		var got []string
		for _, f := range p.Unmet(list) {
			got = append(got, f.Value)
			if f.Reason != reasonUnmet {
				t.Errorf("%s: %s", f.Value, f.Reason)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", types, diff)
		}
	}
	if got := (*Projection)(nil).Unmet(nil); got != nil {
		t.Errorf("nothing is unmet: %v", got)
	}
}

// TestParseAgain: what is asked for a thousand times is looked for once.
func TestParseAgain(t *testing.T) {
	once := parse(t, "name,value")
	often := parse(t, strings.Repeat("name,value,value[x],", 1000)+"name,value")
	if diff := cmp.Diff(once.keep, often.keep, cmp.AllowUnexported(selection{})); diff != "" {
		t.Errorf("-once +often:\n%s", diff)
	}
}

// TestParseShares: projections start from the same lists, and do not write into
// each other's.
func TestParseShares(t *testing.T) {
	typ := typeOf(t, "Patient")
	names := []string{"name", "birthDate", "gender", "photo"}
	var all []*Projection
	for _, name := range names {
		all = append(all, parse(t, "Patient."+name))
	}
	for i, p := range all {
		for j, name := range names {
			if got := p.keep[typ].holds([]byte(name)); got != (i == j) {
				t.Errorf("asked for %s: %s is kept: %t", names[i], name, got)
			}
		}
	}
}
