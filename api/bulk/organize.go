package bulk

import (
	"strings"

	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store/fhir"
)

// organize takes the type of whose resources an export is in blocks. Which types
// those are that others refer to is not written down anywhere: a Reference(Any) may
// lead to all but Parameters, which have no id to be found by.
func (r *reading) organize(p param) {
	if !r.once(p, texts...) {
		return
	}
	name := strings.TrimSpace(p.value)
	t, known := fhir.ParseType(name)
	switch {
	case !known:
		r.leaveUnorganized(name, "is not a resource type of FHIR R4 (4.0.1)"+likely(name))
	case name == "Parameters":
		r.leaveUnorganized(name, "is nothing that resources refer to: right is a type that they do, such as Patient")
	case name == "Group" && r.q.Level != export.System:
		r.leaveUnorganized(name, "is not what members refer to, but what refers to them: ask for Patient")
	case !r.q.Level.Holds(t):
		r.leaveUnorganized(name, "is not exported at Patient and Group level: it lies in no Patient's compartment, nor is it what clinical data refers to; ask for it at system level")
	default:
		r.q.By = t
	}
}

// leaveUnorganized leaves the parameter out if the client allowed it: the files are
// then of one type each, and hold no more (decisions.md 2).
func (r *reading) leaveUnorganized(name, why string) {
	if r.lenient {
		r.note("organizeOutputBy: %s %s; it was left out", outcome.Quote(name), why)
		return
	}
	r.fault(outcome.NotSupported, `organizeOutputBy: %s %s ("Prefer: handling=lenient" leaves it out)`, outcome.Quote(name), why)
}
