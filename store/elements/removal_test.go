package elements

import (
	"testing"

	"tidemark/store/fhir"
)

var removalCases = []struct {
	name   string
	values []string
	doc    string
	want   string
}{
	{
		"root, nested and the narrative",
		[]string{"Claim.total", "Claim.item.net", "Claim.item.detail.net"},
		`{"resourceType":"Claim","id":"c","text":{"div":"<p>12 EUR</p>"},"status":"active","item":[{"sequence":1,"net":{"value":1.50}},{"net":{},"sequence":2,"detail":[{"sequence":1,"net":{"value":3},"_net":{"id":"x"}}]}],"total":{"value":12}}`,
		`{"resourceType":"Claim","id":"c","status":"active","item":[{"sequence":1},{"sequence":2,"detail":[{"sequence":1}]}],` + tagged + `}`,
	}, {
		"names with escapes",
		[]string{"Claim.total", "Claim.item.net"},
		`{"resourceType":"Claim","id":"c","it\u0065m":[{"sequence":1,"n\u0065t":1}],"tot\u0061l":{"value":12}}`,
		`{"resourceType":"Claim","id":"c","it\u0065m":[{"sequence":1}],` + tagged + `}`,
	}, {
		"tagged once, and also where nothing of it was",
		[]string{"Patient.birthDate"},
		`{"resourceType":"Patient","id":"p","meta":{"tag":[` + ours + `]},"active":true}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":[` + ours + `]},"active":true}`,
	}, {
		"another type stays as it is",
		[]string{"Patient.birthDate"},
		`{"resourceType":"Person","id":"p","text":{"div":"x"},"birthDate":"2000"}`,
		`{"resourceType":"Person","id":"p","text":{"div":"x"},"birthDate":"2000"}`,
	}, {
		"a choice goes with all its names, and what needs it",
		[]string{"Observation.value"},
		`{"resourceType":"Observation","id":"o","valueQuantity":{"value":1},"_valueString":{},"values":1}`,
		`{"resourceType":"Observation","id":"o","values":1,` + tagged + `}`,
	}, {
		"an element goes with what an invariant forbids without it",
		[]string{"FamilyMemberHistory.age"},
		`{"resourceType":"FamilyMemberHistory","id":"f","ageAge":{},"estimatedAge":true,"sex":{}}`,
		`{"resourceType":"FamilyMemberHistory","id":"f","sex":{},` + tagged + `}`,
	}, {
		"contained resources go with what referred to them",
		[]string{"Claim.related"},
		`{"resourceType":"Claim","id":"c","contained":[{"resourceType":"Claim","id":"a"},{"resourceType":"Patient","id":"b"}],"related":[{"claim":{"reference":"#a"}}],"patient":{"reference":"#b"}}`,
		`{"resourceType":"Claim","id":"c","contained":[{"resourceType":"Patient","id":"b"}],"patient":{"reference":"#b"},` + tagged + `}`,
	}, {
		"contained resources are resources",
		[]string{"Claim.total"},
		`{"resourceType":"Task","id":"t","contained":[{"resourceType":"Claim","id":"a","total":{}}],"focus":{"reference":"#a"}}`,
		`{"resourceType":"Task","id":"t","contained":[{"resourceType":"Claim","id":"a",` + tagged + `}],"focus":{"reference":"#a"},` + tagged + `}`,
	}, {
		"entries of a Bundle are resources",
		[]string{"Claim.total"},
		`{"resourceType":"Bundle","id":"t","entry":[{"fullUrl":"u","resource":{"resourceType":"Claim","id":"a","total":{}}},{"resource":{"resourceType":"Patient","id":"b"}}]}`,
		`{"resourceType":"Bundle","id":"t","entry":[{"fullUrl":"u","resource":{"resourceType":"Claim","id":"a",` + tagged + `}},{"resource":{"resourceType":"Patient","id":"b"}}],` + tagged + `}`,
	}, {
		"a Bundle with nothing of it stays as it is",
		[]string{"Claim.total"},
		`{"resourceType":"Bundle","id":"t","entry":[{"resource":{"resourceType":"Patient","id":"b"}},[],{},null]}`,
		`{"resourceType":"Bundle","id":"t","entry":[{"resource":{"resourceType":"Patient","id":"b"}},[],{},null]}`,
	},
}

func TestRemoval(t *testing.T) {
	for _, c := range removalCases {
		t.Run(c.name, func(t *testing.T) {
			r, faults := ParseRemoval(c.values)
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			var s fhir.Scanner
			res, err := s.Scan([]byte(c.doc))
			if err != nil || string(res.Body) != c.doc {
				t.Fatalf("the case is not compact: %v", err)
			}
			got := string(r.Append([]byte("before "), append(res.Body, '\n'), res.Key.Type))
			if got != "before "+c.want+"\n" {
				t.Errorf("got  %s\nwant before %s", got, c.want)
			}
		})
	}
}

func TestRemovalFaults(t *testing.T) {
	for value, want := range map[string]string{
		"":                                reasonEmpty,
		"total":                           reasonUntyped,
		"Claim":                           reasonBare,
		"Claim.":                          reasonEmpty,
		"Claim.tota":                      "Claim has no such root element in FHIR R4 (4.0.1)",
		"Nothing.total":                   reasonType,
		"Claim.status":                    reasonMandatory,
		"Claim.id":                        reasonMandatory,
		"Claim.meta":                      reasonMandatory,
		"MedicationRequest.medication":    reasonMandatory,
		"MedicationRequest.medication[x]": reasonMandatory,
		"MedicationRequest.medicationCodeableConcept": reasonMandatory,
		"Patient.modifierExtension":                   reasonMandatory,
		"Claim.item.sequence":                         reasonBelow,
		"ClaimResponse.item.adjudication":             reasonBelow,
		"Patient.name.family":                         reasonBelow,
	} {
		if _, faults := ParseRemoval([]string{value, "Claim.total"}); len(faults) != 1 || faults[0] != (Fault{value, want}) {
			t.Errorf("%q: %v, want %s", value, faults, want)
		}
	}
	if r, faults := ParseRemoval(nil); r != nil || faults != nil {
		t.Errorf("nothing: %v, %v", r, faults)
	}
}

// TestRemovalNothing is no policy.
func TestRemovalNothing(t *testing.T) {
	var r *Removal
	if got := string(r.Append([]byte("x"), []byte(`{"resourceType":"Patient"}`), 0)); got != `x{"resourceType":"Patient"}` {
		t.Errorf("got %q", got)
	}
}

// TestInside finds resources as deep as they stand.
func TestInside(t *testing.T) {
	doc := []byte(`{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Task","contained":[{"resourceType":"Claim"}],"x":{"resourceType":"Patient"}}}]}`)
	got := ""
	Inside(doc, typeOf(t, "Bundle"), func(t fhir.Type, resource []byte) { got += t.String() + " " + string(resource[:17]) + ";" })
	if want := `Task {"resourceType":";Claim {"resourceType":";`; got != want {
		t.Errorf("got %s", got)
	}
}
