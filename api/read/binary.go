package read

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"tidemark/api/access"
	"tidemark/api/audit"
	"tidemark/api/bulk"
	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Binary answers with the content of a Binary as it is at the watermark or, for who
// wants FHIR, with the resource (FHIR R4, "Serving Binary Resources using the
// RESTful API").
//
// X-Security-Context is not sent: the standard has it for who writes, and it would
// put a Patient's id where proxies log it. The resource says the same.
func (h *Handlers) Binary(w http.ResponseWriter, r *http.Request) error {
	key, err := keyOf(r, fhir.Binary)
	if err != nil {
		return err
	}
	audit.Note(r.Context()).Resource = key.String()
	if err := access.From(r.Context()).Sees(); err != nil {
		return err
	}
	body, release, err := h.hold(r.Context(), key)
	if err != nil {
		return err
	}
	defer release()
	b, err := readBinary(body)
	if err != nil {
		return err
	}
	resource, err := bulk.PrefersResource(r, b.media)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	out := bulk.Body{Tag: `"` + hex.EncodeToString(sum[:16]) + `"`, Vary: "Accept", Caching: "no-store", Head: http.Header{}}
	out.Head.Set("Content-Location", h.Base+"/"+key.String())
	if !b.updated.IsZero() {
		out.Head.Set("Last-Modified", b.updated.UTC().Format(http.TimeFormat))
	}
	if resource {
		out.Tag = `"` + hex.EncodeToString(sum[:16]) + `-fhir"`
		out.Type, out.Size = "application/fhir+json", int64(len(body))
		out.Write = func(off, n int64) error { _, err := w.Write(body[off : off+n]); return err }
		return out.Serve(w, r)
	}
	c, err := b.content()
	if err != nil {
		return err
	}
	// It may be a page with scripts that somebody has sent to the hospital: no
	// browser is to take it for one of ours.
	out.Head.Set("Content-Disposition", "attachment")
	out.Head.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	out.Type, out.Size = b.contentType, c.size
	out.Write = func(off, n int64) error { return c.write(w, off, n) }
	return out.Serve(w, r)
}

// All Binaries that are being sent lie in memory: in so many bytes, a share of what
// OPERATIONS.md plans for the process. Whoever comes then waits, for a while. One
// larger than that passes alone.
const (
	maxHeld  = 64 << 20
	heldWait = 10 * time.Second
)

// ErrBusy says that there was no memory for a Binary for a while.
var ErrBusy = errors.New("no memory for another Binary")

// hold reads a Binary that the client may read. release is to be called once the
// body is let go.
func (h *Handlers) hold(ctx context.Context, key fhir.Key) (body []byte, release func(), err error) {
	s, err := h.view(ctx)
	if err != nil {
		return nil, nil, err
	}
	held, err := h.reserve(ctx, s, key)
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	if body, err = s.Resource(key); err == nil && !s.lets(fhir.Binary, nil)(body) {
		err = errHidden()
	}
	if err := errors.Join(err, s.Close()); err != nil {
		h.binaries.Release(held)
		return nil, nil, err
	}
	return s.cut(body, fhir.Binary), func() { h.binaries.Release(held) }, nil
}

// reserve waits for the memory that a Binary takes which the client may read.
func (h *Handlers) reserve(ctx context.Context, s *view, key fhir.Key) (held int64, err error) {
	open, err := s.opens(ctx, key)
	if err != nil {
		return 0, err
	}
	size, err := sizeOf(s, key)
	if err != nil {
		return 0, err
	}
	if !open || size == 0 { // whoever may not read one does not learn that it is there
		return 0, errHidden()
	}
	held = min(2*size, maxHeld) // its block is read, then inflated
	waiting, cancel := context.WithTimeout(ctx, heldWait)
	defer cancel()
	switch err := h.binaries.Acquire(waiting, held); {
	case err == nil:
		return held, nil
	case ctx.Err() != nil:
		return 0, ctx.Err() // nobody is left to hear of it
	}
	return 0, ErrBusy
}

// errHidden says of a Binary that it is not here for the client, and not why.
func errHidden() error {
	return bulk.Refuse(bulk.Missing, outcome.NotFound, "there is no such Binary, or no more, or nothing refers to it that may be read")
}

// sizeOf is the length of a resource, bytes; 0 if there is none.
func sizeOf(s export.Snapshot, key fhir.Key) (n int64, err error) {
	of := s.Choosing(store.Choice{Keys: map[fhir.Key]fhir.Instant{key: fhir.None}})
	ext, err := of.Extents(store.Section{Kind: store.Live, Type: key.Type}, fhir.None, s.Watermark())
	for _, x := range ext {
		n += x.Bytes
	}
	return n, err
}

