package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
