package search

import "tidemark/store/fhir"

// Identifiers calls fn for each identifier of a resource, compact JSON that a
// fhir.Scanner has passed, with the resource's id.
func Identifiers(line []byte, fn func(id, system, value []byte)) {
	var id []byte
	member(line, "identifier", func(v []byte) {
		if id == nil {
			id = text(line, "id")
		}
		fn(id, text(v, "system"), text(v, "value"))
	})
}

// ID is a resource's.
func ID(line []byte) string { return string(text(line, "id")) }

// Targets calls fn for what a Provenance is about, if that is a resource here.
func Targets(line []byte, bases []string, fn func(fhir.Key)) {
	member(line, "target", func(v []byte) {
		typ, id, ok := fhir.ParseReference(text(v, "reference"), bases)
		if t, known := fhir.ParseType(string(typ)); ok && known {
			fn(fhir.Key{Type: t, ID: string(id)})
		}
	})
}

// Recorded is when a Provenance says that it was made, and when it was changed
// last; None where that is no time.
func Recorded(line []byte) (recorded, changed fhir.Instant) {
	recorded, changed = fhir.None, fhir.None
	if at, _, ok := fhir.ParseSpan(text(line, "recorded")); ok {
		recorded = at
	}
	member(line, "meta", func(v []byte) {
		if at, _, ok := fhir.ParseSpan(text(v, "lastUpdated")); ok {
			changed = at
		}
	})
	return recorded, changed
}
