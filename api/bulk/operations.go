package bulk

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"tidemark/api/export"
	"tidemark/store/fhir"
)

// This file is the one place where the operations are described. What clients
// are told of them, in the CapabilityStatement, in OperationDefinitions and on
// the page for people, is made from these tables; so is which names a kick-off
// knows. Texts are Markdown of the plainest kind: sentences, and code between
// backticks.

// An Operation is one that clients can call.
type Operation struct {
	ID       string   // of its OperationDefinition here
	Guide    string   // canonical URL of the definition that it keeps to
	Type     string   // of the resources at which it stands; "": at the base
	Instance bool     // at one of them, not at the type
	Names    []string // in URLs, without the $; the first is its code
	Methods  []string
	Call     string // how it is called
	Title    string
	Text     string // what it does here
	// Level is that of the export which it starts.
	Level      export.Level
	Parameters []Parameter
}

// Path is where the operation stands under the base, by one of its names.
func (o Operation) Path(name string) string {
	path := "/$" + name
	if o.Instance {
		path = "/[id]" + path
	}
	if o.Type != "" {
		path = "/" + o.Type + path
	}
	return path
}

// A Parameter is one of an operation.
type Parameter struct {
	Name string
	Type string // FHIR's, of its value
	// Max is how often it may come: "1", "*", or "0" for one of the guide's that is
	// not supported.
	Max     string
	Must    bool   // it has to come
	Means   string // what it means here
	Refused string // what of it is an error, and what handling=lenient leaves out
	Example string // a value that works, as it stands in a URL; "": none does
	Levels  []export.Level
}

// guide is where Bulk Data Access keeps its definitions.
const guide = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"

var allLevels = []export.Level{export.System, export.Patient, export.Group}

// Parameters are those of a kick-off.
var Parameters = []Parameter{
	{
		Name: "_type", Type: "string", Max: "*", Levels: allLevels, Example: "Patient,Observation",
		Means:   "The resource types to export, as a comma list or in repeats. Without it, all that the level holds.",
		Refused: "What is no type of FHIR R4, or lies outside of the level; `handling=lenient` leaves such values out while a right one is left.",
	},
	{
		Name: "_since", Type: "instant", Max: "1", Levels: allLevels, Example: "2026-01-01T00:00:00Z",
		Means:   "Only what changed after this instant, and in `deleted` what was deleted after it. Give the `transactionTime` of the export before: windows meet exactly. At Group level, who has joined since comes whole. Fractions finer than a millisecond are cut, towards sending more.",
		Refused: "What is no instant with a zone, or lies in the future; never left out. The `+` of an offset is written `%2B` in a URL.",
	},
	{
		Name: "_until", Type: "instant", Max: "1", Levels: allLevels, Example: "2026-01-02T00:00:00Z",
		Means:   "Only what changed before this instant. `transactionTime` is then the last millisecond before it, so that a chain goes on from there. What changed again at or after it belongs to the next window.",
		Refused: "What is no instant with a zone, or does not lie after `_since`; never left out.",
	},
	{
		Name: "_typeFilter", Type: "string", Max: "*", Levels: allLevels, Example: "Observation%3Fstatus%3Dfinal",
		Means:   fmt.Sprintf("FHIR searches, such as `Observation?status=final`: of that type only what matches one of them. One to a repeat, or a comma list of them. A type without a search comes whole, and a Patient that is filtered out keeps what is theirs. The search parameters of each type stand in the CapabilityStatement. At most %d searches of %d bytes. `deleted` is not narrowed.", maxFilters, maxFilter),
		Refused: "`:in`, `:not-in`, `:above`, `:below`, `:of-type`, chains, `_has`, `_filter`, `_text`, `_content`, composites, what orders or includes (`_sort`, `_count`, `_include`, …), and types that are not exported; `handling=lenient` leaves out all searches of such a type.",
	},
	{
		Name: "_elements", Type: "string", Max: "*", Levels: allLevels, Example: "Patient.identifier,id",
		Means:   "Root elements to keep, as `Type.element`, or `element` for every type that has it. Kept besides: `id`, `meta`, mandatory and modifier elements, and what a rule of the type demands. Every line has the tag SUBSETTED, so that it never overwrites a whole resource.",
		Refused: "Paths below the root, and elements that no exported type has; `handling=lenient` leaves them out, and resources come whole if none is left.",
	},
	{
		Name: "patient", Type: "Reference", Max: "*", Levels: []export.Level{export.Patient, export.Group},
		Means:   "Only the data of these Patients: references such as `Patient/[id]`, in the body of a POST. The export then holds no Group, for a Group names all its members.",
		Refused: "In a URL, which others may see; never left out. A Patient who is unknown, or no member of the Group: 404, the same for both.",
	},
	{
		Name: "includeAssociatedData", Type: "code", Max: "*", Levels: allLevels, Example: "LatestProvenanceResources",
		Means: "`RelevantProvenanceResources`: all Provenance about the resources that are sent; `LatestProvenanceResources`: of each the latest one. Either stands in place of the Provenance that comes by default, whatever `_since` and `_type` say. Names for lists of types, in place of `_type`: " +
			"`" + strings.Join(Presets(nil).values(), "`, `") + "`. " +
			"`_departed`, with any of them: with `_since`, what has left the export since then and lives is named in files of their own, in the manifest's `extension` (`tidemark-departed`), in the form of `deleted`.",
		Refused: "Other values; `handling=lenient` leaves them out. A list of types together with `_type`.",
	},
	{
		Name: "_outputFormat", Type: "string", Max: "1", Levels: allLevels, Example: "ndjson",
		Means:   "The form of the files: `application/fhir+ndjson`, which is the default, also written `application/ndjson` or `ndjson`. For gzip send `Accept-Encoding: gzip` with each download.",
		Refused: "Any other form; never left out.",
	},
	{
		Name: "allowPartialManifests", Type: "boolean", Max: "1", Levels: allLevels, Example: "true",
		Means:   "`true`: while the server works at an export, its manifest comes in pages; `link` leads from each to the `next`, and `deleted` and `error` stand on the last. An export that is ready at once has one page.",
		Refused: "What is neither `true` nor `false`.",
	},
	{
		Name: "_maximumFileSize", Type: "positiveInt", Max: "1", Levels: allLevels, Example: "67108864",
		Means:   "No file is to have more bytes of NDJSON, but for a single block of rows that is larger. What the server is set to holds where it is less.",
		Refused: fmt.Sprintf("Less than %d, or not more than `_minimumFileSize`.", leastMaximum),
	},
	{
		Name: "_minimumFileSize", Type: "positiveInt", Max: "1", Levels: allLevels, Example: "1048576",
		Means:   "Is taken. Files are as large as they may be, so it changes nothing.",
		Refused: "What is no positive number.",
	},
	{
		Name: "organizeOutputBy", Type: "string", Max: "1", Levels: allLevels, Example: "Patient",
		Means:   "Files of blocks in place of files of one type: each begins with a Parameters resource whose `header` names a resource of this type; then come that resource, whatever `_since`, what lies in its compartment or refers to it, and what that refers to. A resource stands in every block that it belongs to; what belongs to none is left out and counted in `error`. A block that goes on in another file has its header there, too, and `continuesInFile` leads there. `deleted` stays as it is.",
		Refused: "What is no type that others can refer to, or lies outside of the level; `handling=lenient` leaves it out.",
	},
}

