package bulk

import (
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store/elements"
	"tidemark/store/fhir"
)

// maxElements bounds the entries of _elements in one request.
const maxElements = maxParams

// elements takes entries one by one: repeated parameters and comma lists mean the
// same.
func (r *reading) elements(p param) {
	if !r.form(p, texts...) {
		return
	}
	if len(r.entries)+1+strings.Count(p.value, ",") > maxElements {
		r.fault(outcome.TooCostly, "_elements: more than %d entries", maxElements)
		return
	}
	for entry := range strings.SplitSeq(p.value, ",") {
		r.entries = append(r.entries, strings.TrimSpace(entry))
	}
}

// finishElements takes the entries that are right. Under handling=lenient wrong
// ones are left out, and the parameter with them if none is right: then resources
// come whole.
func (r *reading) finishElements() {
	for _, entry := range r.entries {
		why := r.wrongElement(entry)
		switch {
		case why == "" && !slices.Contains(r.q.Elements, entry):
			r.q.Elements = append(r.q.Elements, entry)
		case why == "":
		case r.lenient:
			r.note("_elements: %s: %s; it was left out", outcome.Quote(entry), why)
		default:
			r.fault(outcome.Value, `_elements: %s: %s ("Prefer: handling=lenient" leaves it out)`, outcome.Quote(entry), why)
		}
	}
	if r.lenient && len(r.entries) > 0 && len(r.q.Elements) == 0 {
		r.note("_elements: nothing of it is left, so resources come whole")
	}
}

// wrongElement says what is wrong with an entry, "" if nothing is.
func (r *reading) wrongElement(entry string) string {
	p, faults := elements.Parse([]string{entry})
	for _, f := range append(faults, p.Unmet(r.exported())...) {
		return f.Reason
	}
	return ""
}

// exported lists the types that the export may hold.
func (r *reading) exported() []fhir.Type {
	if len(r.q.Types) > 0 {
		return r.q.Types
	}
	return slices.DeleteFunc(fhir.AllTypes(), func(t fhir.Type) bool { return !r.q.Level.Holds(t) })
}
