package bulk

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store/fhir"
)

// presets are types under the name of what a client is for: values of
// includeAssociatedData of our own, which begin with an underscore as the guide
// wants. They are what the certification tests of the guides ask for; a preset may
// begin with another's name, whose types it has as well.
var presets = resolve(map[string]string{
	"_ccds":      "_us-core-3 Location Medication",
	"_us-core-3": "AllergyIntolerance CarePlan CareTeam Condition Device DiagnosticReport DocumentReference Encounter Goal Immunization MedicationRequest Observation Organization Patient Practitioner Procedure Provenance",
	"_us-core-4": "_us-core-3",
	"_us-core-5": "_us-core-4 RelatedPerson ServiceRequest",
	"_us-core-6": "_us-core-5 Coverage MedicationDispense Specimen",
	"_us-core-7": "_us-core-6 Location",
	"_us-core-8": "_us-core-7",
	"_us-core-9": "_us-core-8 Endpoint FamilyMemberHistory HealthcareService Medication PractitionerRole Questionnaire QuestionnaireResponse ValueSet",

	"_carin-bb":   "Coverage ExplanationOfBenefit Organization Patient Practitioner PractitionerRole RelatedPerson",
	"_cms-claims": "Claim ClaimResponse Coverage ExplanationOfBenefit Patient",
	"_financial": "_carin-bb Account ChargeItem Claim ClaimResponse CoverageEligibilityRequest CoverageEligibilityResponse EnrollmentRequest EnrollmentResponse " +
		"InsurancePlan Invoice PaymentNotice PaymentReconciliation",
})

var groupType, _ = fhir.ParseType("Group")

// resolve writes out which types each preset has.
func resolve(named map[string]string) map[string][]fhir.Type {
	all := map[string][]fhir.Type{}
	var types func(name string) []fhir.Type
	types = func(name string) (of []fhir.Type) {
		for word := range strings.FieldsSeq(named[name]) {
			if t, is := fhir.ParseType(word); is {
				of = append(of, t)
			} else {
				of = append(of, types(word)...)
			}
		}
		return of
	}
	for name := range named {
		all[name] = types(name)
	}
	return all
}

// Presets are the operator's own lists of types, by the value of
// includeAssociatedData that stands for one, without its underscore.
type Presets map[string][]fhir.Type

// presetName is what may follow the underscore: what needs no escape in a URL and
// no comma divides.
var presetName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

// reserved are values of ours that stand for no types, there or to come.
var reserved = []string{"_departed"}

// CheckPreset says why a list of types cannot have a name: clients must be able to
// send it, and a name of the guides must mean the same everywhere.
func CheckPreset(name string) error {
	switch {
	case !presetName.MatchString(name):
		return fmt.Errorf("%q is no name for a list of types: it has 1 to 63 of A-Z, a-z, 0-9, - and _, and begins with none of the last two; the underscore that clients write before it is left out", name)
	case presets["_"+name] != nil || slices.Contains(reserved, "_"+name):
		return fmt.Errorf("_%s has a meaning of its own: choose another name", name)
	}
	return nil
}

// Validate joins all faults. Without types a preset would stand for all of them.
func (p Presets) Validate() error {
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if err := CheckPreset(name); err != nil {
			faults = append(faults, err)
		} else if len(p[name]) == 0 {
			faults = append(faults, fmt.Errorf("preset %s: names no types", name))
		}
	}
	return errors.Join(faults...)
}

// types are those of a value; our own cannot be replaced.
func (p Presets) types(value string) []fhir.Type {
	if of := presets[value]; of != nil {
		return of
	}
	if name, ok := strings.CutPrefix(value, "_"); ok {
		return p[name]
	}
	return nil
}

// values are all that stand for types.
func (p Presets) values() []string {
	all := slices.Collect(maps.Keys(presets))
	for name := range p {
		all = append(all, "_"+name)
	}
	slices.Sort(all)
	return all
}

// associated takes values one by one: repeated parameters and comma lists mean the
// same.
func (r *reading) associated(p param) {
	if !r.form(p, texts...) {
		return
	}
	for value := range strings.SplitSeq(p.value, ",") {
		value = strings.TrimSpace(value)
		switch {
		case r.own.types(value) != nil:
			r.presets = append(r.presets, value)
		case value == "RelevantProvenanceResources":
			r.q.Attach = export.Relevant
		case value == "LatestProvenanceResources":
			if r.q.Attach == export.ByDefault { // of both the larger counts
				r.q.Attach = export.Latest
			}
		case value == "_departed":
			r.q.Departed = true
		case r.lenient:
			r.note("includeAssociatedData: %s is not supported and was left out", outcome.Quote(value))
		default:
			r.fault(outcome.NotSupported, `includeAssociatedData: %s is not supported: known are LatestProvenanceResources, RelevantProvenanceResources, _departed, %s ("Prefer: handling=lenient" leaves it out)`,
				outcome.Quote(value), strings.Join(r.own.values(), ", "))
		}
	}
}

// finishPresets makes types of presets: of several the union, since the guide wants
// the largest of what is asked for.
func (r *reading) finishPresets() {
	if len(r.presets) == 0 {
		return
	}
	if r.seen["_type"] || len(r.use) > 0 {
		r.fault(outcome.Invalid, "includeAssociatedData: %s stands for types, so it goes neither with _type nor with an exportType that does: leave one of them out", r.presets[0])
		return
	}
	for _, name := range r.presets {
		for _, t := range r.own.types(name) {
			if r.holds(t) && !slices.Contains(r.q.Types, t) {
				r.q.Types = append(r.q.Types, t)
			}
		}
	}
	if len(r.q.Types) == 0 { // which would mean all
		r.fault(outcome.Value, "includeAssociatedData: no type that %s stands for is exported here: ask for it at system level", strings.Join(r.presets, " or "))
	}
}

// holds tells whether an export has a type. A Group names all its members, so it
// does not go with some.
func (r *reading) holds(t fhir.Type) bool {
	return r.q.Level.Holds(t) && (len(r.q.Patients) == 0 || t != groupType)
}
