package bulk

import (
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"

	"tidemark/api/export"
	"tidemark/api/outcome"
)

// File serves an output file: GET or HEAD, as gzip straight from the disk or
// as NDJSON, whole or in part. w must reach the connection
// unwrapped or offer io.ReaderFrom itself, else every byte passes through us.
func (h *Handlers) File(w http.ResponseWriter, r *http.Request) error {
	job := chi.URLParam(r, "job")
	n, err := strconv.Atoi(chi.URLParam(r, "file"))
	if err != nil {
		return err // the pattern lets nothing else through
	}
	noteFile(r.Context(), job, n)
	if err := h.mayRead(r, job, n); err != nil {
		return err
	}
	d, err := h.Jobs.Open(r.Context(), job, n)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // was opened for reading only
	noteSent(r.Context(), d)
	// A cache of the client's own may keep it; one that recompresses on the way
	// would make the ETag and every range a lie.
	return send(w, r, d, job+"-"+strconv.Itoa(n), "private, no-transform")
}

// send answers with a file that has a name of its own, for caches to keep as they
// are told.
func send(w http.ResponseWriter, r *http.Request, d *export.Download, name, caching string) error {
	gzip := gzipWanted(r.Header)
	b := Body{
		Tag: etag(name, gzip), Vary: "Accept-Encoding", Caching: caching, Size: d.Size(gzip), Type: ndjson, Head: http.Header{},
		Write: func(off, n int64) error { return d.Write(w, gzip, off, n) },
	}
	// Of the NDJSON, whatever the coding and the part: what a client holds in the
	// end can be proved by it.
	b.Head.Set("Tidemark-CRC32", hex32(d.CRC32()))
	if gzip {
		b.Head.Set("Content-Encoding", "gzip")
	}
	return b.Serve(w, r)
}

// A Body is bytes that can be had whole or in part, and are the same whenever the
// same ETag stands over them.
type Body struct {
	Tag     string // strong, with its quotes
	Vary    string
	Caching string
	Size    int64
	Type    string
	Head    http.Header              // what else goes with the bytes
	Write   func(off, n int64) error // bytes [off, off+n)
}

// Serve answers a GET or HEAD: with the bytes or the range of them that is asked
// for, with 304 for who has them, or with an error that says what is wrong.
func (b Body) Serve(w http.ResponseWriter, r *http.Request) error {
	part, err := choose(r, b.Tag, b.Size)
	if err != nil {
		if part.status == http.StatusRequestedRangeNotSatisfiable {
			w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(b.Size, 10))
		}
		return err
	}
	head := w.Header()
	head.Set("ETag", b.Tag)
	head.Add("Vary", b.Vary) // beside Origin
	head.Set("Cache-Control", b.Caching)
	if part.status == http.StatusNotModified {
		w.WriteHeader(part.status)
		return nil
	}
	maps.Copy(head, b.Head)
	head.Set("Accept-Ranges", "bytes")
	head.Set("Content-Type", b.Type)
	head.Set("Content-Length", strconv.FormatInt(part.n, 10))
	if part.status == http.StatusPartialContent {
		head.Set("Content-Range", part.contentRange(b.Size))
	}
	w.WriteHeader(part.status)
	if r.Method == http.MethodHead {
		return nil
	}
	return b.Write(part.off, part.n)
}

// ndjson is what output files are.
const ndjson = "application/fhir+ndjson"

// hex32 is a checksum as eight hexadecimal digits.
func hex32(crc uint32) string { return fmt.Sprintf("%08x", crc) }

// etag is strong: the bytes of a file never change. Both codings are
// representations of their own, so each has its own.
func etag(name string, gzip bool) string {
	if gzip {
		return `"` + name + `-gzip"`
	}
	return `"` + name + `"`
}

// A part is what of a file is sent, and under which status.
type part struct {
	status int
	off, n int64
}

func (p part) contentRange(size int64) string {
	return "bytes " + strconv.FormatInt(p.off, 10) + "-" + strconv.FormatInt(p.off+p.n-1, 10) + "/" + strconv.FormatInt(size, 10)
}

// choose goes through the conditions in the order of RFC 9110 section 13.2.2.
func choose(r *http.Request, tag string, size int64) (part, error) {
	whole := part{http.StatusOK, 0, size}
	if m := r.Header.Values("If-Match"); len(m) > 0 && !matches(m, tag, false) {
		return part{status: http.StatusPreconditionFailed}, refuse(Precondition, outcome.Invalid, "If-Match names another file or another form of it than %s", tag)
	}
	if m := r.Header.Values("If-None-Match"); len(m) > 0 && matches(m, tag, true) {
		return part{status: http.StatusNotModified}, nil
	}
	ranges := r.Header.Values("Range")
	if r.Method != http.MethodGet || len(ranges) != 1 {
		return whole, nil
	}
	// A date in If-Range never matches: our files have none.
	if ifRange := r.Header.Get("If-Range"); ifRange != "" && strings.TrimSpace(ifRange) != tag {
		return whole, nil
	}
	return span(ranges[0], size)
}

// matches looks for tag in If-Match (strong comparison) or If-None-Match (weak).
func matches(lines []string, tag string, weak bool) bool {
	for _, line := range lines {
		for _, t := range cut(line, ',') {
			t = strings.TrimSpace(t)
			if weak {
				t = strings.TrimPrefix(t, "W/")
			}
			if t == tag || t == "*" {
				return true
			}
		}
	}
	return false
}

// span reads a Range header. What is no single range of bytes is ignored, as
// RFC 9110 section 14.2 allows: the whole file is a right answer to it, and
// clients that want several ranges of one export are not known.
func span(header string, size int64) (part, error) {
	whole := part{http.StatusOK, 0, size}
	unit, set, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(strings.TrimSpace(unit), "bytes") || strings.Contains(set, ",") {
		return whole, nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(set), "-")
	if !ok {
		return whole, nil
	}
	from, fromOK := position(first)
	to, toOK := position(last)
	switch {
	case first == "" && toOK: // the last so many bytes
		if to == 0 {
			return beyond(header, size)
		}
		n := min(to, size)
		return part{http.StatusPartialContent, size - n, n}, nil
	case !fromOK || last != "" && (!toOK || to < from):
		return whole, nil
	case from >= size:
		return beyond(header, size)
	case last == "" || to >= size:
		to = size - 1
	}
	return part{http.StatusPartialContent, from, to - from + 1}, nil
}

func beyond(header string, size int64) (part, error) {
	return part{status: http.StatusRequestedRangeNotSatisfiable},
		refuse(Range, outcome.Invalid, "Range: %s lies outside of the file's %d bytes", outcome.Quote(header), size)
}

// position reads digits and nothing else; more of them than any file has bytes
// is the largest number.
func position(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1, true
	}
	return n, true
}
