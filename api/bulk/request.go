package bulk

import (
	"slices"
	"strings"
	"time"
	"unicode"

	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store/fhir"
)

// maxNotes bounds the lines that handling=lenient may put into a job.
const maxNotes = 100

// maxAhead is how far a client's clock may run ahead of ours before its _since
// is refused (decisions.md 1).
const maxAhead = fhir.Instant(time.Minute / time.Millisecond)

const known = "known are _type, _typeFilter, _elements, includeAssociatedData, organizeOutputBy, _since, _until, _outputFormat, allowPartialManifests, _minimumFileSize, _maximumFileSize and, but for the system, patient"

// An asking is what is known of a kick-off beside its parameters.
type asking struct {
	level   export.Level
	typed   bool     // exportType picks the types
	base    string   // of absolute references to Patients
	bases   []string // of those in searches
	lenient bool
	fromURL bool
	now     fhir.Instant
	own     Presets
}

// A reading turns parameters into a request. It goes through all of them
// before it answers, so that a client learns all its faults at once.
type reading struct {
	asking

	q        export.Request
	until    bound
	since    bound
	seen     map[string]bool
	patients map[string]bool
	named    int // parameters patient
	filters  filters
	entries  []string        // of _elements
	presets  []string        // of includeAssociatedData
	least    int64           // bytes of an output file; 0: not given
	use      []fhir.Type     // the types of exportType; none: all
	values   int             // of _type
	types    []outcome.Issue // faults in them
	faults   []outcome.Issue
}

// A bound is an instant as it was given.
type bound struct {
	at  fhir.Instant // cut to milliseconds; None: not given
	cut bool         // something finer was cut off
}

// read understands the parameters of a kick-off (decisions.md 1 and 2).
func read(params []param, a asking) (export.Request, error) {
	none := bound{at: fhir.None}
	r := &reading{asking: a, since: none, until: none, seen: map[string]bool{}, patients: map[string]bool{}}
	r.q.Level = a.level
	for _, p := range params {
		r.param(p)
		r.seen[p.name] = true
	}
	r.finishTypes()
	r.finishUse()
	r.finishPresets()
	r.finishPatients()
	r.finishFilters()
	r.finishElements()
	r.finishWindow()
	r.finishSizes()
	if len(r.q.Notes) > maxNotes {
		r.fault(outcome.TooCostly, "more than %d things in this request would have to be left out", maxNotes)
	}
	if len(r.faults) > 0 {
		return export.Request{}, &Error{Kind: Invalid, Issues: r.faults[:min(len(r.faults), maxNotes)]}
	}
	return r.q, nil
}

func (r *reading) fault(code outcome.Code, format string, args ...any) {
	r.faults = append(r.faults, fault(code, format, args...))
}

func (r *reading) param(p param) {
	switch p.name {
	case "_type":
		r.typ(p)
	case "_since":
		r.bound(p, &r.since)
	case "_until":
		r.bound(p, &r.until)
	case "_outputFormat":
		r.outputFormat(p)
	case "allowPartialManifests":
		r.partial(p)
	case "patient":
		r.patient(p)
	case "_typeFilter":
		r.typeFilter(p)
	case "_elements":
		r.elements(p)
	case "includeAssociatedData":
		r.associated(p)
	case "_minimumFileSize":
		r.size(p, &r.least)
	case "_maximumFileSize":
		r.size(p, &r.q.MaxBytes)
	case "exportType":
		r.exportType(p)
	case "organizeOutputBy":
		r.organize(p)
	default:
		if right := meant(p.name); right != "" {
			r.fault(outcome.NotSupported, "the parameter %s is not known here, and too like %s to be left out: write %s, or remove it", outcome.Quote(p.name), right, right)
			return
		}
		r.leaveOutUnknown(p)
	}
}

// meant is the parameter that a misspelt name stands for, "" if that is none.
// Most of them narrow an answer: without one a client gets more than it asked
// for, and may well not see that it was left out (decisions.md 2). What such a
// parameter says is not repeated either: it may be a patient's id.
func meant(name string) string {
	given := letters(name)
	for _, right := range names {
		if given == letters(right) {
			return right
		}
	}
	// Whatever says patient or subject means to narrow the answer to somebody.
	if strings.Contains(given, "patient") || strings.Contains(given, "subject") {
		return "patient"
	}
	return ""
}

