// Package bulk speaks Bulk Data Access: kick-off, status request, manifest,
// output file, delete. It reads requests and writes answers, and leaves to
// package export what a job is.
//
// Handlers return what went wrong; package api makes a status and an
// OperationOutcome of it. No URL is built from anything but the public base:
// Host and X-Forwarded-* belong to whoever sends them (decisions.md 2).
package bulk

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"tidemark/api/export"
	"tidemark/store/fhir"
)

// Patterns of the routes under the base. What does not match them is not
// found before anything is looked up.
const (
	StatusPath = "/export/{job:[0-9a-f]{32}}"
	FilePath   = StatusPath + "/{file:[1-9][0-9]{0,5}}.ndjson"
)

// Handlers answer the requests of Bulk Data Access.
type Handlers struct {
	Jobs    *export.Jobs
	Base    string   // the public base, without a slash at its end
	Bases   []string // of absolute references to resources here
	MaxBody int64
	Now     func() fhir.Instant
}

// A KickOff is where exports of a level are started: GET or POST
// [base]/$export, [base]/Patient/$export, [base]/Group/[id]/$export (Bulk Data,
// "Bulk Data Kick-off Request").
type KickOff struct {
	Path  string // under the base
	Level export.Level
}

// Pattern is Path with what may stand for {group}: FHIR's id.
func (k KickOff) Pattern() string {
	return strings.Replace(k.Path, "{group}", "{group:[A-Za-z0-9.-]{1,64}}", 1)
}

// KickOffs are all there are. The test suites look for an operation by either
// name, so both work (decisions.md 2).
var KickOffs = []KickOff{
	{"/$export", export.System},
	{"/Patient/$export", export.Patient},
	{"/Patient/$patient-export", export.Patient},
	{"/Group/{group}/$export", export.Group},
	{"/Group/{group}/$group-export", export.Group},
}

// Start answers a kick-off.
func (h *Handlers) Start(k KickOff, w http.ResponseWriter, r *http.Request) error {
	if err := accepted(r.Header); err != nil {
		return err
	}
	prefs, err := prefer(r.Header)
	if err != nil {
		return err
	}
	q, err := h.request(k, w, r, prefs)
	if err != nil {
		return err
	}
	id, err := h.Jobs.Start(r.Context(), q)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Location", h.statusURL(id))
	w.Header().Set("Preference-Applied", prefs.applied())
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func (h *Handlers) request(k KickOff, w http.ResponseWriter, r *http.Request, prefs preferences) (export.Request, error) {
	post := r.Method == http.MethodPost
	params, err := h.params(w, r, post)
	if err != nil {
		return export.Request{}, err
	}
	q, err := read(params, asking{k.Level, h.Base, h.Bases, prefs.lenient, !post, h.Now()})
	q.Group = chi.URLParam(r, "group")
	q.URL = h.Base + strings.Replace(k.Path, "{group}", q.Group, 1)
	if r.URL.RawQuery != "" {
		q.URL += "?" + Printable(r.URL.RawQuery)
	}
	return q, err
}

func (h *Handlers) params(w http.ResponseWriter, r *http.Request, post bool) ([]param, error) {
	if post {
		return bodyParams(w, r, h.MaxBody)
	}
	return queryParams(r.URL.RawQuery)
}

// Printable escapes what a strict client would not have sent: the manifest
// repeats the query as it was, but stays one URL.
func Printable(query string) string {
	var b strings.Builder
	for i := 0; i < len(query); i++ {
		if c := query[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"<>\^{|}`+"`", c) >= 0 {
			b.WriteString("%" + strings.ToUpper(strconv.FormatUint(uint64(c)|0x100, 16)[1:]))
			continue
		}
		b.WriteByte(query[i])
	}
	return b.String()
}

func (h *Handlers) statusURL(id string) string { return h.Base + "/export/" + id }

func (h *Handlers) fileURL(id string, n int) string {
	return h.statusURL(id) + "/" + strconv.Itoa(n) + ".ndjson"
}

// manifest is the answer to a status request, as the versions 2 and 3 of the
// guide have it.
type manifest struct {
	TransactionTime     string    `json:"transactionTime"`
	Request             string    `json:"request"`
	RequiresAccessToken bool      `json:"requiresAccessToken"`
	Output              []entry   `json:"output"`
	Deleted             []entry   `json:"deleted"`
	Error               []entry   `json:"error"`
	Extension           extension `json:"extension"`
}

type entry struct {
	Type  string `json:"type"`
	URL   string `json:"url"`
	Count int64  `json:"count"`
}

type extension struct {
	// Epoch changes when the store was restored or rebuilt: a chain of _since
	// is exact within one epoch.
	Epoch uint64 `json:"tidemark-epoch"`
}

// Status answers a status request: with the manifest, or with how far the job
// is.
func (h *Handlers) Status(w http.ResponseWriter, r *http.Request) error {
	id := chi.URLParam(r, "job")
	if err := h.Jobs.Poll(id); err != nil {
		return err
	}
	m, err := h.Jobs.Manifest(id)
	if e, working := errors.AsType[*export.WorkingError](err); working {
		w.Header().Set("X-Progress", fmt.Sprintf("%.0f %% of the rows looked through", 100*e.Progress))
		w.Header().Set("Retry-After", RetryAfter(e.After))
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Expires", m.Expires.UTC().Format(http.TimeFormat))
	w.Header().Set("X-Progress", "complete")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(h.manifest(id, m)) // only the connection can fail, and nobody is left to hear of it
	return nil
}

func (h *Handlers) manifest(id string, m export.Manifest) manifest {
	out := manifest{
		TransactionTime: m.TransactionTime.String(),
		Request:         m.Request,
		Output:          []entry{},
		Deleted:         []entry{},
		Error:           []entry{},
		Extension:       extension{m.Epoch},
	}
	for i, f := range m.Files {
		url := h.fileURL(id, i+1)
		switch f.List {
		case export.Output:
			out.Output = append(out.Output, entry{f.Type.String(), url, f.Rows})
		case export.Deleted:
			out.Deleted = append(out.Deleted, entry{"Bundle", url, f.Rows})
		case export.Errors:
			out.Error = append(out.Error, entry{"OperationOutcome", url, f.Rows})
		}
	}
	return out
}

// Delete ends a job (Bulk Data, "Bulk Data Delete Request").
func (h *Handlers) Delete(w http.ResponseWriter, r *http.Request) error {
	if err := h.Jobs.Delete(r.Context(), chi.URLParam(r, "job")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// RetryAfter is the value of the header for a wait: whole seconds, never 0.
func RetryAfter(wait time.Duration) string {
	return strconv.FormatInt(max(1, int64((wait+time.Second-1)/time.Second)), 10)
}
