package main

import (
	"encoding/json"
	"flag"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
)

var securedKills = flag.Int("secured.kills", 3, "how often TestSecured kills the server right after a token was granted")

var ofA = []string{"Group/of-a", "Observation/a-laboratory", "Observation/a-vital-signs", "Patient/a"}

// Who may read what, from the commands of an operator to the rows of a client, over TLS
// and over kills, against the program as it is run.
func TestSecured(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newSecured(t)
	s.sick()
	s.begin()
	s.open()
	all := s.member("all", "ES384", "--level", "system,patient,group", "--group", "*", "--scope", "system/*.rs")
	token := all.token("system/*.rs")
	s.covers(token)
	t.Run("levels and scopes", func(t *testing.T) { s.scopes(t, all) })
	t.Run("another client", func(t *testing.T) { s.another(t, token) })
	t.Run("an assertion counts once", func(t *testing.T) { s.once(t, all) })
	t.Run("rights are taken", func(t *testing.T) { s.taken(t) })
	t.Run("another of the same name", func(t *testing.T) { s.sameName(t) })
	s.keepsSecrets()
}

// open is what is there without a token, and what is not.
func (s *secured) open() {
	s.t.Helper()
	for _, path := range []string{"metadata", ".well-known/smart-configuration"} {
		if status, body := s.get("", path); status != http.StatusOK || strings.Contains(body, canary) {
			s.t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for _, path := range []string{"$export", "Patient/$export", "Group/of-a/$export", "Patient/" + canary + "-a", "Group", "export/" + strings.Repeat("0", 32)} {
		answer, err := s.send(http.MethodGet, "", path)
		if err != nil {
			s.t.Fatal(err)
		}
		if body := readAll(s.t, answer); answer.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(answer.Header.Get("WWW-Authenticate"), "Bearer") || strings.Contains(string(body), "Observation") {
			s.t.Errorf("%s without a token: %d %s", path, answer.StatusCode, body)
		}
	}
}

// scopes narrows what a client may, which is all.
func (s *secured) scopes(t *testing.T, all *member) {
	both := []string{
		"Group/of-a", "Group/of-b", "Observation/a-laboratory", "Observation/a-vital-signs",
		"Observation/b-laboratory", "Observation/b-vital-signs", "Patient/a", "Patient/b",
	}
	for _, c := range []struct {
		path, scope string
		want        []string
	}{
		{"$export", "system/*.rs", both},
		{"$export", "system/*.read", both},
		{"Patient/$export", "system/*.rs", both},
		{"Group/of-a/$export", "system/*.rs", ofA},
		{"$export", "system/Patient.rs", []string{"Patient/a", "Patient/b"}},
		{"$export", "system/Observation.rs?category=laboratory", []string{"Observation/a-laboratory", "Observation/b-laboratory"}},
		{"Group/of-a/$export", "system/Group.r system/Observation.rs?category=vital-signs", []string{"Observation/a-vital-signs"}},
	} {
		token := all.token(c.scope)
		job, m := s.export(token, c.path, nil)
		if diff := cmp.Diff(c.want, s.holds(token, m)); diff != "" || !m.RequiresAccessToken {
			t.Errorf("%s with %s: requiresAccessToken %t (-want +got):\n%s", c.path, c.scope, m.RequiresAccessToken, diff)
		}
		if err := job.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	s.answers(http.StatusForbidden, "a type outside", http.MethodGet, all.token("system/Patient.rs"), "$export?_type=Patient,Observation")
	whole, narrow := all.token("system/*.rs"), all.token("system/Patient.rs")
	job, m := s.export(whole, "$export", nil)
	s.answers(http.StatusForbidden, "the status of a wider job", http.MethodGet, narrow, job.URL)
	for _, f := range m.Output {
		if want := http.StatusForbidden; f.Type != "Patient" {
			s.answers(want, "a file outside", http.MethodGet, narrow, f.URL)
		}
	}
	if err := job.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if status, g := all.prove(all.assertion(), "user/*.rs"); status != http.StatusBadRequest || g.Error != "invalid_scope" {
		t.Errorf("a user's scope: %d %s", status, g.Error)
	}
}

// another client is one of a Group, and asks for what is not its own.
func (s *secured) another(t *testing.T, token string) {
	of := s.member("of-a", "RS384", "--level", "group", "--group", "of-a", "--scope", "system/*.rs")
	its := of.token("system/*.rs")
	_, m := s.export(its, "Group/of-a/$export", nil)
	if diff := cmp.Diff(ofA, s.holds(its, m)); diff != "" {
		t.Errorf("its own Group (-want +got):\n%s", diff)
	}
	s.answers(http.StatusForbidden, "the system", http.MethodGet, its, "$export")
	s.answers(http.StatusForbidden, "all Patients", http.MethodGet, its, "Patient/$export")
	s.answers(http.StatusNotFound, "another Group", http.MethodGet, its, "Group/of-b/$export")
	s.answers(http.StatusNotFound, "no Group", http.MethodGet, its, "Group/of-nobody/$export")
	s.answers(http.StatusNotFound, "no member", http.MethodGet, its, "Patient/"+canary+"-b")
	if status, _ := s.get(its, "Patient/"+canary+"-a"); status != http.StatusOK {
		t.Errorf("a member: %d", status)
	}
	s.nested(t, token)
	fresh := s.member("new", "ES384", "--scope", "system/*.rs")
	for _, path := range []string{"$export", "Patient/$export", "Group/of-a/$export", "Patient/" + canary + "-a"} {
		s.answers(http.StatusForbidden, "a client that has no level yet", http.MethodGet, fresh.token("system/*.rs"), path)
	}
	job, m := s.export(token, "$export", nil)
	for _, address := range []string{job.URL, m.Output[0].URL, strings.Replace(job.URL, "export/", "export/0", 1)} {
		s.answers(http.StatusNotFound, "another's job", http.MethodGet, its, address)
	}
	s.answers(http.StatusNotFound, "another's job, to delete", http.MethodDelete, its, job.URL)
	if diff := cmp.Diff(9, len(s.holds(token, m))); diff != "" {
		t.Errorf("the job after all this (-want +got):\n%s", diff)
	}
}

// nested is a Group of Groups: who may export it has the members of all, but sees no
// other than this.
func (s *secured) nested(t *testing.T, token string) {
	s.put(&kgo.Record{Topic: s.topic, Key: []byte("Group/wing"), Timestamp: time.Now(), Value: []byte(
		`{"resourceType":"Group","id":"wing","type":"person","actual":true,"member":[{"entity":{"reference":"Group/of-a"}}]}`)})
	s.covers(token)
	of := s.member("wing", "ES384", "--level", "group", "--group", "wing", "--scope", "system/*.rs")
	its := of.token("system/*.rs")
	_, m := s.export(its, "Group/wing/$export", nil)
	if diff := cmp.Diff(append([]string{"Group/wing"}, ofA[1:]...), s.holds(its, m)); diff != "" {
		t.Errorf("a Group of Groups (-want +got):\n%s", diff)
	}
	s.answers(http.StatusNotFound, "a Group in it, singly", http.MethodGet, its, "Group/of-a")
	s.answers(http.StatusNotFound, "a Group in it, to export", http.MethodGet, its, "Group/of-a/$export")
}

// once kills the server right after a token was granted, and shows it the assertion
// again. A job outlives that, for whoever has another token of its client.
func (s *secured) once(t *testing.T, all *member) {
	job, before := s.export(all.token("system/*.rs"), "$export", nil)
	for range *securedKills {
		proof := all.assertion()
		if status, g := all.prove(proof, "system/*.rs"); status != http.StatusOK {
			t.Fatalf("the first time: %d %s", status, g.Error)
		}
		s.kill()
		s.begin()
		if status, g := all.prove(proof, "system/*.rs"); status != http.StatusUnauthorized || g.Error != "invalid_client" || g.Token != "" {
			t.Errorf("the same again: %d %s", status, g.Error)
		}
	}
	token := all.token("system/*.rs")
	s.answers(http.StatusOK, "a job from before the kills", http.MethodGet, token, job.URL)
	if diff := cmp.Diff(9, len(s.holds(token, before))); diff != "" {
		t.Errorf("its resources (-want +got):\n%s", diff)
	}
}

// large is the size of a file that does not fit into the buffers of a connection.
const large = 480 * 48 << 10

// taken narrows a client while it downloads, and then disables it.
func (s *secured) taken(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{2})
	var list []*kgo.Record
	for i := range large / (48 << 10) {
		list = append(list, s.change("Media", strconv.Itoa(i), noise(rng, 48<<10), time.Now()))
	}
	s.put(list...)
	c := s.member("greedy", "ES384", "--level", "system,patient", "--scope", "system/*.rs")
	token := c.token("system/*.rs")
	s.covers(token)
	job, m := s.export(token, "$export", url.Values{"_type": {"Media"}})
	file, err := s.send(http.MethodGet, token, m.Output[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Body.Close()
	if _, err := io.CopyN(io.Discard, file.Body, 64<<10); err != nil {
		t.Fatal(err)
	}
	contains(t, s.operate("change", "greedy", "--level", "system"), "1 job")
	if n, err := io.Copy(io.Discard, file.Body); err == nil || n > large/2 {
		t.Errorf("the download went on for %d bytes of %d: %v", n, large, err)
	}
	s.answers(http.StatusGone, "the job", http.MethodGet, token, job.URL)
	s.answers(http.StatusGone, "its file", http.MethodGet, token, m.Output[0].URL)
	if _, m := s.export(token, "$export", url.Values{"_type": {"Patient"}}); len(s.holds(token, m)) != 2 {
		t.Error("what is left to the client is not there")
	}
	s.operate("disable", "greedy")
	answer := s.answers(http.StatusUnauthorized, "a token of a disabled client", http.MethodGet, token, "$export")
	contains(t, answer.Header.Get("WWW-Authenticate"), "invalid_token")
	if status, g := c.prove(c.assertion(), "system/*.rs"); status != http.StatusUnauthorized || g.Error != "invalid_client" {
		t.Errorf("another token of it: %d %s", status, g.Error)
	}
	s.operate("enable", "greedy")
	s.answers(http.StatusGone, "the job of a client that is enabled again", http.MethodGet, token, job.URL)
}

// sameName removes a client and makes another of its name.
func (s *secured) sameName(t *testing.T) {
	may := []string{"--level", "system", "--scope", "system/*.rs"}
	old := s.member("phoenix", "ES384", may...)
	token := old.token("system/*.rs")
	job, m := s.export(token, "$export", url.Values{"_type": {"Patient"}})
	s.operate("remove", "phoenix")
	s.answers(http.StatusUnauthorized, "a token of a client that is gone", http.MethodGet, token, job.URL)
	next := s.member("phoenix", "ES384", may...)
	s.answers(http.StatusUnauthorized, "the token of the one before", http.MethodGet, token, "$export")
	if status, g := old.prove(old.assertion(), "system/*.rs"); status != http.StatusUnauthorized || g.Error != "invalid_client" {
		t.Errorf("the keys of the one before: %d %s", status, g.Error)
	}
	token = next.token("system/*.rs")
	for _, address := range []string{job.URL, m.Output[0].URL} {
		s.answers(http.StatusNotFound, "the job of the one before", http.MethodGet, token, address)
	}
}

// Files by URLs that are signed need no token, and nothing else is to be had by them.
func TestSecuredURLs(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newSecured(t, "--set", "capability.enabled=true")
	s.sick()
	s.begin()
	c := s.member("loader", "ES384", "--level", "system", "--scope", "system/*.rs")
	token := c.token("system/*.rs")
	s.covers(token)
	job, m := s.export(token, "$export", nil)
	if m.RequiresAccessToken || len(m.Output) != 3 {
		t.Fatalf("requiresAccessToken %t, %d files", m.RequiresAccessToken, len(m.Output))
	}
	first, second := m.Output[0].URL, m.Output[1].URL
	plain, sig, _ := strings.Cut(first, "?sig=")
	s.private = append(s.private, sig)
	if status, body := s.get("", first); status != http.StatusOK || strings.Count(body, "\n") != int(*m.Output[0].Count) {
		t.Errorf("a signed URL: %d %.200s", status, body)
	}
	s.answers(http.StatusUnauthorized, "the job without a token", http.MethodGet, "", job.URL)
	other, _, _ := strings.Cut(second, "?")
	for what, address := range map[string]string{
		"no signature": plain, "of another file": other + "?sig=" + sig, "tampered": plain + "?sig=" + tampered(sig),
		"cut": first[:len(first)-1], "of another job": strings.Replace(first, "export/", "export/0", 1),
	} {
		if status, body := s.get("", address); status != http.StatusForbidden && status != http.StatusNotFound || strings.Contains(body, canary) {
			t.Errorf("%s: %d %.200s", what, status, body)
		}
	}
	s.operate("disable", "loader")
	s.answers(http.StatusForbidden, "a signed URL of a disabled client", http.MethodGet, "", first)
	s.operate("enable", "loader")
	s.answers(http.StatusGone, "a signed URL of a job that ended so", http.MethodGet, "", first)
	s.expires(c)
	s.keepsSecrets()
}

// tampered is a signature of which one character is another.
func tampered(sig string) string {
	at, by := len(sig)/2, "A"
	if sig[at] == 'A' {
		by = "B"
	}
	return sig[:at] + by + sig[at+1:]
}

// expires has signed URLs live for a second, and lets a client have one job a day.
func (s *secured) expires(c *member) {
	if err := s.stop(); err != nil {
		s.t.Fatal(err)
	}
	s.begin("--set", "capability.ttl=1s", "--set", "limits.jobs_per_client_day=1")
	token := c.token("system/*.rs")
	job, m := s.export(token, "$export", url.Values{"_type": {"Patient"}})
	s.until("a signed URL has expired", func() bool {
		status, body := s.get("", m.Output[0].URL)
		return status == http.StatusForbidden && strings.Contains(body, "expired")
	})
	s.answers(http.StatusOK, "the manifest again", http.MethodGet, token, job.URL)
	answer := s.answers(http.StatusTooManyRequests, "the second job of a day", http.MethodGet, token, "$export")
	if after, err := strconv.Atoi(answer.Header.Get("Retry-After")); err != nil || after < 1 || after > 24*60*60 {
		s.t.Errorf("Retry-After: %q", answer.Header.Get("Retry-After"))
	}
}

// Nothing is open by accident: what others can reach asks for tokens, or does not start.
func TestNeverOpen(t *testing.T) {
	for _, c := range []struct {
		name   string
		set    []string
		starts bool
	}{
		{"a public listener", []string{"http.listen=0.0.0.0:0", "http.public_url=http://127.0.0.1/fhir"}, true},
		{"a public URL", []string{"http.public_url=https://fhir.example.org/fhir"}, true},
		{"a public listener without tokens", []string{"http.listen=0.0.0.0:0", "http.public_url=http://127.0.0.1/fhir", "auth.mode=none"}, false},
		{"a public URL without tokens", []string{"http.public_url=https://fhir.example.org/fhir", "auth.mode=none"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := oneTopic(t)
			address := strings.TrimSuffix(strings.TrimPrefix(r.client.Base, "http://"), "/fhir")
			args := slices.Clone(r.args)
			for _, set := range c.set {
				_, port, _ := strings.Cut(address, ":")
				args = append(args, "--set", strings.Replace(set, "0.0.0.0:0", "0.0.0.0:"+port, 1))
			}
			if !c.starts {
				if got, code := ends(t, args...); code == 0 || !strings.Contains(got, "auth.allow_open_data") {
					t.Errorf("exit %d: %s", code, got)
				}
				return
			}
			r.args = args
			r.start()
			for _, path := range []string{"/fhir/$export", "/fhir/Patient/x", "/fhir/Group", "/fhir/Binary/x"} {
				if got := r.get(path); !strings.HasPrefix(got, "401 ") {
					t.Errorf("%s: %s", path, got)
				}
			}
			if got := r.get("/fhir/.well-known/smart-configuration"); !strings.HasPrefix(got, "200 ") {
				t.Error(got)
			}
		})
	}
}

// The README's way to a token is one.
func TestReadmeClient(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	s := newSecured(t)
	s.sick()
	s.begin()
	tried := 0
	for line := range strings.Lines(string(text)) {
		args := strings.Fields(strings.NewReplacer("'", "", `"`, "").Replace(line))
		switch {
		case strings.HasPrefix(line, "    bin/tidemark client "):
			if args[2] != "keygen" {
				args = append(args, "--store", s.store())
			}
			cmd := program(t, args[1:]...)
			cmd.Dir = s.dir
			if got, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %s", line, got)
			}
			tried++
		case strings.HasPrefix(line, "    curl ") && strings.Contains(line, "client_assertion="):
			s.curl(args)
			tried++
		}
	}
	if tried != 3 {
		t.Errorf("%d lines were tried, want 3", tried)
	}
}

// curl asks for a token as a command line does, with the keys that were made before.
func (s *secured) curl(args []string) {
	s.t.Helper()
	key, err := os.ReadFile(filepath.Join(s.dir, "research.private.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	c := &member{secured: s, id: "research"}
	if err := c.key.UnmarshalJSON(key); err != nil {
		s.t.Fatal(err)
	}
	form := url.Values{}
	for i := 3; i+1 < len(args); i += 2 { // after curl, -s and the URL: -d name=value
		name, value, _ := strings.Cut(args[i+1], "=")
		form.Set(name, strings.Replace(value, "$JWT", c.assertion(), 1))
	}
	answer, err := s.http.PostForm(strings.Replace(args[2], "http://127.0.0.1:8080/fhir", s.client.Base, 1), form)
	if err != nil {
		s.t.Fatal(err)
	}
	var g granted
	if err := json.Unmarshal(readAll(s.t, answer), &g); err != nil || answer.StatusCode != http.StatusOK || g.Scope != "system/*.rs" {
		s.t.Errorf("%v: %d %s %v", args, answer.StatusCode, g.Error, err)
	}
}