// letters is what is left of a name without its modifier, chain or brackets,
// its case, its underscores and the like.
func letters(name string) string {
	if i := strings.IndexAny(name, ":.["); i >= 0 {
		name = name[:i]
	}
	return strings.Map(func(c rune) rune {
		if !unicode.IsLetter(c) {
			return -1
		}
		return unicode.ToLower(c)
	}, name)
}

// leaveOutUnknown drops a parameter that nobody knows, if the client allowed it,
// and says so in the manifest; else it is a fault. What it says is not repeated: it
// may be anything.
func (r *reading) leaveOutUnknown(p param) {
	if r.lenient {
		r.note("the parameter %s is not known here and was left out", outcome.Quote(p.name))
		return
	}
	r.fault(outcome.NotSupported, `the parameter %s is not known here: %s ("Prefer: handling=lenient" leaves it out)`, outcome.Quote(p.name), known)
}

func (r *reading) note(format string, args ...any) {
	i := fault(outcome.NotSupported, format, args...)
	i.Severity = outcome.Warning
	r.q.Notes = append(r.q.Notes, i)
}

// once says whether p is the first of its name and came in a form that fits.
func (r *reading) once(p param, kinds ...string) bool {
	if r.seen[p.name] {
		r.fault(outcome.Invalid, "the parameter %s is given more than once, the last time with the value %s: give it once", p.name, outcome.Quote(p.value))
		return false
	}
	return r.form(p, kinds...)
}

func (r *reading) form(p param, kinds ...string) bool {
	if p.kind != "" && !slices.Contains(kinds, p.kind) {
		r.fault(outcome.Value, "the parameter %s with the value %s came as %s: send it as %s", p.name, outcome.Quote(p.value), outcome.Quote(p.kind), kinds[0])
		return false
	}
	return true
}

// texts are the forms in which a code or a text may come in Parameters.
var texts = []string{"valueString", "valueCode", "valueCoding", "valueUri", "valueUrl", "valueCanonical", "valueId", "valueMarkdown"}

// typ takes types one by one: repeated parameters and comma lists mean the
// same.
func (r *reading) typ(p param) {
	if !r.form(p, texts...) {
		return
	}
	if r.values += 1 + strings.Count(p.value, ","); r.values > maxParams {
		r.fault(outcome.TooCostly, "_type: %s is one of more than %d values", outcome.Quote(p.value), maxParams)
		return
	}
	for name := range strings.SplitSeq(p.value, ",") {
		name = strings.TrimSpace(name)
		t, ok := fhir.ParseType(name)
		switch {
		case !ok:
			r.types = append(r.types, fault(outcome.Value, "_type: %s is not a resource type of FHIR R4 (4.0.1)%s", outcome.Quote(name), likely(name)))
		case !r.q.Level.Holds(t):
			r.types = append(r.types, fault(outcome.Value, "_type: %s is not exported at Patient and Group level: it lies in no Patient's compartment, nor is it what clinical data refers to; ask for it at system level", outcome.Quote(name)))
		case !slices.Contains(r.q.Types, t):
			r.q.Types = append(r.q.Types, t)
		}
	}
}

// patient takes the Patients that an export is about, one by one. No value is
// ever repeated, for it is a patient's id, and none left out: that would disclose
// everybody's data.
func (r *reading) patient(p param) {
	r.named++
	switch id, ok := r.patientID(p.value); {
	case r.named > maxPatients:
		if r.named == maxPatients+1 {
			r.fault(outcome.TooCostly, "more than %d parameters patient in one request", maxPatients)
		}
	case r.q.Level == export.System:
		r.fault(outcome.NotSupported, "the parameter patient has no meaning in a system-level export and is never left out: remove it")
	case r.fromURL:
		r.fault(outcome.NotSupported, "the parameter patient is not taken from a URL, which others may see: send a POST with Parameters")
	case p.kind != "valueReference" && p.kind != "valueString":
		r.fault(outcome.Value, "a parameter patient came as %s: send it as valueReference", outcome.Quote(p.kind))
	case !ok:
		r.fault(outcome.Value, `a parameter patient does not refer to a Patient of this server: right is {"reference":"Patient/[id]"}`)
	case !r.patients[id]:
		r.patients[id] = true
		r.q.Patients = append(r.q.Patients, id)
	}
}

