package manual

import (
	"net/http"
	"slices"
	"strings"

	"tidemark/api/bulk"
)

// A definition is an OperationDefinition of ours: one of the guide's, narrowed to
// what it is here.
type definition struct {
	ResourceType string                `json:"resourceType"`
	ID           string                `json:"id"`
	URL          string                `json:"url"`
	Version      string                `json:"version,omitempty"`
	Name         string                `json:"name"`
	Title        string                `json:"title"`
	Status       string                `json:"status"`
	Kind         string                `json:"kind"`
	Description  string                `json:"description"`
	AffectsState bool                  `json:"affectsState"`
	Code         string                `json:"code"`
	Comment      string                `json:"comment"`
	Base         string                `json:"base"`
	Resource     []string              `json:"resource,omitempty"`
	System       bool                  `json:"system"`
	Type         bool                  `json:"type"`
	Instance     bool                  `json:"instance"`
	Parameter    []definitionParameter `json:"parameter,omitempty"`
}

type definitionParameter struct {
	Name          string   `json:"name"`
	Use           string   `json:"use"`
	Min           int      `json:"min"`
	Max           string   `json:"max"`
	Documentation string   `json:"documentation"`
	Type          string   `json:"type"`
	TargetProfile []string `json:"targetProfile,omitempty"`
}

// ownURL is where the definition of an operation is read.
func ownURL(o bulk.Operation, f Facts) string { return f.Base + "/OperationDefinition/" + o.ID }

func newDefinition(o bulk.Operation, f Facts) definition {
	d := definition{
		ResourceType: "OperationDefinition",
		ID:           o.ID,
		URL:          ownURL(o, f),
		Version:      f.Version,
		Name:         "Tidemark" + camel(o.ID),
		Title:        o.Title,
		Status:       "active",
		Kind:         "operation",
		Description:  o.Text,
		// What affects no state may be asked for by GET (FHIR R4, "Extended Operations").
		AffectsState: !slices.Contains(o.Methods, http.MethodGet),
		Code:         o.Names[0],
		Comment:      comment(o),
		Base:         o.Guide,
		System:       o.Type == "",
		Type:         o.Type != "" && !o.Instance,
		Instance:     o.Instance,
	}
	if o.Type != "" {
		d.Resource = []string{o.Type}
	}
	for _, p := range o.Parameters {
		d.Parameter = append(d.Parameter, newParameter(p, f))
	}
	return d
}

func newParameter(p bulk.Parameter, f Facts) definitionParameter {
	d := definitionParameter{Name: p.Name, Use: "in", Max: p.Max, Type: p.Type, Documentation: p.Means}
	if p.Name == "includeAssociatedData" {
		d.Documentation += ownPresets(f.Presets)
	}
	if p.Refused != "" {
		d.Documentation += " Refused: " + lower(p.Refused)
	}
	if p.Must {
		d.Min = 1
	}
	if p.Type == "Reference" {
		d.TargetProfile = []string{"http://hl7.org/fhir/StructureDefinition/Patient"}
	}
	return d
}

// comment says how the operation is called.
func comment(o bulk.Operation) string {
	var paths []string
	for _, name := range o.Names {
		paths = append(paths, "`[base]"+o.Path(name)+"`")
	}
	return strings.Join(o.Methods, " or ") + " " + strings.Join(paths, ", also ") + ". " + o.Call
}

// camel writes patient-export as PatientExport.
func camel(id string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(id, "-") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

// lower begins a sentence in the middle of another.
func lower(s string) string { return strings.ToLower(s[:1]) + s[1:] }
