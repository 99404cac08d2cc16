package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"tidemark/api/bulk"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// capabilityStatement is what [base]/metadata says, and nothing that does not
// work.
type capabilityStatement struct {
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
	Resource      []resource  `json:"resource"`
	Operation     []operation `json:"operation"`
}

type resource struct {
	Type        string        `json:"type"`
	Interaction []interaction `json:"interaction,omitempty"`
	SearchParam []searchParam `json:"searchParam,omitempty"`
	Operation   []operation   `json:"operation,omitempty"`
}

type interaction struct {
	Code string `json:"code"`
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

func newCapabilities(o Options, now time.Time) capabilityStatement {
	return capabilityStatement{
		ResourceType:   "CapabilityStatement",
		Status:         "active",
		Date:           now.UTC().Format(time.RFC3339),
		Kind:           "instance",
		Instantiates:   []string{"http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"},
		Software:       software{"Tidemark", o.Version},
		Implementation: implementation{"FHIR Bulk Data from a Kafka stream of changes", o.PublicURL},
		FHIRVersion:    "4.0.1",
		Format:         []string{"application/fhir+json"},
		Rest: []rest{{
			Mode:          "server",
			Documentation: "Exports of the system, of all or some Patients, and of the members of a Group. Files hold one resource type each, as application/fhir+ndjson, with gzip, Range and strong ETags. No token is asked for." + ownPresets(o.Presets),
			Resource:      exportable(),
			Operation: append([]operation{{
				Name:          "export",
				Definition:    "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/export",
				Documentation: kickOffs,
			}}, publishOperation(o)...),
		}},
	}
}

const kickOffs = "GET or POST. Parameters: _type, _typeFilter (the search parameters of its type, without chains, terminology and composites), _elements, includeAssociatedData (LatestProvenanceResources, RelevantProvenanceResources; names of lists of types, such as _us-core-7 or _carin-bb; _departed: what has left the export since _since and lives, in extension.tidemark-departed), _since, _until, _outputFormat. Prefer: handling=lenient leaves out what is not supported."

const (
	referred = "Device, DeviceDefinition, Endpoint, HealthcareService, InsurancePlan, Location, Medication, MedicationKnowledge, Organization, OrganizationAffiliation, Practitioner, PractitionerRole and Substance"

	patientExport = "All resources in the compartment of any Patient (R4; also Device.patient, Task.for and Task.focus), all Provenance, and what they refer to: " + referred + ". " +
		"With the parameter patient (POST only) those of some Patients, and what these refer to, and what that refers to. " + kickOffs
	groupExport = "All resources in the compartment of the Group's members and of those of Groups in it (active, in their period), and what these refer to, and what that refers to: " + referred + "; the Group itself, no other. " +
		"Who has joined since _since comes whole. With the parameter patient (POST only) those of some members. " + kickOffs
)

// ownPresets says which lists of types the operator has added.
func ownPresets(own bulk.Presets) string {
	if len(own) == 0 {
		return ""
	}
	var lists []string
	for _, name := range slices.Sorted(maps.Keys(own)) {
		var types []string
		for _, t := range own[name] {
			types = append(types, t.String())
		}
		lists = append(lists, "_"+name+" ("+strings.Join(types, ", ")+")")
	}
	return " includeAssociatedData also takes " + strings.Join(lists, ", ") + "."
}

// exports names an operation by both names that clients look for.
func exports(at, documentation string) []operation {
	var all []operation
	for _, name := range []string{"export", at + "-export"} {
		all = append(all, operation{
			Name:          name,
			Definition:    "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/" + at + "-export",
			Documentation: documentation,
		})
	}
	return all
}

// exportable lists every type, for whatever arrives on Kafka goes out, with what
// _typeFilter can search for. Clients take _lastUpdated as the sign that _since
// works.
func exportable() []resource {
	var all []resource
	for _, t := range fhir.AllTypes() {
		r := resource{Type: t.String()}
		for _, p := range search.Parameters(t) {
			r.SearchParam = append(r.SearchParam, searchParam{p.Code, p.Kind})
		}
		switch r.Type {
		case "Patient":
			r.Interaction = []interaction{{"read"}}
			r.Operation = exports("patient", patientExport)
		case "Group":
			r.Interaction = []interaction{{"read"}, {"search-type"}}
			r.Operation = exports("group", groupExport)
		}
		all = append(all, r)
	}
	return all
}

// metadata serves the CapabilityStatement. Without no-store a widely used
// client stops silently after reading it.
func (s *Server) metadata(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/fhir+json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(s.capabilities) // only the connection can fail
	return nil
}
