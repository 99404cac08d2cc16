package api_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tidemark/api"
	"tidemark/api/clients"
	"tidemark/api/smart"
)

// TestSignedURLs: with capability.enabled the files of a job need no token, but the URL
// that its manifest gave, of that file, for a while, as long as its client may (decisions.md 6).
func TestSignedURLs(t *testing.T) {
	o := newOffice(t, api.Options{Auth: api.Auth{SignedURLs: time.Hour}})
	status := o.start("/fhir/Patient/$export", o.token("whole", ""))
	manifest := func(who string) (files []string) {
		_, body := o.ask(http.MethodGet, status, o.token(who, ""))
		var m struct {
			RequiresAccessToken *bool
			Output              []struct{ URL string }
		}
		if err := json.Unmarshal([]byte(body), &m); err != nil || m.RequiresAccessToken == nil || *m.RequiresAccessToken {
			t.Fatalf("%v: %s", err, body)
		}
		for _, f := range m.Output {
			files = append(files, strings.TrimPrefix(f.URL, "http://tidemark.test"))
		}
		return files
	}
	files := manifest("whole")
	if len(files) < 2 {
		t.Fatalf("%v", files)
	}
	get := func(path, token string) int {
		resp, _ := o.ask(http.MethodGet, path, token)
		return resp.StatusCode
	}
	first, sig, _ := strings.Cut(files[0], "?")
	second, _, _ := strings.Cut(files[1], "?")
	for _, c := range []struct {
		name, path, token string
		want              int
	}{
		{"as it was given", files[0], "", http.StatusOK},
		{"whatever token comes with it", files[0], "nonsense", http.StatusOK},
		{"a token alone", first, o.token("whole", ""), http.StatusForbidden},
		{"of another file", second + "?" + sig, "", http.StatusForbidden},
		{"changed", files[0] + "x", "", http.StatusForbidden},
		{"none", first + "?sig=", "", http.StatusForbidden},
		{"of another job", "/fhir/export/" + strings.Repeat("0", 32) + "/1.ndjson?" + sig, "", http.StatusForbidden},
	} {
		if got := get(c.path, c.token); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if resp, _ := o.ask(http.MethodHead, files[0], ""); resp.StatusCode != http.StatusOK {
		t.Errorf("HEAD: %s", resp.Status)
	}
	late := smart.Capability{Secrets: o.minter.Secrets}
	job := strings.Split(status, "/")[3]
	if got := get(first+"?sig="+url.QueryEscape(late.Sign(job, 1, 1, time.Now().Add(-time.Second))), ""); got != http.StatusForbidden {
		t.Errorf("expired: %d", got)
	}
	if got := get(first+"?sig="+url.QueryEscape(late.Sign(job, 1, 2, time.Now().Add(time.Hour))), ""); got != http.StatusNotFound {
		t.Errorf("of another client, who has no such job: %d", got)
	}
	o.clients[1] = clients.Client{ID: "whole", Serial: 1, May: clients.Permission{Levels: []string{"patient"}, Scopes: "system/Observation.rs"}}
	if got := get(files[len(files)-1], ""); got != http.StatusForbidden { // Patient
		t.Errorf("of what the client may not have any more: %d", got)
	}
	o.clients[1] = clients.Client{ID: "whole", Serial: 1, Disabled: true, May: clients.Anything}
	if got := get(files[0], ""); got != http.StatusForbidden {
		t.Errorf("of a client that is disabled: %d", got)
	}
}

// TestSecretsRotate: what was signed by a secret counts as long as that is known; a new
// one signs at once.
func TestSecretsRotate(t *testing.T) {
	o := newOffice(t, api.Options{})
	old := o.token("whole", "")
	get := func(token string) int {
		resp, _ := o.ask(http.MethodGet, "/fhir/Patient/a", token)
		return resp.StatusCode
	}
	fresh := append([]smart.Secret{smart.NewSecret()}, o.minter.Secrets...)
	o.rotate(fresh)
	o.minter.Secrets = fresh
	if one, two := get(old), get(o.token("whole", "")); one != http.StatusOK || two != http.StatusOK {
		t.Errorf("after a rotation: %d, %d", one, two)
	}
	o.rotate(fresh[:1])
	if one, two := get(old), get(o.token("whole", "")); one != http.StatusUnauthorized || two != http.StatusOK {
		t.Errorf("without the old one: %d, %d", one, two)
	}
}
