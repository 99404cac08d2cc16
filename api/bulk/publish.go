package bulk

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"tidemark/api/audit"
	"tidemark/api/publish"
)

// Patterns of what is published, under the base.
const (
	PublishPath  = "/$bulk-publish"
	PagePath     = "/publish/{page:[0-9a-f]{32}}"
	StubPath     = PagePath + "/stub"
	PageFilePath = PagePath + "/{file:[1-9][0-9]{0,5}}.ndjson"
)

// Publishing answers requests for what is published (Bulk Data 4.0, "Bulk
// Publish").
type Publishing struct {
	Pages *publish.Pages
	Base  string // the public base, without a slash at its end
	Token bool   // who reads needs one
}

// Root answers with the newest root.
func (h *Publishing) Root(w http.ResponseWriter, r *http.Request) error {
	m, err := h.Pages.Root()
	return h.answer(w, r, m, err)
}

// Stub answers with the page behind a root.
func (h *Publishing) Stub(w http.ResponseWriter, r *http.Request) error {
	m, err := h.Pages.Stub(chi.URLParam(r, "page"))
	return h.answer(w, r, m, err)
}

// Increment answers with a page of changes.
func (h *Publishing) Increment(w http.ResponseWriter, r *http.Request) error {
	m, err := h.Pages.Increment(chi.URLParam(r, "page"))
	return h.answer(w, r, m, err)
}

// File serves a file of a page, as those of jobs are served. Its URL never stands
// for anything else, so caches may keep it as long as they like.
func (h *Publishing) File(w http.ResponseWriter, r *http.Request) error {
	page := chi.URLParam(r, "page")
	n, err := strconv.Atoi(chi.URLParam(r, "file"))
	if err != nil {
		return err // the pattern lets nothing else through
	}
	noteFile(r.Context(), page, n)
	audit.Note(r.Context()).Level = "publish"
	d, err := h.Pages.Open(r.Context(), page, n)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // was opened for reading only
	noteSent(r.Context(), d)
	return send(w, r, d, page+"-"+strconv.Itoa(n), h.caching("max-age=31536000, immutable, no-transform"))
}

// published is a page as version 4 of the guide has it: what is empty is left out.
type published struct {
	ManifestType        string `json:"manifestType"`
	TransactionTime     string `json:"transactionTime"`
	RequiresAccessToken bool   `json:"requiresAccessToken"`
	OutputFormat        string `json:"outputFormat"`
	UpdateCadence       string `json:"updateCadence"`
	lists4
	Link []link `json:"link"`
}

func (h *Publishing) manifest(m publish.Manifest) published {
	out := published{
		ManifestType:        manifestTypes + "BulkPublishManifest",
		RequiresAccessToken: h.Token,
		TransactionTime:     m.TransactionTime.String(),
		OutputFormat:        ndjson,
		UpdateCadence:       cadence(h.Pages.Every()),
		Link:                []link{{"next", h.next(m.Next)}},
	}
	for i, f := range m.Files {
		out.add(f.List, newEntry4(h.Base, h.page(m.Page)+"/"+strconv.Itoa(m.Before+i+1)+".ndjson", f, m.Severities))
	}
	return out
}

func (h *Publishing) page(id string) string { return h.Base + "/publish/" + id }

func (h *Publishing) next(n publish.Next) string {
	switch {
	case n.Page == publish.Pending, n.Page == publish.Closed:
		return n.Page
	case n.Stub:
		return h.page(n.Page) + "/stub"
	}
	return h.page(n.Page)
}

// answer sends a manifest, or 304 to who has it already. The ETag is made from the
// body, whatever that depends on.
func (h *Publishing) answer(w http.ResponseWriter, r *http.Request, m publish.Manifest, err error) error {
	if err != nil {
		return err
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(h.manifest(m)); err != nil {
		return err
	}
	sum := sha256.Sum256(body.Bytes())
	tag := etag(hex.EncodeToString(sum[:16]), false)
	head := w.Header()
	head.Set("ETag", tag)
	head.Set("Cache-Control", h.caching("max-age=10"))
	if matches(r.Header.Values("If-None-Match"), tag, true) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	head.Set("Content-Type", "application/json")
	head.Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body.Bytes()) // only the connection can fail
	}
	return nil
}

// caching is for everybody's caches only if the pages are for everybody.
func (h *Publishing) caching(rest string) string {
	if h.Pages.Public() {
		return "public, " + rest
	}
	return "private, " + rest
}

// cadence writes a duration as ISO 8601 has it: P7D, PT1H30M.
func cadence(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d%day == 0:
		return "P" + strconv.FormatInt(int64(d/day), 10) + "D"
	case d < time.Second:
		return "PT" + strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "S"
	}
	s := strings.ToUpper(d.String())
	if strings.HasSuffix(s, "M0S") {
		s = strings.TrimSuffix(s, "0S")
	}
	if strings.HasSuffix(s, "H0M") {
		s = strings.TrimSuffix(s, "0M")
	}
	return "PT" + s
}
