package elements

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"tidemark/store/fhir"
)

// kept says by hand what the types that are mostly exported keep beside what all
// do: elements of which there must be one, also those of which an invariant wants
// one of several, and modifiers.
var kept = map[string]string{
	"AllergyIntolerance":       "patient clinicalStatus verificationStatus",
	"Appointment":              "status participant start end",
	"Binary":                   "contentType",
	"CarePlan":                 "status intent subject",
	"CareTeam":                 "status",
	"Claim":                    "status type use patient created provider priority insurance",
	"ClaimResponse":            "status type use patient created insurer outcome",
	"Condition":                "subject clinicalStatus verificationStatus",
	"Consent":                  "status scope category patient policy policyRule",
	"Coverage":                 "status beneficiary payor",
	"Device":                   "status",
	"DiagnosticReport":         "status code",
	"DocumentReference":        "status content",
	"Encounter":                "status class",
	"ExplanationOfBenefit":     "status type use patient created insurer provider outcome insurance",
	"Goal":                     "lifecycleStatus description subject",
	"Group":                    "type actual",
	"ImagingStudy":             "status subject",
	"Immunization":             "status vaccineCode patient occurrence[x] isSubpotent",
	"Location":                 "status",
	"Medication":               "status",
	"MedicationAdministration": "status medication[x] subject effective[x]",
	"MedicationDispense":       "status medication[x]",
	"MedicationRequest":        "status intent medication[x] subject doNotPerform",
	"Observation":              "status code",
	"Organization":             "active identifier name",
	"Patient":                  "active deceased[x] link",
	"Practitioner":             "",
	"PractitionerRole":         "",
	"Procedure":                "status subject",
	"Provenance":               "target recorded agent",
	"QuestionnaireResponse":    "status",
	"RelatedPerson":            "patient active",
	"ServiceRequest":           "status intent subject doNotPerform",
	"Specimen":                 "status",
}

func TestTableByHand(t *testing.T) {
	for name, text := range kept {
		typ, _ := fhir.ParseType(name)
		want := strings.Fields(text)
		var got []string
		for _, n := range least()[typ].names {
			if !slices.Contains(always, n) {
				got = append(got, n)
			}
		}
		for _, stem := range least()[typ].stems {
			got = append(got, stem+"[x]")
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// TestTable is about all types: each is there, with the elements of Resource, and
// no element looks like a name of a choice, which holds would keep with it.
func TestTable(t *testing.T) {
	for _, typ := range fhir.AllTypes() {
		names := map[string]bool{}
		for _, e := range table()[typ] {
			if names[e.name] {
				t.Errorf("%s.%s comes twice", typ, e.name)
			}
			names[e.name] = true
			if e.beside != "" && !slices.ContainsFunc(table()[typ], func(other element) bool { return other.name == e.beside }) {
				t.Errorf("%s.%s stands beside %q, which is not there", typ, e.name, e.beside)
			}
		}
		for _, name := range []string{"id", "meta", "implicitRules", "language"} {
			if !names[name] {
				t.Errorf("%s.%s is missing", typ, name)
			}
		}
		for _, e := range table()[typ] {
			if e.choice == nil {
				continue
			}
			stem := selection{stems: []string{e.name}}
			for name := range maps.Keys(names) {
				if stem.holds([]byte(name)) {
					t.Errorf("%s.%s looks like one of %s[x]", typ, name, e.name)
				}
			}
			for _, name := range e.choice {
				if !stem.holds([]byte(name)) {
					t.Errorf("%s.%s does not look like one of %s[x]", typ, name, e.name)
				}
			}
		}
	}
}
