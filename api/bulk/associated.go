package bulk

import (
	"maps"
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

// associated takes values one by one: repeated parameters and comma lists mean the
// same.
func (r *reading) associated(p param) {
	if !r.form(p, texts...) {
		return
	}
	for value := range strings.SplitSeq(p.value, ",") {
		value = strings.TrimSpace(value)
		switch {
		case presets[value] != nil:
			r.presets = append(r.presets, value)
		case value == "RelevantProvenanceResources":
			r.q.Attach = export.Relevant
		case value == "LatestProvenanceResources":
			if r.q.Attach == export.ByDefault { // of both the larger counts
				r.q.Attach = export.Latest
			}
		case r.lenient:
			r.note("includeAssociatedData: %s is not supported and was left out", outcome.Quote(value))
		default:
			r.fault(outcome.NotSupported, `includeAssociatedData: %s is not supported: known are LatestProvenanceResources, RelevantProvenanceResources, %s ("Prefer: handling=lenient" leaves it out)`,
				outcome.Quote(value), strings.Join(slices.Sorted(maps.Keys(presets)), ", "))
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
		for _, t := range presets[name] {
			if r.q.Level.Holds(t) && !slices.Contains(r.q.Types, t) {
				r.q.Types = append(r.q.Types, t)
			}
		}
	}
}
