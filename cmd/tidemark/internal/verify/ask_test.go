package verify

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/cmd/tidemark/internal/manifest"
)

// transport answers in this process and keeps who sent which token where.
type transport struct {
	http.Handler
	tokens map[string]string // by host
}

func (h transport) RoundTrip(r *http.Request) (*http.Response, error) {
	h.tokens[r.URL.Host] = r.Header.Get("Authorization")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result(), nil
}

// told is a server that tells the checksums of an export's files.
func told(x export) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, e := range x {
			if r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, "/"+e.name) {
				w.Header().Set("Tidemark-CRC32", fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(e.text()))))
				return
			}
		}
		http.NotFound(w, r)
	})
}

func TestAsk(t *testing.T) {
	x, dir := example(), t.TempDir()
	for name, text := range x.files() {
		if name == "2.ndjson" {
			text = strings.Replace(text, "o1o1", "o1o2", 1) // lines and bytes are as many
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := report(t, pagesOf(t, x, "sizes"), Options{Dir: dir}); !strings.Contains(got, "\n--ask asks ") || !strings.HasSuffix(got, "\n0 faults\n") {
		t.Errorf("without checksums it says\n%s", got)
	}
	pages := pagesOf(t, x, "sizes")
	ask, err := Asker(pages, "", transport{told(x), map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	got := report(t, pages, Options{Dir: dir, Ask: ask})
	for _, want := range []string{"FAULT output 2, Observation, 2.ndjson", "4 files proved by CRC-32", "5 checksums came from the server now", "\n1 fault\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
}

func TestAskInVain(t *testing.T) {
	for name, handler := range map[string]http.Handler{
		"answered 404":        http.NotFoundHandler(),
		"tells no checksum":   http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		"answered 302":        http.RedirectHandler("https://elsewhere.example.org/", http.StatusFound),
		"8 hexadecimal digit": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Tidemark-CRC32", "0") }),
	} {
		pages := pagesOf(t, example(), "counts")
		ask, err := Asker(pages, "", transport{handler, map[string]string{}})
		if err != nil {
			t.Fatal(err)
		}
		got := report(t, pages, Options{Dir: t.TempDir(), Ask: ask})
		if !strings.Contains(got, "FAULT 5 checksums asked for in vain\n") || !strings.Contains(got, name) || strings.Contains(got, "secret") {
			t.Errorf("there is no %q in, or a secret\n%s", name, got)
		}
	}
}

func TestTokenGoesToOnePlace(t *testing.T) {
	const home = "https://fhir.example.org"
	for _, test := range []struct {
		name, request string
		urls          []string
		demanded      bool
		want          string // error, "" for none
		sent          bool
	}{
		{"where the export was asked for", home + "/fhir/$export", []string{home + "/a"}, true, "", true},
		{"version 4 does not say where", "", []string{home + "/a", home + "/b"}, true, "", true},
		{"not demanded", home + "/fhir/$export", []string{home + "/a"}, false, "", false},
		{"elsewhere", home + "/fhir/$export", []string{"https://evil.example.org/a"}, true, "a token goes to one place only", false},
		{"another port", home + "/fhir/$export", []string{home + ":444/a"}, true, "a token goes to one place only", false},
		{"in two places", "", []string{home + "/a", "https://evil.example.org/b"}, true, "a token goes to one place only", false},
		{"nowhere", "", []string{"a"}, true, "a token goes to one place only", false},
		{"plain HTTP", "", []string{"http://fhir.example.org/a"}, true, "plain HTTP", false},
		{"plain HTTP on this machine", "", []string{"http://127.0.0.1:8080/a"}, true, "", true},
	} {
		m := map[string]any{"transactionTime": "2026-01-03T08:15:03Z", "request": test.request, "requiresAccessToken": test.demanded}
		var list []any
		for _, u := range test.urls {
			list = append(list, map[string]string{"type": "Patient", "url": u})
		}
		m["output"] = list
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		page, err := manifest.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		way := transport{told(nil), map[string]string{}}
		ask, err := Asker([]*manifest.Manifest{page}, "canary-token", way)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", test.name, err, test.want)
		}
		if err != nil {
			continue
		}
		for _, f := range page.Output {
			_, _ = ask(t.Context(), f) // the answer is not what counts
		}
		if _, err := ask(t.Context(), manifest.File{URL: "https://evil.example.org/"}); err == nil {
			t.Errorf("%s: an answer of a server that tells nothing", test.name)
		}
		for host, token := range way.tokens {
			want := ""
			if test.sent && host != "evil.example.org" {
				want = "Bearer canary-token"
			}
			if token != want {
				t.Errorf("%s: %s got %q, want %q", test.name, host, token, want)
			}
		}
	}
}
