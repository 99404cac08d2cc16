package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dustin/go-humanize"

	"tidemark/cmd/tidemark/internal/manifest"
)

// A download as another server's manifest describes it, and what is said when a
// line of it is gone.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	asked := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Authorization")
		w.Header().Set("Tidemark-CRC32", "9c38f1af") // of the two lines that are not there
	}))
	defer server.Close()
	m := write("manifest.json", `{"transactionTime":"2026-01-03T08:15:03Z","requiresAccessToken":true,"request":"`+server.URL+`/fhir/$export",
		"output":[{"type":"Patient","url":"`+server.URL+`/fhir/1.ndjson","count":2}],"deleted":[],"error":[]}`)
	two := `{"resourceType":"Patient","id":"` + canary + `1"}` + "\n" + `{"resourceType":"Patient","id":"` + canary + `2"}` + "\n"
	data := write("1.ndjson", two)
	token := write("token", "secret\n")

	expect := func(code int, want string, args ...string) {
		t.Helper()
		got, exit := command(t, append([]string{"verify"}, args...)...)
		if exit != code || !strings.Contains(got, want) || strings.Contains(got, canary) || strings.Contains(got, "secret") {
			t.Errorf("verify %q: exit %d, want %d and %q in:\n%s", args, exit, code, want, got)
		}
	}
	expect(0, "1 file known by lines and type", m)
	expect(0, "1 file known by lines and type", m, dir)
	expect(exitFailed, "their CRC-32 is", "--ask", "--token-file", token, m)
	if asked != "Bearer secret" {
		t.Errorf("the server was asked with %q", asked)
	}
	expect(exitFailed, "its file is missing", m, t.TempDir())
	expect(exitFailed, "name the manifest before it", dir)
	expect(exitFailed, "no transactionTime", data)
	expect(exitFailed, "it is not valid JSON at byte 0", write("page.html", "<html>"))
	expect(exitFailed, "no transactionTime", write("outcome.json", `{"resourceType":"OperationOutcome","id":"`+canary+`"}`))
	expect(exitFailed, "one access token and nothing else", "--ask", "--token-file", data, m)
	expect(exitUsage, "--token-file", "--token-file", token, m)
	expect(exitUsage, "manifest")
	write("1.ndjson", two[:len(two)/2])
	expect(exitFailed, "1 line is missing: it has 1, the manifest says 2", m)
}

// verifyDownload downloads an export in either face, and lets verify find a
// flipped byte, a missing line and a doubled one in it.
func verifyDownload(t *testing.T, r *rig) {
	for _, face := range []struct{ method, path, body string }{
		{http.MethodGet, "/$export", ""},
		{http.MethodPost, "/$export-v4", `{"resourceType":"Parameters"}`},
	} {
		dir := t.TempDir()
		text := r.manifest(t, face.method, face.path, face.body)
		m, err := manifest.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		page := filepath.Join(dir, "manifest.json")
		if err := os.WriteFile(page, text, 0o600); err != nil {
			t.Fatal(err)
		}
		all := slices.Concat(m.Output, m.Deleted, m.Error)
		for _, f := range all {
			if err := os.WriteFile(filepath.Join(dir, f.Name()), r.body(t, f.URL), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want := fmt.Sprintf("%d files proved by CRC-32", len(all))
		if got, code := command(t, "verify", "--ask", page); code != 0 || !strings.Contains(got, want) || !strings.Contains(got, "no resource stands in output twice") {
			t.Errorf("%s: exit %d, want %q in:\n%s", face.path, code, want, got)
		}
		file := filepath.Join(dir, m.Output[0].Name())
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		first, rest, _ := bytes.Cut(whole, []byte("\n"))
		flipped := slices.Clone(whole)
		flipped[len(whole)/2] ^= 1
		for want, damaged := range map[string][]byte{
			fmt.Sprintf("one bit was flipped: byte %s,", humanize.Comma(int64(len(whole)/2+1))): flipped,
			"1 line is missing":                       rest,
			"line 2 has the resource of line 1 again": slices.Concat(first, []byte("\n"), whole),
		} {
			if err := os.WriteFile(file, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, code := command(t, "verify", "--ask", page); code != exitFailed || !strings.Contains(got, want) {
				t.Errorf("%s: exit %d, want %q in:\n%s", face.path, code, want, got)
			}
		}
	}
}

// manifest makes an export, and is its manifest as it came.
func (r *rig) manifest(t *testing.T, method, path, body string) []byte {
	t.Helper()
	answer := r.answer(t, method, r.client.Base+path, body)
	answer.Body.Close()
	status := answer.Header.Get("Content-Location")
	var text []byte
	r.until("the export is complete", func() bool {
		answer := r.answer(t, http.MethodGet, status, "")
		defer answer.Body.Close()
		var err error
		if text, err = io.ReadAll(answer.Body); err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode == http.StatusOK
	})
	return text
}

func (r *rig) body(t *testing.T, address string) []byte {
	t.Helper()
	answer := r.answer(t, http.MethodGet, address, "")
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("download: status %d, error %v", answer.StatusCode, err)
	}
	return text
}

func (r *rig) answer(t *testing.T, method, address, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Prefer", "respond-async")
	if strings.HasPrefix(address, r.client.Base) && !strings.HasSuffix(address, ".ndjson") {
		req.Header.Set("Accept", "application/fhir+json, application/json;q=0.9")
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/fhir+json")
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}