func (r *reading) patientID(ref string) (string, bool) {
	key, err := fhir.ParseKey(strings.TrimPrefix(ref, r.base+"/"))
	return key.ID, err == nil && key.Type.String() == "Patient"
}

// finishPatients: a Group names all its members, so it does not go with some.
func (r *reading) finishPatients() {
	if len(r.q.Patients) == 0 {
		return
	}
	for _, t := range r.q.Types {
		if t.String() == "Group" {
			r.fault(outcome.Value, "_type: Group is not exported together with the parameter patient: it names all its members")
		}
	}
}

// likely helps with the commonest fault in a type's name, its case.
func likely(name string) string {
	for _, t := range fhir.AllTypes() {
		if strings.EqualFold(t.String(), name) {
			return ": write " + t.String()
		}
	}
	return ", such as Patient or Observation"
}

// finishTypes drops wrong types only while a right one is left: without any,
// the request would be for everything.
func (r *reading) finishTypes() {
	if !r.lenient || len(r.q.Types) == 0 {
		r.faults = append(r.faults, r.types...)
		return
	}
	for _, i := range r.types {
		r.note("%s; it was left out", i.Text)
	}
}

func (r *reading) bound(p param, b *bound) {
	if !r.once(p, "valueInstant", "valueDateTime", "valueString") {
		return
	}
	var err error
	if b.at, b.cut, err = fhir.ParseInstant(p.value); err != nil {
		*b = bound{at: fhir.None}
		r.fault(outcome.Value, "%s: %s is not an instant%s", p.name, outcome.Quote(p.value), r.hint(p.value))
	}
}

// hint recognizes the offset whose plus sign became a space on its way.
func (r *reading) hint(value string) string {
	if r.fromURL && strings.Contains(value, " ") {
		if _, _, err := fhir.ParseInstant(strings.Replace(value, " ", "+", 1)); err == nil {
			return ": the + of an offset is written %2B in a URL"
		}
	}
	return ": right is a date, a time to at least the second, and a zone, as in 2026-01-02T03:04:05.000Z"
}

// finishWindow makes of both bounds what the store understands: after Since, up
// to and including Upto.
func (r *reading) finishWindow() {
	r.q.Since, r.q.Upto = fhir.None, fhir.None
	if r.since.at != fhir.None {
		r.q.Since = r.since.at
		if r.since.cut {
			r.q.Since-- // rather repeat than lose (decisions.md 1)
		}
		if r.since.at > r.now+maxAhead {
			r.fault(outcome.Value, "_since: %s lies in the future: our clock says %s; if it is the transactionTime of an export, our clock was ahead then: export without _since", r.since.at, r.now)
		}
	}
	if r.until.at == fhir.None {
		return
	}
	// Strictly before _until is, in whole milliseconds, up to the last one
	// before it rounded up.
	r.q.Upto = r.until.at - 1
	if r.until.cut {
		r.q.Upto++
	}
	if r.since.at != fhir.None && !r.since.before(r.until) {
		r.fault(outcome.Value, "_until: %s does not lie after _since: %s", r.until.at, r.since.at)
	}
}

// before compares as far as the bounds are known; two cut ones of the same
// millisecond count as equal.
func (b bound) before(c bound) bool {
	return b.at < c.at || b.at == c.at && c.cut && !b.cut
}

// formats are the spellings that the guide wants; the fourth is the first
// after a + that was not escaped.
var formats = []string{"application/fhir+ndjson", "application/ndjson", "ndjson", "application/fhir ndjson"}

func (r *reading) outputFormat(p param) {
	if r.once(p, texts...) && !slices.Contains(formats, p.value) {
		r.fault(outcome.NotSupported, "_outputFormat: %s is not supported: right is application/fhir+ndjson, application/ndjson or ndjson", outcome.Quote(p.value))
	}
}

// partial allows us to send the manifest in pages. A job that is ready at once
// has one page (decisions.md 5).
func (r *reading) partial(p param) {
	if !r.once(p, "valueBoolean", "valueString", "valueCode") {
		return
	}
	if r.q.Partial = p.value == "true"; !r.q.Partial && p.value != "false" {
		r.fault(outcome.Value, "allowPartialManifests: %s is not a boolean: right is true or false", outcome.Quote(p.value))
	}
}
