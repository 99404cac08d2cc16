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

	"tidemark/api/access"
	"tidemark/api/audit"
	"tidemark/api/export"
	"tidemark/store/fhir"
)

// Patterns of the routes under the base. What does not match them is not
// found before anything is looked up.
const (
	StatusPath = "/export/{job:[0-9a-f]{32}}"
	NextPath   = StatusPath + "/page/{page:[1-9][0-9]{0,5}}"
	FilePath   = StatusPath + "/{file:[1-9][0-9]{0,5}}.ndjson"
)

// Handlers answer the requests of Bulk Data Access.
type Handlers struct {
	Jobs    *export.Jobs
	Base    string   // the public base, without a slash at its end
	Bases   []string // of absolute references to resources here
	MaxBody int64
	Now     func() fhir.Instant
	Presets Presets // of the operator
	Quota   *access.Quota
	// Still tells whether a caller may still do all that he might when he was let in; nil:
	// nothing is ever taken from anybody.
	Still func(*access.Caller) bool
	// Sign makes what is added to the URL of a file so that no token is needed there;
	// nil: one is.
	Sign func(job string, file int, serial uint64, until time.Time) string
}

// A KickOff is where exports of a level are started: GET or POST
// [base]/$export, [base]/Patient/$export, [base]/Group/[id]/$export (Bulk Data,
// "Bulk Data Kick-off Request").
type KickOff struct {
	Path  string // under the base
	Level export.Level
	Face  export.Face
	// Typed says that exportType picks the types, as payers ask (Da Vinci,
	// "davinci-data-export").
	Typed bool
}

// Methods are those by which the export can be started: STU4 has POST alone.
func (k KickOff) Methods() []string {
	if k.Face == export.STU4 {
		return []string{http.MethodPost}
	}
	return []string{http.MethodGet, http.MethodPost}
}

// Pattern is Path with what may stand for {group}: FHIR's id.
func (k KickOff) Pattern() string {
	return strings.Replace(k.Path, "{group}", "{group:[A-Za-z0-9.-]{1,64}}", 1)
}

// KickOffs are all there are. The test suites look for an operation by either
// name, so both work (decisions.md 2).
var KickOffs = []KickOff{
	{Path: "/$export", Level: export.System},
	{Path: "/Patient/$export", Level: export.Patient},
	{Path: "/Patient/$patient-export", Level: export.Patient},
	{Path: "/Group/{group}/$export", Level: export.Group},
	{Path: "/Group/{group}/$group-export", Level: export.Group},
	{Path: "/Group/{group}/$davinci-data-export", Level: export.Group, Typed: true},
	{Path: "/$export-v4", Level: export.System, Face: export.STU4},
	{Path: "/Patient/$export-v4", Level: export.Patient, Face: export.STU4},
	{Path: "/Group/{group}/$export-v4", Level: export.Group, Face: export.STU4},
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
	noteGoal(r.Context(), k.Level, chi.URLParam(r, "group"))
	caller := access.From(r.Context())
	if err := caller.Starts(k.Level.Name()); err != nil {
		return err
	}
	q, err := h.request(k, w, r, prefs)
	if err != nil {
		return err
	}
	if err := permit(caller, &q, prefs.lenient); err != nil {
		return err
	}
	if err := h.Quota.Start(caller.Owner(), caller.Limits); err != nil {
		return err
	}
	q.AtOnce = caller.Limits.Jobs
	if h.Still != nil {
		q.Still = func() bool { return h.Still(caller) }
	}
	id, err := h.Jobs.Start(r.Context(), q)
	if err != nil {
		h.Quota.Undo(caller.Owner())
		return err
	}
	h.note(r.Context(), id, &q)
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
	noteParams(r.Context(), params)
	q, err := read(params, asking{
		level: k.Level, typed: k.Typed, base: h.Base, bases: h.Bases, lenient: prefs.lenient, fromURL: !post, now: h.Now(), own: h.Presets,
	})
	q.Face, q.Separate = k.Face, prefs.separate
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

func (h *Handlers) pageURL(id string, n int) string {
	return h.statusURL(id) + "/page/" + strconv.Itoa(n)
}

func (h *Handlers) fileURL(id string, n int) string {
	return h.statusURL(id) + "/" + strconv.Itoa(n) + ".ndjson"
}

// Status answers a status request: with the manifest, or with how far the job
// is.
func (h *Handlers) Status(w http.ResponseWriter, r *http.Request) error {
	return h.page(w, r, 1)
}

// Page answers a request for a page of the manifest behind the first (Bulk Data,
// "allowPartialManifests").
func (h *Handlers) Page(w http.ResponseWriter, r *http.Request) error {
	n, err := strconv.Atoi(chi.URLParam(r, "page"))
	if err != nil || n < 2 {
		return export.ErrNotFound
	}
	return h.page(w, r, n)
}

func (h *Handlers) page(w http.ResponseWriter, r *http.Request, n int) error {
	id := chi.URLParam(r, "job")
	if err := h.mayHave(r, id); err != nil {
		return err
	}
	if err := h.Jobs.Poll(id); err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	m, err := h.Jobs.Page(id, n)
	if e, working := errors.AsType[*export.WorkingError](err); working {
		progress(w.Header(), e)
		w.WriteHeader(told(w.Header(), http.StatusAccepted, e.Separate))
		return nil
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Expires", m.Expires.UTC().Format(http.TimeFormat))
	w.WriteHeader(h.pageStatus(w.Header(), m))
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(h.face(id, m, access.From(r.Context()))) // only the connection can fail, and nobody is left to hear of it
	return nil
}

// pageStatus is 202 with the first page while the job is planned, for that is the
// job's own answer. A later one that is there is complete in itself.
func (h *Handlers) pageStatus(head http.Header, m export.Manifest) int {
	if m.Working == nil {
		head.Set("X-Progress", "complete")
		return told(head, http.StatusOK, m.Separate)
	}
	progress(head, m.Working)
	if status := told(head, http.StatusAccepted, m.Separate); m.Page == 1 {
		return status
	}
	return http.StatusOK
}

func progress(head http.Header, e *export.WorkingError) {
	p := e.Progress
	head.Set("X-Progress", fmt.Sprintf("%.0f %% looked through, %d resources in %d files are ready", 100*p.Share, p.Rows, p.Files))
	head.Set("Retry-After", RetryAfter(e.After))
}

// ExportStatus is the header that tells the status of a job to clients that asked
// for it apart from that of the request (Bulk Data, "separate-export-status").
const ExportStatus = "X-Export-Status"

// StatusLine is the value of the header.
func StatusLine(status int) string { return strconv.Itoa(status) + " " + http.StatusText(status) }

// told is the status of the answer to a poll that went well.
func told(h http.Header, job int, separate bool) int {
	if !separate {
		return job
	}
	h.Set(ExportStatus, StatusLine(job))
	return http.StatusOK
}

// Delete ends a job (Bulk Data, "Bulk Data Delete Request").
func (h *Handlers) Delete(w http.ResponseWriter, r *http.Request) error {
	id := chi.URLParam(r, "job")
	if _, err := h.own(r, id); err != nil {
		return err
	}
	if err := audit.Intend(r.Context()); err != nil {
		return err
	}
	if err := h.Jobs.Delete(r.Context(), id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// RetryAfter is the value of the header for a wait: whole seconds, never 0.
func RetryAfter(wait time.Duration) string {
	return strconv.FormatInt(max(1, int64((wait+time.Second-1)/time.Second)), 10)
}
