package search

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
