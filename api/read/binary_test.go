package read

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-chi/chi/v5"

	"tidemark/api/access"
	"tidemark/api/apitest"
	"tidemark/api/bulk"
	"tidemark/store/fhir"
)

// TestContent: whatever range is asked for, the bytes are those of the whole,
// however the base64 is written.
func TestContent(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{1, 2, 3, 4, 5, 76, piece/4*3 - 1, piece / 4 * 3, piece/4*3 + 1, 2*piece + 7} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(r.Uint32())
		}
		plain := base64.StdEncoding.EncodeToString(want)
		var lines strings.Builder
		for text := plain; text != ""; {
			n := min(len(text), 76)
			lines.WriteString(text[:n] + "\\r\\n ")
			text = text[n:]
		}
		for how, text := range map[string]string{"plain": plain, "escaped": strings.ReplaceAll(plain, "/", `\/`), "in lines": lines.String()} {
			b, err := readBinary(fmt.Appendf(nil, `{"resourceType":"Binary","data":"%s","id":"b"}`, text))
			if err != nil {
				t.Fatal(err)
			}
			c, err := b.content()
			if err != nil || c.size != int64(size) {
				t.Fatalf("%d bytes, %s: %d, %v", size, how, c.size, err)
			}
			for range 50 {
				off := r.Int64N(c.size)
				n := 1 + r.Int64N(c.size-off)
				var got bytes.Buffer
				if err := c.write(&got, off, n); err != nil || !bytes.Equal(got.Bytes(), want[off:off+n]) {
					t.Fatalf("%d bytes, %s: %d from %d are others (%v)", size, how, n, off, err)
				}
			}
		}
	}
}

// TestContentBroken: what is no base64 is said to be none, before any of it is
// sent, and never repeated.
func TestContentBroken(t *testing.T) {
	long := strings.Repeat("AAAA", piece/4-1)
	for _, data := range []string{
		`"SECRET"`, `"SECRET_-"`, `"SECR ET!!"`, `"U0VDUkVU="`, `"U0VDU==="`, `"` + long + `QQ==SECR"`, `"QQ==SECR"`, `"` + long + `AAAASEC!"`, `"SEC\u0000"`,
		`12345678`, `null`, `{"SECRET":1}`, `["SECR"]`, `""`, `" \n"`,
	} {
		b, err := readBinary(fmt.Appendf(nil, `{"resourceType":"Binary","id":"b","contentType":"text/plain","data":%s}`, data))
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.content()
		e, is := errors.AsType[*bulk.Error](err)
		if !is || e.Kind != bulk.Unfit || strings.Contains(e.Issues[0].Text, "SEC") {
			t.Errorf("%.40s: %v", data, err)
		}
	}
}

// FuzzSendable: whatever a source wrote as the type, what becomes a header is one
// media type and nothing else.
func FuzzSendable(f *testing.F) {
	for _, s := range []string{
		"", "application/pdf", "TEXT/Plain; charset=\"utf-8\"", "text/html\r\nSet-Cookie: a=b", "text/html;a=\"b\r\nc\"", "pdf", "/", "a/", "text/plain;",
		"text/é", "image/png\x00", "text/plain, text/html", strings.Repeat("a", 300) + "/b", "a/b; c=\"\x7f\"",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, said string) {
		header, media := sendable(said)
		if header != said && header != "application/octet-stream" {
			t.Errorf("%q became %q", said, header)
		}
		for _, c := range []byte(header) {
			if c < ' ' || c > '~' {
				t.Errorf("%q holds %q", header, c)
			}
		}
		parsed, _, err := mime.ParseMediaType(header)
		if err != nil || parsed != media || strings.Count(media, "/") != 1 || len(header) > maxType {
			t.Errorf("%q is %q, %v", header, parsed, err)
		}
	})
}

// TestBinaryBusy: who finds no memory waits, and is told so in the end; who goes
// away waits no more, and leaves nothing reserved.
func TestBinaryBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := apitest.New(1000)
		binary, _ := fhir.ParseKey("Binary/b")
		document, _ := fhir.ParseKey("DocumentReference/d")
		db.Put(binary, 1, apitest.Links{More: `,"contentType":"text/plain","data":"eA=="`})
		db.Put(document, 1, apitest.Links{Refers: []fhir.Key{binary}})
		h := New(db, "http://tidemark.test/fhir", nil)
		ask := func(ctx context.Context) (*httptest.ResponseRecorder, error) {
			route := chi.NewRouteContext()
			route.URLParams.Add("id", "b")
			w := httptest.NewRecorder()
			err := h.Binary(w, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(context.WithValue(access.With(ctx, access.Anybody()), chi.RouteCtxKey, route)))
			return w, err
		}
		if w, err := ask(t.Context()); err != nil || w.Body.String() != "x" {
			t.Fatalf("%v: %s", err, w.Body)
		}
		if !h.binaries.TryAcquire(maxHeld) {
			t.Fatal("something is still reserved")
		}
		began := time.Now()
		if _, err := ask(t.Context()); !errors.Is(err, ErrBusy) || time.Since(began) != heldWait {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := ask(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("a client that has gone: %v", err)
		}
		time.AfterFunc(heldWait/2, func() { h.binaries.Release(maxHeld) })
		if w, err := ask(t.Context()); err != nil || w.Body.String() != "x" {
			t.Errorf("%v: %s", err, w.Body)
		}
		if !h.binaries.TryAcquire(maxHeld) {
			t.Error("something is still reserved in the end")
		}
	})
}

// FuzzBinary: whatever the resource is, what is said to be its content can be sent,
// whole and in parts.
func FuzzBinary(f *testing.F) {
	for _, s := range []string{
		`{"resourceType":"Binary","id":"b","contentType":"a/b","data":"eA=="}`, `{"data":"e\/A=","data":"eA= ="}`, `{"meta":{"lastUpdated":"2026-01-02T10:00:00.000Z"},"data":"\u0041AAA"}`,
		`{"data":"====","contentType":7}`, `{"data":"AAAA\r\n BBBB"}`, `{`, `[]`, `{"data":`,
	} {
		f.Add([]byte(s), uint16(1), uint16(1))
	}
	f.Fuzz(func(t *testing.T, body []byte, off, n uint16) {
		b, err := readBinary(body)
		if err != nil {
			return
		}
		c, err := b.content()
		if err != nil {
			return
		}
		var whole, part bytes.Buffer
		if err := c.write(&whole, 0, c.size); err != nil || int64(whole.Len()) != c.size || c.size == 0 {
			t.Fatalf("%d bytes of %d, %v", whole.Len(), c.size, err)
		}
		from := int64(off) % c.size
		to := from + int64(n)%(c.size-from)
		if err := c.write(&part, from, to-from); err != nil || !bytes.Equal(part.Bytes(), whole.Bytes()[from:to]) {
			t.Fatalf("%d to %d: %v", from, to, err)
		}
	})
}
