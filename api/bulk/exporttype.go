package bulk

import (
	"maps"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store/fhir"
)

// uses are the values of exportType with the types that they stand for; none: all
// that the Group's members have. The name before # is that of a Da Vinci guide.
var uses = map[string][]fhir.Type{
	// Who the members are: Member Attribution, "davinci-data-export".
	"hl7.fhir.us.davinci-atr": resolve(map[string]string{"": "Group Patient Coverage RelatedPerson Practitioner PractitionerRole Organization Location"})[""],
	// What is known of them: Payer Data Exchange. What of it has changed is for _since to say.
	"hl7.fhir.us.davinci-pdex":                   nil,
	"hl7.fhir.us.davinci-pdex#provider-download": nil,
	"hl7.fhir.us.davinci-pdex#provider-delta":    nil,
	"hl7.fhir.us.davinci-pdex#provider-snapshot": nil,
	"hl7.fhir.us.davinci-pdex#payertopayer":      nil,
}

// exportType is never left out: it narrows what is sent.
func (r *reading) exportType(p param) {
	if !r.typed {
		r.fault(outcome.NotSupported, "the parameter exportType belongs to Group/[id]/$davinci-data-export: remove it")
		return
	}
	if !r.once(p, texts...) {
		return
	}
	types, known := uses[p.value]
	if !known {
		r.fault(outcome.NotSupported, "exportType: %s is not supported: known are %s", outcome.Quote(p.value), strings.Join(slices.Sorted(maps.Keys(uses)), ", "))
	}
	r.use = types
}

// finishUse narrows the types to those of exportType.
func (r *reading) finishUse() {
	switch {
	case r.typed && !r.seen["exportType"]:
		r.fault(outcome.Required, "the parameter exportType is missing: it says what the data is for, known are %s", strings.Join(slices.Sorted(maps.Keys(uses)), ", "))
	case len(r.use) == 0:
	case len(r.q.Types) == 0:
		r.q.Types = slices.Clone(r.use)
	}
	for _, t := range r.q.Types {
		if len(r.use) > 0 && !slices.Contains(r.use, t) {
			r.fault(outcome.Value, "_type: %s is none of the types of this exportType", t)
		}
	}
}
