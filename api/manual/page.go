package manual

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the page and its style
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/api/bulk"
	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store/fhir"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

// A page is the one for people who write clients.
type page struct {
	template *template.Template
	// csp allows nothing but the page's own style, told by its hash: so no script
	// runs and nothing is fetched, whatever a mistake in the template lets in.
	csp string
}

func newPage(f Facts) (*page, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"at": at, "bytes": inBytes, "words": inWords, "code": code, "join": strings.Join, "levels": levels,
		"curl": func(path string) string { return f.curl(path, "") },
		"post": f.curl,
	}).Parse(pageHTML)
	if err != nil {
		return nil, fmt.Errorf("parse the page: %w", err)
	}
	sum := sha256.Sum256([]byte(pageCSS))
	return &page{t, "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}, nil
}

// Page answers at the base, where a browser begins. A program that wants FHIR
// there would have to search the whole server, which it cannot; it is told so,
// and where to go.
func (h *Handlers) Page(w http.ResponseWriter, r *http.Request) error {
	w.Header().Add("Vary", "Accept") // beside Origin
	if r.URL.RawQuery != "" || !bulk.PrefersHTML(r.Header) {
		return bulk.Refuse(bulk.Missing, outcome.NotSupported, "%s is no resource, and the whole server cannot be searched: GET %s/metadata for what it can do, %s/$export for an export; a browser finds its documentation here (Accept: text/html)",
			h.facts.Base, h.facts.Base, h.facts.Base)
	}
	var b bytes.Buffer
	if err := h.page.template.Execute(&b, newView(h.facts)); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	head := w.Header()
	head.Set("Content-Type", "text/html; charset=utf-8")
	head.Set("Content-Security-Policy", h.page.csp)
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Cache-Control", "no-store") // it tells the present
	head.Set("Content-Length", strconv.Itoa(b.Len()))
	_, _ = w.Write(b.Bytes()) // only the connection can fail
	return nil
}

// A view is what the page shows.
type view struct {
	Facts
	Style      template.CSS
	Operations []bulk.Operation
	Parameters []bulk.Parameter
	Lists      []bulk.Preset
	Referred   []string // types
	SystemOnly []string // types
	Absent     []string // operations and parameters
	Limits     []limit
	Errors     []status
	Body       string // of a POST

	Ready bool   // exports can be started
	Upto  string // an instant: the watermark if Ready
	Marks marks
}

// marks are the days of the picture.
type marks struct{ First, Second, Third string }

// A limit is a number that the server's operator has set.
type limit struct{ What, Value, Key string }

// A status is one of HTTP's.
type status struct {
	Status int
	Means  string
}

func newView(f Facts) view {
	v := view{
		Facts:      f,
		Style:      template.CSS(pageCSS), //nolint:gosec // a constant of ours
		Operations: f.operations(),
		Parameters: parameters(),
		Lists:      f.Presets.All(),
		Referred:   types(fhir.Referred),
		SystemOnly: types(func(t fhir.Type) bool { return !export.Patient.Holds(t) }),
		Absent:     absent(f),
		Limits:     limits(f),
		Errors:     statuses,
		Body:       `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/ID"}},{"name":"_type","valueString":"Patient,Condition"}]}`,
		Upto:       fhir.Instant(f.Started.UnixMilli()).String(),
	}
	if f.Tokens { // whoever has none does not learn how far the server is
		const example = fhir.Instant(1_767_225_600_000)
		v.Upto = example.String()
		return v
	}
	if upto, err := f.Watermark(); err == nil {
		const day = fhir.Instant(24 * time.Hour / time.Millisecond)
		v.Ready, v.Upto = true, upto.String()
		v.Marks = marks{date(upto - 2*day), date(upto - day), date(upto)}
	}
	return v
}

func date(i fhir.Instant) string { return i.String()[:len(time.DateOnly)] }

func types(are func(fhir.Type) bool) (all []string) {
	for _, t := range fhir.AllTypes() {
		if are(t) {
			all = append(all, t.String())
		}
	}
	return all
}

// parameters are those of all operations, each once.
func parameters() (all []bulk.Parameter) {
	for _, o := range bulk.Operations {
		for _, p := range o.Parameters {
			if !slices.ContainsFunc(all, func(q bulk.Parameter) bool { return q.Name == p.Name }) {
				all = append(all, p)
			}
		}
	}
	return all
}

// at is where a parameter's example is sent: to the first operation that has it.
func at(name string) string {
	for _, o := range bulk.Operations {
		for _, p := range o.Parameters {
			if p.Name == name {
				return strings.Replace(o.Path(o.Names[0]), "[id]", "ID", 1)
			}
		}
	}
	return ""
}

// absent lists what the guides have and this server has not.
func absent(f Facts) []string {
	all := []string{"$export-v4", "$bulk-publish", "$bulk-submit", "$bulk-submit-status"}
	for _, o := range f.operations() {
		for _, name := range o.Names {
			all = slices.DeleteFunc(all, func(s string) bool { return s == "$"+name })
		}
	}
	for _, p := range parameters() {
		if p.Max == "0" {
			all = append(all, p.Name)
		}
	}
	return all
}

// orNone is a limit in words; 0 is none.
func orNone(n int64, text string) string {
	if n <= 0 {
		return "no limit"
	}
	return text
}

