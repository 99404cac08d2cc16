// Package roster makes a FHIR R4 Group of a list of patients as data managers
// keep it: a CSV file. It knows what may stand in such a file, what the Group
// looks like and how two of them differ. It refuses to know where Groups go.
package roster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode"

	"tidemark/store/fhir"
)

// A Group is a FHIR R4 Group that lists patients, with no more elements than we
// write.
type Group struct {
	ResourceType string       `json:"resourceType"`
	ID           string       `json:"id"`
	Meta         Meta         `json:"meta"`
	Identifier   []Identifier `json:"identifier,omitempty"`
	Type         string       `json:"type"`
	Actual       bool         `json:"actual"`
	Name         string       `json:"name,omitempty"`
	Member       []Member     `json:"member,omitempty"`
}

// Meta says when the Group was written.
type Meta struct {
	LastUpdated string `json:"lastUpdated"`
}

// A Member is one stay of one patient.
type Member struct {
	Entity   Entity  `json:"entity"`
	Period   *Period `json:"period,omitempty"`
	Inactive bool    `json:"inactive,omitempty"`
}

// An Entity is a patient by reference or by identifier.
type Entity struct {
	Reference  string      `json:"reference,omitempty"`
	Type       string      `json:"type,omitempty"`
	Identifier *Identifier `json:"identifier,omitempty"`
}

// String is how a person calls the patient: Patient/id or system|value.
func (e Entity) String() string {
	if e.Reference == "" && e.Identifier != nil {
		return e.Identifier.String()
	}
	return e.Reference
}

// A Period is open where it is empty.
type Period struct {
	Start string `json:"start,omitempty"`
	End   string `json:"end,omitempty"`
}

// An Identifier names something within a system.
type Identifier struct {
	System string `json:"system,omitempty"`
	Value  string `json:"value"`
}

// String is the identifier as searches write it.
func (i Identifier) String() string { return i.System + "|" + i.Value }

// ParseIdentifier reads system|value; the system may be empty.
func ParseIdentifier(s string) (Identifier, error) {
	system, value, ok := strings.Cut(s, "|")
	system, value = strings.TrimSpace(system), strings.TrimSpace(value)
	switch {
	case !ok || value == "":
		return Identifier{}, errors.New("is no identifier: write system|value")
	case strings.ContainsFunc(value, unicode.IsControl):
		return Identifier{}, errors.New("has a line break or another control character in it")
	case strings.ContainsFunc(system, isSpace):
		return Identifier{}, errors.New("has a system with spaces in it: a system is a URL")
	}
	return Identifier{system, value}, nil
}

// New makes a Group that was written at an instant.
func New(id, name string, identifiers []Identifier, members []Member, at fhir.Instant) (*Group, error) {
	if !fhir.ValidID(id) {
		return nil, fmt.Errorf("%q is no id of a Group: write 1 to 64 of A-Z, a-z, 0-9, . and -", id)
	}
	return &Group{
		ResourceType: "Group", ID: id, Meta: Meta{at.String()},
		Identifier: identifiers, Type: "person", Actual: true, Name: name, Member: members,
	}, nil
}

// Body is the Group as it travels.
func (g *Group) Body() ([]byte, error) { return g.encode("") }

// Pretty is the Group as a person reads it.
func (g *Group) Pretty() ([]byte, error) { return g.encode("  ") }

func (g *Group) encode(indent string) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(g); err != nil {
		return nil, fmt.Errorf("write the Group: %w", err)
	}
	if indent == "" {
		return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
	}
	return out.Bytes(), nil
}

// Same tells whether two bodies say the same but for meta, which tells who wrote
// them and when.
func Same(a, b []byte) bool {
	x, err := withoutMeta(a)
	y, err2 := withoutMeta(b)
	return err == nil && err2 == nil && reflect.DeepEqual(x, y)
}

func withoutMeta(body []byte) (map[string]any, error) {
	var all map[string]any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := dec.Decode(&all); err != nil {
		return nil, err
	}
	delete(all, "meta")
	return all, nil
}
