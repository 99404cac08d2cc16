package manual

import (
	"strings"
	"time"

	"tidemark/api/bulk"
	"tidemark/api/export"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// A statement is a CapabilityStatement: what [base]/metadata says, and nothing
// that does not work.
type statement struct {
	ResourceType   string         `json:"resourceType"`
	Status         string         `json:"status"`
	Date           string         `json:"date"`
	Kind           string         `json:"kind"`
	Instantiates   []string       `json:"instantiates"`
	Software       software       `json:"software"`
	Implementation implementation `json:"implementation"`
	FHIRVersion    string         `json:"fhirVersion"`
	Format         []string       `json:"format"`
	Rest           []rest         `json:"rest"`
}

type software struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
}

type implementation struct {
	Description string `json:"description"`
	URL         string `json:"url"`
}

type rest struct {
	Mode          string      `json:"mode"`
	Documentation string      `json:"documentation"`
	Security      *security   `json:"security,omitempty"`
	Resource      []resource  `json:"resource"`
	Operation     []operation `json:"operation,omitempty"`
}

// security is how clients prove who they are.
type security struct {
	Extension   []oauth   `json:"extension,omitempty"`
	Service     []concept `json:"service"`
	Description string    `json:"description"`
}

// oauth is where tokens are had, as clients look for it that are older than
// .well-known/smart-configuration.
type oauth struct {
	URL       string   `json:"url"`
	Extension []uriExt `json:"extension"`
}

type uriExt struct {
	URL      string `json:"url"`
	ValueURI string `json:"valueUri"`
}

type concept struct {
	Coding []coding `json:"coding"`
}

type coding struct {
	System string `json:"system"`
	Code   string `json:"code"`
}

func securityOf(f Facts) *security {
	if !f.Tokens && f.TokenURL == "" {
		return nil
	}
	s := &security{
		Service:     []concept{{[]coding{{"http://terminology.hl7.org/CodeSystem/restful-security-service", "SMART-on-FHIR"}}}},
		Description: "SMART Backend Services: " + f.Base + "/.well-known/smart-configuration. Scopes are those of reading; an export holds what its token lets.",
	}
	if f.TokenURL != "" {
		s.Extension = []oauth{{"http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris", []uriExt{{"token", f.TokenURL}}}}
	}
	return s
}

// whoMay says in a sentence what is asked of clients.
func (f Facts) whoMay() string {
	if f.Tokens {
		return "An access token is needed."
	}
	if f.TokenURL != "" {
		return "No token is asked for; who sends one is bound by it."
	}
	return "No token is asked for."
}

type resource struct {
	Extension     []extension   `json:"extension,omitempty"`
	Type          string        `json:"type"`
	Documentation string        `json:"documentation,omitempty"`
	Interaction   []interaction `json:"interaction,omitempty"`
	SearchParam   []searchParam `json:"searchParam,omitempty"`
	Operation     []operation   `json:"operation,omitempty"`
}

type extension struct {
	URL            string `json:"url"`
	ValueCanonical string `json:"valueCanonical"`
}

type interaction struct {
	Code          string `json:"code"`
	Documentation string `json:"documentation,omitempty"`
}

type searchParam struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

type operation struct {
	Name          string `json:"name"`
	Definition    string `json:"definition"`
	Documentation string `json:"documentation"`
}

func newStatement(f Facts) statement {
	return statement{
		ResourceType:   "CapabilityStatement",
		Status:         "active",
		Date:           f.Started.UTC().Format(time.RFC3339),
		Kind:           "instance",
		Instantiates:   []string{"http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"},
		Software:       software{"Tidemark", f.Version},
		Implementation: implementation{"FHIR Bulk Data from a Kafka stream of changes", f.Base},
		FHIRVersion:    "4.0.1",
		Format:         []string{"application/fhir+json"},
		Rest: []rest{{
			Mode: "server",
			Documentation: "Exports of the system, of all or some Patients, and of the members of a Group. Files hold one resource type each, as `application/fhir+ndjson`, with gzip, Range and strong ETags. " + f.whoMay() + ownPresets(f.Presets) + " " +
				"The search parameters of a type are those that `_typeFilter` takes. For people there is a page: [" + f.Base + "](" + f.Base + ").",
			Security:  securityOf(f),
			Resource:  resources(f),
			Operation: operationsAt("", f),
		}},
	}
}

// ownPresets says which lists of types the operator has added.
func ownPresets(own bulk.Presets) string {
	if len(own) == 0 {
		return ""
	}
	var lists []string
	for _, p := range own.All() {
		if own[strings.TrimPrefix(p.Value, "_")] != nil {
			lists = append(lists, p.Value+" ("+strings.Join(p.Types, ", ")+")")
		}
	}
	return " includeAssociatedData also takes " + strings.Join(lists, ", ") + "."
}

// operationsAt lists the operations at resources of a type, or at the base, by all
// their names.
//
// definition is the guide's, since test suites and clients look for that. Ours,
// which keeps to it, is named in the text and found by search (base=). Listing it
// as one operation more would make the same name mean two things.
func operationsAt(typ string, f Facts) (all []operation) {
	for _, o := range f.operations() {
		if o.Type != typ {
			continue
		}
		for _, name := range o.Names {
			all = append(all, operation{name, o.Guide, strings.Join(o.Methods, " or ") + ". " + o.Text + " What each parameter means here: [" + ownURL(o, f) + "](" + ownURL(o, f) + ")."})
		}
	}
	return all
}

// resources lists every type, for whatever arrives on Kafka goes out, with what
// _typeFilter can search for. Clients take _lastUpdated as the sign that _since
// works.
func resources(f Facts) (all []resource) {
	read, search := interaction{Code: "read"}, interaction{Code: "search-type"}
	for _, t := range fhir.AllTypes() {
		r := resource{Extension: notSupported(t), Type: t.String(), SearchParam: searchParams(t), Operation: operationsAt(t.String(), f)}
		switch r.Type {
		case "Patient":
			r.Interaction = []interaction{read}
		case "Binary":
			r.Interaction = []interaction{read}
			r.Documentation = "Read is one to which something refers: its content as it is, or with `Accept: application/fhir+json` or `_format` the resource."
		case "Group":
			r.Interaction = []interaction{read, search}
		case "OperationDefinition":
			r.Interaction = []interaction{read, search}
			r.Documentation = "Read and found are those of this server's own operations, which no export holds; exported are those that came over Kafka."
		}
		all = append(all, r)
	}
	return all
}

func searchParams(t fhir.Type) (all []searchParam) {
	for _, p := range search.Parameters(t) {
		all = append(all, searchParam{p.Code, p.Kind})
	}
	return all
}

// notSupported names the operations that export no resources of a type (Bulk Data
// 3.0, "operation-not-supported"). It goes on types only: whatever search
// parameter is listed works in _typeFilter.
func notSupported(t fhir.Type) (all []extension) {
	for _, o := range bulk.Operations {
		if o.Level != export.System && !o.Level.Holds(t) {
			all = append(all, extension{"http://hl7.org/fhir/uv/bulkdata/Extension/operation-not-supported", o.Guide})
		}
	}
	return all
}
