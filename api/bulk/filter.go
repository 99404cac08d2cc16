package bulk

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// maxFilters and maxFilter bound what of a request is looked for in each resource
// (decisions.md 6). Bytes.
const (
	maxFilters = 100
	maxFilter  = 4 << 10
	maxValues  = 5000 // of all searches; each may be compared with every resource
)

// filters are the searches of _typeFilter as they are read.
type filters struct {
	all     int
	values  int
	queries []*search.Query
	texts   []string
	left    map[fhir.Type]bool // types of which some search was left out
}

// another is where the next search of a comma list begins: the guide's first two
// versions join searches by commas, which stand in their values, too.
var another = regexp.MustCompile(`,\s*[A-Z][A-Za-z]*\?`)

// searches takes a list apart. A comma that is escaped belongs to a value.
func searches(list string) (all []string) {
	from := 0
	for _, at := range another.FindAllStringIndex(list, -1) {
		before := list[from:at[0]]
		if slashes := len(before) - len(strings.TrimRight(before, `\`)); slashes%2 == 0 {
			all, from = append(all, strings.TrimSpace(before)), at[0]+1
		}
	}
	return append(all, strings.TrimSpace(list[from:]))
}

// typeFilter takes searches one by one, whichever way they are joined. Nothing of
// them is repeated but names of parameters, and malformed dates and numbers:
// they may tell of a patient.
func (r *reading) typeFilter(p param) {
	if p.kind != "" && !slices.Contains(texts, p.kind) { // form would repeat what it says
		r.fault(outcome.Value, "a parameter _typeFilter came as %s: send it as valueString", outcome.Quote(p.kind))
		return
	}
	if len(p.value) > maxFilters*maxFilter {
		r.fault(outcome.TooCostly, "_typeFilter: longer than %d searches of %d bytes", maxFilters, maxFilter)
		return
	}
	for _, text := range searches(p.value) {
		r.filter(text)
	}
}

func (r *reading) filter(text string) {
	switch r.filters.all++; {
	case r.filters.all == maxFilters+1:
		r.fault(outcome.TooCostly, "_typeFilter: more than %d searches", maxFilters)
	case r.filters.all > maxFilters:
	case r.filters.tooMany(text):
		r.fault(outcome.TooCostly, "_typeFilter: more than %d values", maxValues)
	case len(text) > maxFilter:
		r.fault(outcome.TooCostly, "_typeFilter: a search is longer than %d bytes", maxFilter)
	default:
		r.search(text)
	}
}

// tooMany tells whether there are more values than are compared; once.
func (f *filters) tooMany(text string) bool {
	before := f.values
	f.values += strings.Count(text, "=") + strings.Count(text, ",") + strings.Count(strings.ToUpper(text), "%2C")
	return f.values > maxValues && before <= maxValues
}

func (r *reading) search(text string) {
	q, err := search.Parse(text, search.Env{Bases: r.bases, Now: r.now})
	if f, is := errors.AsType[*search.Fault](err); is {
		code := outcome.Value
		if f.Unsupported {
			code = outcome.NotSupported
		}
		r.refuseFilter(typeOf(text), code, "_typeFilter: %s", f.Reason)
		return
	}
	if t := q.Type; !r.q.Level.Holds(t) {
		r.refuseFilter(t, outcome.Value, "_typeFilter: %s is not exported at Patient and Group level", t)
		return
	}
	r.filters.queries = append(r.filters.queries, q)
	r.filters.texts = append(r.filters.texts, text)
}

// typeOf is which type a search is about, 0 if that is none.
func typeOf(text string) fhir.Type {
	t, _ := fhir.ParseType(typeName.FindString(text))
	return t
}

var typeName = regexp.MustCompile(`^[A-Z][A-Za-z]*`)

// refuseFilter leaves a search out if the client allowed it. Then its type is not
// filtered at all: the others of it alone would leave out what this one asks for.
func (r *reading) refuseFilter(t fhir.Type, code outcome.Code, format string, args ...any) {
	if !r.lenient {
		r.fault(code, format+` ("Prefer: handling=lenient" leaves all filters of that type out)`, args...)
		return
	}
	if r.filters.left == nil {
		r.filters.left = map[fhir.Type]bool{}
	}
	r.filters.left[t] = true
	r.note(format+"; all filters of that type were left out", args...)
}

// finishFilters takes those filters whose types are asked for.
func (r *reading) finishFilters() {
	for _, q := range r.filters.queries {
		if len(r.q.Types) > 0 && !slices.Contains(r.q.Types, q.Type) && !r.filters.left[q.Type] {
			r.refuseFilter(q.Type, outcome.Value, "_typeFilter: %s is not among the types that are asked for", q.Type)
		}
	}
	for i, q := range r.filters.queries {
		if !r.filters.left[q.Type] {
			r.q.Filters = append(r.q.Filters, r.filters.texts[i])
		}
	}
	if r.filters.left[0] && len(r.q.Filters) > 0 {
		r.fault(outcome.Value, "_typeFilter: a search without a resource type before its ? is not left out while there are others: they may leave out what it asks for")
	}
}