// exportType is the parameter of payers' exports.
var exportType = Parameter{
	Name: "exportType", Type: "string", Max: "1", Must: true, Levels: []export.Level{export.Group}, Example: "hl7.fhir.us.davinci-atr",
	Means: "For `$davinci-data-export` only, which has to have it: what the data is for. `hl7.fhir.us.davinci-atr` is who the members are: " + typeNames(uses["hl7.fhir.us.davinci-atr"]) + ". " +
		"All others are what is known of them, of all types; what of it has changed is for `_since` to say: " + otherUses() + ".",
	Refused: "Other values, and types in `_type` that it does not stand for; never left out.",
}

// otherUses are the values of exportType that stand for all types.
func otherUses() string {
	all := slices.Sorted(maps.Keys(uses))
	return "`" + strings.Join(slices.DeleteFunc(all, func(name string) bool { return len(uses[name]) > 0 }), "`, `") + "`"
}

// parametersOf are those that exports of a level have.
func parametersOf(l export.Level) (of []Parameter) {
	for _, p := range Parameters {
		if slices.Contains(p.Levels, l) {
			of = append(of, p)
		}
	}
	return of
}

// parametersOf4 are the same in the words of version 4 of the guide.
func parametersOf4(l export.Level) []Parameter {
	of := parametersOf(l)
	for i := range of {
		if of[i].Type == "code" {
			of[i].Type = "Coding"
		}
	}
	return of
}

// names are all parameters of a kick-off, whether supported here or not.
var names = func() (all []string) {
	for _, p := range Parameters {
		all = append(all, p.Name)
	}
	return all
}()

// kickOff is how an export is called.
const kickOff = "The headers are `Accept: application/fhir+json` and `Prefer: respond-async`, with `, handling=lenient` if what is not supported may be left out. A POST has its parameters in a body, a Parameters resource. The answer is 202 with the status URL in `Content-Location`."

var (
	getOrPost = []string{http.MethodGet, http.MethodPost}
	post      = []string{http.MethodPost}
)

