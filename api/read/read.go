// Package read answers for single resources: a Patient, a Group or a Binary by its
// id, and Groups by what they are called, which is how a client of Bulk Data finds the one
// to export. It reads at the watermark, as an export would; it refuses to be a FHIR
// server.
package read

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"golang.org/x/sync/semaphore"

	"tidemark/api/access"
	"tidemark/api/audit"
	"tidemark/api/bulk"
	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// Handlers answer for the resources of a store.
type Handlers struct {
	Store export.Store
	Base  string   // the public base, without a slash at its end
	Bases []string // of absolute references to resources here
	// Withhold is what nobody is given.
	Withhold withhold.Policy

	binaries *semaphore.Weighted // bytes of memory that they may take

	looks, passes *turns // for members of Groups
}

// New makes handlers. Bases are those of absolute references to resources here.
func New(db export.Store, base string, bases []string) *Handlers {
	return &Handlers{
		Store: db, Base: base, Bases: bases, binaries: semaphore.NewWeighted(maxHeld),
		looks: newTurns(int64(max(2, runtime.GOMAXPROCS(0)/2)), turnWait), passes: newTurns(1, turnWait),
	}
}

// turnWait is how long a read waits for its turn: longer than a client likes to, and shorter
// than proxies do.
const turnWait = 10 * time.Second

// Resource answers with a resource as it is at the watermark (FHIR R4, "read").
func (h *Handlers) Resource(name string) func(http.ResponseWriter, *http.Request) error {
	typ, _ := fhir.ParseType(name)
	return func(w http.ResponseWriter, r *http.Request) (err error) {
		if err := bulk.Readable(r); err != nil {
			return err
		}
		key, err := keyOf(r, typ)
		if err != nil {
			return err
		}
		audit.Note(r.Context()).Resource = key.String()
		s, err := h.view(r.Context())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		body, err := s.read(r.Context(), key)
		if errors.Is(err, store.ErrUnknown) {
			return bulk.Refuse(bulk.Missing, outcome.NotFound, "there is no such %s, or no more", name)
		}
		if err != nil {
			return err
		}
		answer(w, body)
		return nil
	}
}

// keyOf is the resource of a type that a request is about.
func keyOf(r *http.Request, typ fhir.Type) (fhir.Key, error) {
	key, err := fhir.ParseKey(typ.String() + "/" + chi.URLParam(r, "id"))
	if err != nil || key.Type != typ {
		return key, bulk.Refuse(bulk.Missing, outcome.NotFound, "what stands behind %s/ is not a FHIR id", typ)
	}
	return key, nil
}

func answer(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "application/fhir+json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body) // only the connection can fail, and nobody is left to hear of it
}

// A page holds so many resources, unless _count says less, and ends before the one
// that would take it past maxPage: a Group may name a hundred thousand members, and
// whatever is sent lies in memory.
const (
	defaultCount = 100
	maxCount     = 1000
	maxPage      = 8 << 20 // bytes
)

// after continues a search: the id of the last resource of the page before.
const after = "_after"

