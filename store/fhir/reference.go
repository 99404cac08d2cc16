package fhir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
)

// localPart returns what ref says relative to the own base, nil if it points
// elsewhere. A reference to another server's Patient/1 is not our Patient/1:
// an absolute one counts only under one of our bases, letter by letter.
func localPart(ref []byte, bases []string) []byte {
	if bytes.IndexByte(ref, ':') < 0 {
		return ref
	}
	for _, base := range bases {
		for len(base) > 0 && base[len(base)-1] == '/' {
			base = base[:len(base)-1]
		}
		if len(base) > 0 && len(ref) > len(base) && ref[len(base)] == '/' && string(ref[:len(base)]) == base {
			return ref[len(base)+1:]
		}
	}
	return nil
}

// ParseReference takes a literal reference apart, whatever its type is. An
// absolute one leads to a resource of ours under one of our bases only.
func ParseReference(ref []byte, bases []string) (typ, id []byte, ok bool) {
	return referenceTarget(ref, bases)
}

// referenceTarget takes a literal reference apart: Type/id, with or without
// /_history/version. Anything else (#contained, urn:uuid:…, Type?search) names
// no resource that we could find, and so gives no edge.
func referenceTarget(ref []byte, bases []string) (name, id []byte, ok bool) {
	name, rest, ok := bytes.Cut(localPart(ref, bases), []byte{'/'})
	if !ok {
		return nil, nil, false
	}
	id, rest, versioned := bytes.Cut(rest, []byte{'/'})
	if !validID(id) {
		return nil, nil, false
	}
	if versioned {
		version, found := bytes.CutPrefix(rest, []byte("_history/"))
		if !found || !validID(version) {
			return nil, nil, false
		}
	}
	return name, id, true
}

// ByIdentifier is a reference to the Patient that has an identifier. It does not
// say which: identifiers outlive what they were read from in the places where
// such references are kept.
func ByIdentifier(system, value []byte) string {
	return string(appendByIdentifier(nil, system, value))
}

// IdentifierPrefix begins what ByIdentifier returns, and no other reference.
const IdentifierPrefix = "Patient?identifier="

func appendByIdentifier(dst, system, value []byte) []byte {
	h := sha256.New()
	h.Write(system)
	h.Write([]byte{'|'}) // which no URL has
	h.Write(value)
	return hex.AppendEncode(append(dst, IdentifierPrefix...), h.Sum(nil)[:16])
}
