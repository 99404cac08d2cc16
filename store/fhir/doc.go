// Package fhir knows the words of the domain: resource type, resource key,
// instant, reference, Patient compartment, and how to find them in the bytes
// of a resource.
//
// It validates JSON but not FHIR: of a resource it understands only the few
// elements that the store needs, and it never writes one anew. What it takes
// out of a body is white space, what it puts in is meta.versionId and
// meta.lastUpdated; every other byte stays as the source wrote it.
package fhir