// Groups searches for Groups (FHIR R4, "search"): by any search parameter that
// _typeFilter takes, in pages, in the order of their ids.
func (h *Handlers) Groups(w http.ResponseWriter, r *http.Request) (err error) {
	ctx := r.Context()
	if err := access.From(ctx).Finds(groupType); err != nil {
		return err
	}
	return h.search(w, r, "Group", func(each func(line []byte)) (err error) {
		s, err := h.view(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		return s.eachGroup(ctx, each)
	})
}

// search answers with those of the resources that all lists which match.
func (h *Handlers) search(w http.ResponseWriter, r *http.Request, typ string, all func(each func(line []byte)) error) error {
	if err := bulk.Readable(r); err != nil {
		return err
	}
	noteQuery(r)
	q, err := h.query(typ, r.URL.RawQuery)
	if err != nil {
		return err
	}
	found := page{query: q}
	if err := found.find(all); err != nil {
		return err
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // resources stay as they came
	if err := enc.Encode(h.bundle(&found, r.URL.RawQuery)); err != nil {
		return err
	}
	answer(w, body.Bytes())
	return nil
}

// noteQuery says in the audit what was searched for.
func noteQuery(r *http.Request) {
	e := audit.Note(r.Context())
	for name, values := range r.URL.Query() {
		for _, v := range values {
			e.Parameters = append(e.Parameters, audit.Parameter{Name: name, Value: v})
		}
	}
}

// A query is a search that was understood.
type query struct {
	typ     string
	filter  *search.Filter // nil: all
	matches []string       // its parameters, as they came
	format  []string       // _format, as it came: the next page is asked for in the same way
	count   int
	after   string
}

func (h *Handlers) query(typ, raw string) (query, error) {
	q := query{typ: typ, count: defaultCount}
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, errName := url.QueryUnescape(name)
		value, err := url.QueryUnescape(value)
		if err != nil || errName != nil {
			return q, bulk.Refuse(bulk.Invalid, outcome.Structure, "a parameter has a broken percent-escape: a %% itself is written %%25")
		}
		switch name {
		case "_format":
			q.format = append(q.format, bulk.Printable(pair))
		case "_pretty", "_total": // there is one form of the answer
		case "_count":
			if q.count, err = strconv.Atoi(value); err != nil || q.count < 0 {
				return q, bulk.Refuse(bulk.Invalid, outcome.Value, "_count: %s is not a number of resources", outcome.Quote(value))
			}
			q.count = min(q.count, maxCount)
		case after:
			q.after = value
		default:
			q.matches = append(q.matches, escape(name)+"="+escape(value))
		}
	}
	if len(q.matches) == 0 {
		return q, nil
	}
	of, err := search.Parse(typ+"?"+strings.Join(q.matches, "&"), search.Env{Bases: h.Bases, Now: h.Store.Now()})
	if err != nil {
		return q, bulk.Refuse(bulk.Invalid, outcome.Value, "%v", err)
	}
	q.filter = search.New(of)
	return q, nil
}

// escape: in what search.Parse reads, a plus is one.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// A page is what is sent of what a search finds.
type page struct {
	query
	total int     // on all pages
	found []match // in the order of their ids
	size  int     // of their bodies, bytes
	next  string  // the least id on the pages behind; "" if this is the last
}

// A match is a resource that was found.
type match struct {
	id   string
	body json.RawMessage
}

func (p *page) find(all func(each func(line []byte)) error) error {
	matches := func([]byte) bool { return true }
	if p.filter != nil {
		matches = p.filter.Matcher().Match
	}
	return all(func(line []byte) {
		if matches(line) {
			p.add(line)
		}
	})
}

// add takes a resource in and what does not fit any more out again.
func (p *page) add(line []byte) {
	p.total++
	id := search.ID(line)
	if id <= p.after || p.count == 0 || p.next != "" && id >= p.next {
		return
	}
	at, _ := slices.BinarySearchFunc(p.found, id, func(m match, id string) int { return strings.Compare(m.id, id) })
	p.found = slices.Insert(p.found, at, match{id, bytes.Clone(line)})
	p.size += len(line)
	for n := len(p.found); n > p.count || n > 1 && p.size > maxPage; n-- {
		last := p.found[n-1]
		p.found, p.size, p.next = slices.Delete(p.found, n-1, n), p.size-len(last.body), last.id
	}
}

var (
	groupType, _   = fhir.ParseType("Group")
	patientType, _ = fhir.ParseType("Patient")
)

// searchset is a Bundle of what a search has found.
type searchset struct {
	ResourceType string  `json:"resourceType"`
	Type         string  `json:"type"`
	Total        int     `json:"total"`
	Link         []link  `json:"link"`
	Entry        []entry `json:"entry,omitempty"`
}

type link struct {
	Relation string `json:"relation"`
	URL      string `json:"url"`
}

type entry struct {
	FullURL  string          `json:"fullUrl"`
	Resource json.RawMessage `json:"resource"`
	Search   mode            `json:"search"`
}

type mode struct {
	Mode string `json:"mode"`
}

func (h *Handlers) bundle(p *page, raw string) searchset {
	at := h.Base + "/" + p.typ
	b := searchset{ResourceType: "Bundle", Type: "searchset", Total: p.total, Link: []link{{"self", at + suffix(raw)}}}
	for _, m := range p.found {
		b.Entry = append(b.Entry, entry{at + "/" + m.id, m.body, mode{"match"}})
	}
	if p.next != "" {
		next := slices.Concat(p.matches, p.format, []string{"_count=" + strconv.Itoa(p.count), after + "=" + p.found[len(p.found)-1].id})
		b.Link = append(b.Link, link{"next", at + "?" + strings.Join(next, "&")})
	}
	return b
}

func suffix(raw string) string {
	if raw == "" {
		return ""
	}
	return "?" + bulk.Printable(raw)
}
