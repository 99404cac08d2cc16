//go:build conformance

package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The same clients get tokens as SMART Backend Services has it, with keys that "tidemark
// client keygen" has made, and hold what theirs lets them: all, or one Group.
func TestConformanceClientsWithTokens(t *testing.T) {
	needs(t, "python3")
	realClients(t, "fetch")
	ours := &member{id: "ours", secured: &secured{http: &http.Client{Transport: http.DefaultTransport}}}
	set := ours.keys(t, "ES384")
	c := newClinic(t, "--set", "auth.mode=builtin",
		"--set", "auth.clients=[{id: ours, jwks_file: "+set+", levels: [system], scopes: 'system/*.rs'}]")
	ours.rig = c.rig
	c.client.HTTP = &http.Client{Transport: renewing{ours}}
	later := c.begin()

	all := ours.member("research", "ES384", "--level", "system,patient", "--scope", "system/*.rs")
	payer := ours.member("payer", "RS384", "--level", "group", "--group", "panel", "--scope", "system/*.rs")
	whole := &fetcher{c: c, dir: t.TempDir(), proof: all.flags()}
	roster := &fetcher{c: c, proof: payer.bearer()}
	full := whole.managed(t, "full", time.Time{})
	full.equals(t, "the whole export", theirs(c.now), nil)
	panel := roster.group(t, time.Time{})
	panel.equals(t, "a Group", of(t, theirs(c.now), c.members), nil)
	if diff := cmp.Diff(counts(c.now), sekmet(t, all.peer(), "--level", "system")); diff != "" {
		t.Errorf("sekmet, the system: resources by type (-source +client):\n%s", diff)
	}
	if diff := cmp.Diff(counts(of(t, theirs(c.now), c.members)), sekmet(t, payer.peer(), "--level", "group", "--group", "panel", "--type", types)); diff != "" {
		t.Errorf("sekmet, a Group: resources by type (-source +client):\n%s", diff)
	}
	if t.Failed() {
		t.FailNow() // an increment of what is wrong tells nothing
	}
	changed, gone, _ := c.change(later)
	whole.managed(t, "increment", full.time, "--since", "auto").equals(t, "the increment", theirs(changed), names(theirs(gone)))
}

// flags are those by which smart-fetch proves itself.
func (c *member) flags() []string {
	return []string{"--smart-client-id", c.id, "--smart-key", c.name + ".private.pem"}
}

// bearer are those by which smart-fetch sends a token that it did not get itself: it asks
// for the scopes of its own types only, and Group, which an export of one needs, is none.
func (c *member) bearer() []string {
	file := filepath.Join(c.t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(c.token("system/*.rs")), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return []string{"--bearer-token", file}
}

// peer is the server as sekmet's settings tell of it. It asks for scopes that let write,
// too, and gets those that let read.
func (c *member) peer() string {
	return fmt.Sprintf("{base_url: %q, auth: {type: smart, client_id: %s, private_key_path: %q, alg: %s}}",
		c.client.Base, c.id, c.name+".private.pem", c.key.Algorithm)
}

// renewing sends a token of its own with each request, so that none is too old.
type renewing struct{ of *member }

// RoundTrip is that of an http.RoundTripper.
func (r renewing) RoundTrip(request *http.Request) (*http.Response, error) {
	return (&bearing{r.of.token("system/*.rs"), http.DefaultTransport}).RoundTrip(request)
}