// Operations are all there are. The test suites look for an operation by either
// name, so both work (decisions.md 2).
var Operations = []Operation{
	{
		ID: "export", Guide: guide + "export", Names: []string{"export"}, Methods: getOrPost, Call: kickOff,
		Title:      "Export of the system",
		Text:       "All resources of all types, whether they belong to a Patient or not.",
		Parameters: parametersOf(export.System),
	},
	{
		ID: "patient-export", Guide: guide + "patient-export", Type: "Patient", Names: []string{"export", "patient-export"}, Methods: getOrPost, Call: kickOff,
		Level: export.Patient,
		Title: "Export of all Patients",
		Text: "All resources in the compartment of any Patient (R4; also `Device.patient`, `Task.for` and `Task.focus`), all Provenance, and all resources of the types that such data refers to: " + referred + ". " +
			"A resource whose Patient is deleted, or has not come yet, is there all the same. " +
			"With the parameter `patient` those of some Patients, and what these refer to, and what that refers to.",
		Parameters: parametersOf(export.Patient),
	},
	{
		ID: "group-export", Guide: guide + "group-export", Type: "Group", Instance: true, Names: []string{"export", "group-export"}, Methods: getOrPost, Call: kickOff,
		Level: export.Group,
		Title: "Export of the members of a Group",
		Text: "All resources in the compartment of the Group's members and of those of Groups in it (listed, not `inactive`, in their `period`, at the `transactionTime`), and what these refer to, and what that refers to: " + referred + "; the Group itself, no other. " +
			"Who has joined since `_since` comes whole. With the parameter `patient` those of some members.",
		Parameters: parametersOf(export.Group),
	},
	{
		ID: "davinci-data-export", Guide: "http://hl7.org/fhir/us/davinci-atr/OperationDefinition/davinci-data-export", Type: "Group", Instance: true,
		Names: []string{"davinci-data-export"}, Methods: getOrPost, Call: kickOff,
		Level:      export.Group,
		Title:      "Export of the members of a Group, as payers ask for it",
		Text:       "As `Group/[id]/$export`, with the parameter `exportType`. Resources go as they came: what a payer must leave out before a provider sees it must be left out before it comes here.",
		Parameters: append([]Parameter{exportType}, parametersOf(export.Group)...),
	},
	version4("export-v4", "export", "", export.System),
	version4("patient-export-v4", "patient-export", "Patient", export.Patient),
	version4("group-export-v4", "group-export", "Group", export.Group),
}

// Publish is an operation of servers that publish any types.
var Publish = Operation{
	ID: "bulk-publish", Guide: guide + "bulk-publish", Names: []string{"bulk-publish"}, Methods: []string{http.MethodGet},
	Call:  "The answer is a manifest; whoever asks again sends its `ETag` in `If-None-Match`, and has 304 if nothing is new.",
	Title: "What is published for all to follow",
	Text:  "A manifest of all resources of some types, and behind its `link` a chain of increments; files and pages never change. It is of the 4.0.0 ballot.",
}

// version4 is an export in the words of the ballot of version 4, which goes by
// another name because it drops and renames members of the manifest.
func version4(id, of, typ string, l export.Level) Operation {
	titles := map[export.Level]string{export.System: "the system", export.Patient: "all Patients", export.Group: "the members of a Group"}
	return Operation{
		ID: id, Guide: guide + of + "|4.0.0", Type: typ, Instance: l == export.Group,
		Names: []string{"export-v4"}, Methods: post, Call: kickOff,
		Level:      l,
		Title:      "Export of " + titles[l] + ", in the words of version 4",
		Text:       "The same as `$export` there, by POST alone. The manifest is that of the 4.0.0 ballot: `outcome` for `error`, no `request`, and what is empty is not there.",
		Parameters: parametersOf4(l),
	}
}

// referred lists the types that go with the data that refers to them.
var referred = typeNames(slices.DeleteFunc(fhir.AllTypes(), func(t fhir.Type) bool { return !fhir.Referred(t) }))

// typeNames lists types as a sentence does.
func typeNames(types []fhir.Type) string {
	var all []string
	for _, t := range types {
		all = append(all, t.String())
	}
	last := len(all) - 1
	return strings.Join(all[:last], ", ") + " and " + all[last]
}

// A Preset is a value of includeAssociatedData that stands for types.
type Preset struct {
	Value string
	Types []string
}

// All are ours and the operator's, by their values.
func (p Presets) All() (all []Preset) {
	for _, value := range p.values() {
		var types []string
		for _, t := range p.types(value) {
			types = append(types, t.String())
		}
		slices.Sort(types)
		all = append(all, Preset{value, slices.Compact(types)})
	}
	return all
}
