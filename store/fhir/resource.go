package fhir

import "fmt"

// A Resource is what one pass over a resource's bytes finds out.
type Resource struct {
	Key         Key
	Body        []byte   // compact, one line, no newline, otherwise byte for byte
	Version     string   // meta.versionId as written, "" if missing
	LastUpdated Instant  // None if missing or not an instant
	Meta        Meta     // where meta.versionId and meta.lastUpdated would be injected
	Patients    []string // ids of the Patients in whose compartment it lies, sorted, unique
	References  []Key    // what it refers to of types that lie in no Patient's compartment, and a Provenance's targets but for Patients; sorted, unique
	Members     []Member // of a Group: member, in the order of the body
	Subsetted   bool     // meta.tag says that this is not the whole resource
}

// A Member is an entry of Group.member.
type Member struct {
	// Ref is the entity as "Patient/1" or "Group/2", without base and version; if
	// it names no resource of ours but a Patient by an identifier, what
	// ByIdentifier makes of that; "" else.
	Ref      string
	Inactive bool
	// Start and End are the first and the last instant of the period, of one
	// with partial dates the outermost ones (UTC where a date has no zone);
	// None where it is open.
	Start, End Instant
}

// A SyntaxError says why a document is refused. Reason is one of our own
// sentences, at most with an element name out of our own tables: it never
// holds anything of the document.
type SyntaxError struct {
	Offset int // into the document, as it was given
	Reason string
}

// Error names place and reason.
func (e *SyntaxError) Error() string { return fmt.Sprintf("at byte %d: %s", e.Offset, e.Reason) }