// A binary is what matters of a Binary.
type binary struct {
	contentType string // such as may stand in a header
	media       string // of it, in lower case, without parameters
	updated     time.Time
	data        []byte // base64 as it stands in JSON, with its quotes; nil if there is none
}

// readBinary finds it in a resource that the store has: nothing of it is copied but
// what is short.
func readBinary(body []byte) (b binary, err error) {
	if b.read(body) != nil { // what stands there is not told
		return b, fmt.Errorf("read a Binary: %w: it is not JSON", store.ErrCorrupt)
	}
	return b, nil
}

func (b *binary) read(body []byte) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	said := ""
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() == '"' {
		token, err := dec.ReadToken()
		if err != nil {
			return err
		}
		name := token.String()
		value, err := dec.ReadValue()
		if err != nil {
			return err
		}
		end := dec.InputOffset()
		switch name {
		case "contentType":
			_ = json.Unmarshal(value, &said) // what is no string is none
		case "meta":
			var m struct{ LastUpdated time.Time }
			if json.Unmarshal(value, &m) == nil {
				b.updated = m.LastUpdated
			}
		case "data":
			b.data = body[end-int64(len(value)) : end]
		}
	}
	b.contentType, b.media = sendable(said)
	_, err := dec.ReadToken()
	return err
}

// maxType is longer than any media type that there is. Bytes.
const maxType = 255

// sendable is a content type as it may stand in a header, and its media type. The
// source may have written anything there: what is none is any bytes.
func sendable(contentType string) (header, media string) {
	const unknown = "application/octet-stream"
	media, _, err := mime.ParseMediaType(contentType)
	major, minor, _ := strings.Cut(media, "/")
	printable := strings.IndexFunc(contentType, func(c rune) bool { return c < ' ' || c > '~' }) < 0
	if err != nil || major == "" || minor == "" || !printable || len(contentType) > maxType {
		return unknown, unknown
	}
	return contentType, media
}

// A content is base64 that was proved to be, and is decoded as it is sent.
type content struct {
	text []byte
	size int64 // decoded, bytes
}

// piece is how much base64 is decoded at once: a multiple of four. Bytes.
const piece = 64 << 10

// content is what the data says.
func (b *binary) content() (c content, err error) {
	if len(b.data) == 0 || b.data[0] != '"' {
		return c, unfit("has no content")
	}
	c.text = b.data[1 : len(b.data)-1]
	if bytes.IndexByte(c.text, '\\') >= 0 { // a slash may be written \/, and lines may be broken
		if c.text, err = jsontext.AppendUnquote(nil, b.data); err != nil {
			return c, unfit("has a content that is not base64")
		}
	}
	if bytes.ContainsAny(c.text, " \t\r\n") { // FHIR lets it stand between the characters
		c.text = solid(c.text)
	}
	switch {
	case len(c.text) == 0:
		return c, unfit("has no content")
	case len(c.text)%4 != 0:
		return c, unfit("has a content that is not base64")
	}
	decoded := make([]byte, base64.StdEncoding.DecodedLen(piece))
	for text := c.text; len(text) > 0; {
		n := min(piece, len(text))
		got, err := base64.StdEncoding.Decode(decoded, text[:n])
		text = text[n:]
		if err != nil || got < n/4*3 && len(text) > 0 { // padding ends it
			return c, unfit("has a content that is not base64")
		}
		c.size += int64(got)
	}
	return c, nil
}

// solid takes white space out of a text, in its place.
func solid(text []byte) []byte {
	n := 0
	for _, c := range text {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			text[n] = c
			n++
		}
	}
	return text[:n]
}

// unfit says what the source has sent, and how to see it.
func unfit(what string) error {
	return bulk.Refuse(bulk.Unfit, outcome.Value, "this Binary, as its source sent it, %s: Accept: application/fhir+json shows the resource", what)
}

// write sends bytes [off, off+n).
func (c content) write(w io.Writer, off, n int64) error {
	decoded := make([]byte, base64.StdEncoding.DecodedLen(piece))
	text, skip := c.text[off/3*4:], off%3
	for n > 0 {
		k := min(piece, len(text))
		got, err := base64.StdEncoding.Decode(decoded, text[:k])
		if err != nil {
			return fmt.Errorf("send a Binary: %w", err) // it was proved before
		}
		text = text[k:]
		out := decoded[skip:got]
		out, skip = out[:min(n, int64(len(out)))], 0
		if _, err := w.Write(out); err != nil {
			return err
		}
		n -= int64(len(out))
	}
	return nil
}
