package fhir

import (
	"cmp"
	"errors"
	"strings"
)

// maxID is the length of the longest id that FHIR allows.
const maxID = 64

// errKey does not repeat the text: ids may be those of patients.
var errKey = errors.New("not a resource key: want Type/id")

// A Key names a resource: its type and its logical id.
type Key struct {
	Type Type
	ID   string
}

// String is the key as a relative reference, Type/id.
func (k Key) String() string { return k.Type.String() + "/" + k.ID }

// Compare orders keys by the number of the type, then by id.
func (k Key) Compare(l Key) int {
	return cmp.Or(cmp.Compare(k.Type, l.Type), cmp.Compare(k.ID, l.ID))
}

// ParseKey reads what Key.String writes, for known types and valid ids only.
func ParseKey(s string) (Key, error) {
	name, id, ok := strings.Cut(s, "/")
	t, known := ParseType(name)
	if !ok || !known || !ValidID(id) {
		return Key{}, errKey
	}
	return Key{Type: t, ID: id}, nil
}

// ValidID says whether s is a FHIR id: 1 to 64 of A-Z, a-z, 0-9, '-' and '.'.
func ValidID(s string) bool { return validID(s) }

func validID[T string | []byte](s T) bool {
	if len(s) == 0 || len(s) > maxID {
		return false
	}
	for i := range len(s) {
		if !idChars[s[i]] {
			return false
		}
	}
	return true
}

var idChars = func() (is [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-." {
		is[c] = true
	}
	return is
}()
