// Package manual is what this server says of itself: to programs a
// CapabilityStatement and OperationDefinitions, to people a page. All three are
// made from the same tables (bulk.Operations, search.Parameters) and from how this
// server was configured, so none of them can say what the others do not.
//
// It never looks at a resource, and tells nothing of anybody.
package manual

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"tidemark/api/access"
	"tidemark/api/bulk"
	"tidemark/api/outcome"
	"tidemark/api/read"
	"tidemark/store/fhir"
)

// Facts are what is true of this server and not of every other.
type Facts struct {
	Base    string    // the public base, without a slash at its end
	Version string    // of this program
	Started time.Time // since when it says so

	FileMaxBytes     int64 // uncompressed
	FileMaxResources int64 // 0: no limit
	Expires          time.Duration
	RetryAfter       time.Duration
	MaxJobs          int // whose files are kept
	MaxWorking       int // that are worked on
	JobsPerClient    int // likewise; 0: no limit
	Quota            *access.Quota
	PollsPerMinute   int
	MaxBody          int64
	Deletions        time.Duration // how long they are known; 0: not told
	Published        []fhir.Type   // what $bulk-publish offers
	Presets          bulk.Presets  // of the operator

	Tokens   bool   // nobody reads without one
	TokenURL string // where they are had; "" if another server gives them

	// Signed is how long the URLs of files work, which a manifest gives, without a token;
	// 0: they need one where anything does.
	Signed time.Duration

	// Watermark is up to when an export that is started now would go. An error says
	// that none can be. Where tokens are needed it is not told.
	Watermark func() (fhir.Instant, error)
}

// Handlers answer with what a server says of itself.
type Handlers struct {
	facts      Facts
	statement  []byte
	page       *page
	Operations read.Own // the OperationDefinitions
}

// operations are those that the server has.
func (f Facts) operations() []bulk.Operation {
	if len(f.Published) == 0 {
		return bulk.Operations
	}
	return append(slices.Clip(bulk.Operations), bulk.Publish)
}

// New writes everything down that does not change while the server runs.
func New(f Facts) (*Handlers, error) {
	h := &Handlers{facts: f, Operations: read.Own{Type: "OperationDefinition", Bodies: map[string][]byte{}}}
	var err error
	if h.statement, err = encode(newStatement(f)); err != nil {
		return nil, err
	}
	for _, o := range f.operations() {
		if h.Operations.Bodies[o.ID], err = encode(newDefinition(o, f)); err != nil {
			return nil, err
		}
	}
	if h.page, err = newPage(f); err != nil {
		return nil, err
	}
	return h, nil
}

func encode(resource any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(resource)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// Statement serves the CapabilityStatement. Without no-store a widely used client
// stops silently after reading it.
func (h *Handlers) Statement(w http.ResponseWriter, r *http.Request) error {
	if err := bulk.Readable(r); err != nil {
		return err
	}
	switch mode := r.URL.Query().Get("mode"); mode {
	case "", "full", "normative": // FHIR R4 lets a server give the full one for each
	default:
		return bulk.Refuse(bulk.Invalid, outcome.NotSupported, "mode: %s is not supported: this server has no terminology, right is full or normative", outcome.Quote(mode))
	}
	w.Header().Set("Cache-Control", "no-store")
	read.Document(w, r, h.statement)
	return nil
}