func limits(f Facts) []limit {
	resources := orNone(f.FileMaxResources, strconv.FormatInt(f.FileMaxResources, 10))
	all := []limit{
		{"Bytes of a file, uncompressed", inBytes(f.FileMaxBytes), "export.file.max_bytes"},
		{"Resources in a file", resources, "export.file.max_resources"},
		{"Files stay for", inWords(f.Expires), "export.expires"},
		{"Wait after 503, at least", inWords(f.RetryAfter), "export.retry_after"},
		{"Jobs that are worked on at the same time", strconv.Itoa(f.MaxWorking), "limits.jobs"},
		{"Of these, of one client", orNone(int64(f.JobsPerClient), strconv.Itoa(f.JobsPerClient)), "limits.jobs_per_client"},
		{"Jobs whose files are kept", strconv.Itoa(f.MaxJobs), "limits.jobs_kept"},
		{"Jobs that one client starts in a day of UTC", orNone(int64(f.Quota.Jobs), strconv.Itoa(f.Quota.Jobs)), "limits.jobs_per_client_day"},
		{"Bytes of files that are sent to one client in a day of UTC", orNone(f.Quota.Bytes, inBytes(f.Quota.Bytes)), "limits.bytes_per_client_day"},
		{"Status requests a minute, for each job", strconv.Itoa(f.PollsPerMinute), "limits.polls_per_minute"},
		{"Bytes of a request's body", inBytes(f.MaxBody), "limits.body"},
	}
	if f.Deletions > 0 {
		all = append(all, limit{"Deletions are known for", inWords(f.Deletions), "retention.deleted"})
	}
	return all
}

var statuses = []status{
	{http.StatusBadRequest, "Headers, parameters or the body are wrong; all faults are named at once."},
	{http.StatusUnauthorized, "An access token is needed, or the one that was sent does not count any more: `WWW-Authenticate` says which."},
	{http.StatusForbidden, "The client, or the scopes of its token, do not permit what is asked for."},
	{http.StatusNotFound, "There is no such job, file, Group, Patient or Binary, or no more."},
	{http.StatusMethodNotAllowed, "Another method is right: `Allow` lists them."},
	{http.StatusNotAcceptable, "`Accept` or `_format` asks for something else than FHIR R4 as JSON, or `fhirVersion` for another release."},
	{http.StatusGone, "The job ended early, because something that it held was erased, or is not permitted to its client any more."},
	{http.StatusPreconditionFailed, "`If-Match` names another file."},
	{http.StatusRequestEntityTooLarge, "The body is too long."},
	{http.StatusUnsupportedMediaType, "The body is no `application/fhir+json`, is compressed, or `fhirVersion` names another release."},
	{http.StatusRequestedRangeNotSatisfiable, "`Range` begins behind the end of the file."},
	{http.StatusMisdirectedRequest, "`Host` is no name of this server."},
	{http.StatusUnprocessableEntity, "The job cannot be done as it was asked for, such as an export of a Group that lists no members (`actual` is false), or a Binary has no content that can be sent."},
	{http.StatusTooManyRequests, "Too many jobs, or too many status requests: come again after `Retry-After`."},
	{http.StatusInternalServerError, "A fault of the server's; its log tells why."},
	{http.StatusServiceUnavailable, "Not now: come again after `Retry-After`."},
}

// Bearer is what a curl needs that asks for data; empty if no token is asked for.
func (f Facts) Bearer() string {
	if !f.Tokens {
		return ""
	}
	return `-H "Authorization: Bearer $TOKEN" `
}

// FileBearer is what it needs for a file.
func (f Facts) FileBearer() string {
	if f.Signed > 0 {
		return ""
	}
	return f.Bearer()
}

// curl is a kick-off that can be copied into a shell.
func (f Facts) curl(path, body string) string {
	command := "curl -sD - -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' \\\n  "
	if token := f.Bearer(); token != "" {
		command += token + "\\\n  "
	}
	if body != "" {
		command += "-H 'Content-Type: application/fhir+json' \\\n  -d '" + body + "' \\\n  "
	}
	return command + "'" + f.Base + path + "'"
}

// code marks up what stands between backticks.
func code(text string) template.HTML {
	var b strings.Builder
	for i, part := range strings.Split(text, "`") {
		if i%2 == 1 {
			b.WriteString("<code>" + template.HTMLEscapeString(part) + "</code>")
			continue
		}
		b.WriteString(template.HTMLEscapeString(part))
	}
	return template.HTML(b.String()) //nolint:gosec // escaped above
}

func levels(of []export.Level) string {
	names := map[export.Level]string{export.System: "system", export.Patient: "Patient", export.Group: "Group"}
	var all []string
	for _, l := range of {
		all = append(all, names[l])
	}
	if n := len(all); n > 1 {
		all = append(all[:n-2], all[n-2]+" and "+all[n-1])
	}
	return strings.Join(all, ", ")
}

// inBytes writes a size as the configuration does.
func inBytes(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size && n%u.size == 0 {
			return fmt.Sprintf("%d %s", n/u.size, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// inWords writes a time as people say it, in the largest unit that leaves nothing
// over.
func inWords(d time.Duration) string {
	for _, u := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := d / u.size; n > 0 && d%u.size == 0 {
			if n == 1 {
				return "1 " + u.name
			}
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return d.String()
}
