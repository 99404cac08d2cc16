package main

import (
	"cmp"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
)

// A secured server asks for tokens. Whatever must be told to nobody is collected, and in
// the end looked for in all that the server says of itself.
type secured struct {
	*rig
	dir     string
	http    *http.Client // that trusts the server
	traces  *traces
	private []string // of tokens, assertions, keys and URLs: what makes them count
}

// newSecured makes one that is reached over TLS.
func newSecured(t *testing.T, more ...string) *secured {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, certFile, keyFile, time.Now().Unix())
	certificate, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	trust := x509.NewCertPool()
	trust.AppendCertsFromPEM(certificate)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust}}
	t.Cleanup(transport.CloseIdleConnections)
	s := &secured{dir: dir, http: &http.Client{Transport: transport}, traces: newTraces(t)}
	s.rig = oneTopic(t, append([]string{
		"--set", "auth.mode=builtin", "--set", "http.tls.cert_file=" + certFile, "--set", "http.tls.key_file=" + keyFile,
		"--set", "telemetry.sample=1", "--set", "telemetry.otlp_endpoint=" + s.traces.server.URL,
	}, more...)...)
	s.client.Base = strings.Replace(s.client.Base, "http:", "https:", 1)
	return s
}

// traces is a collector that keeps what it is sent.
type traces struct {
	server *httptest.Server

	mu   sync.Mutex
	sent strings.Builder
}

func newTraces(t *testing.T) *traces {
	c := &traces{}
	c.server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, _ = io.Copy(&c.sent, r.Body)
	}))
	t.Cleanup(c.server.Close)
	return c
}

// begin starts the server and waits until it is ready.
func (s *secured) begin(more ...string) {
	s.t.Helper()
	s.launch(more...)
	s.until("the server is ready", func() bool {
		status, _ := s.get("", strings.TrimSuffix(s.client.Base, "/fhir")+"/readyz")
		return status == http.StatusOK
	})
}

// get asks with a token, or without one, and returns the status, 0 if there is none, and
// the answer's body.
func (s *secured) get(token, address string) (status int, body string) {
	s.t.Helper()
	answer, err := s.send(http.MethodGet, token, address)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(readAll(s.t, answer))
}

func (s *secured) send(method, token, address string) (*http.Response, error) {
	s.t.Helper()
	if !strings.HasPrefix(address, "http") {
		address = s.client.Base + "/" + address
	}
	request, err := http.NewRequestWithContext(s.t.Context(), method, address, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header = http.Header{"Accept": {"application/fhir+json, */*;q=0.5"}, "Accept-Encoding": {"identity"}, "Prefer": {"respond-async"}}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	return s.http.Do(request)
}

// answers fails the test unless a request is answered with a status.
func (s *secured) answers(want int, what, method, token, address string) *http.Response {
	s.t.Helper()
	answer, err := s.send(method, token, address)
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
	body := readAll(s.t, answer)
	if answer.StatusCode != want {
		s.t.Errorf("%s: %d, want %d: %.300s", what, answer.StatusCode, want, body)
	}
	if want >= 400 && !strings.Contains(string(body), "OperationOutcome") || strings.Contains(string(body), canary) || strings.Contains(string(body), content) {
		s.t.Errorf("%s: the answer is no OperationOutcome, or holds data: %.300s", what, body)
	}
	return answer
}

// operate runs a command on clients beside the running server.
func (s *secured) operate(args ...string) string {
	s.t.Helper()
	got, code := ends(s.t, slices.Concat([]string{"client"}, args, []string{"--store", s.store()})...)
	if code != 0 {
		s.t.Fatalf("client %s: exit %d: %s", args[0], code, got)
	}
	return got
}

// A member is a client that has a pair of keys.
type member struct {
	*secured
	id   string
	name string // of its keys' files, without their ends
	key  jose.JSONWebKey
}

// member makes a client and its keys as its operators would.
func (s *secured) member(id, alg string, may ...string) *member {
	s.t.Helper()
	c := &member{secured: s, id: id}
	set := c.keys(s.t, alg)
	s.operate(slices.Concat([]string{"add", id, "--jwks", set}, may)...)
	return c
}

// keys makes them, and returns the file of the public one.
func (c *member) keys(t *testing.T, alg string) (set string) {
	t.Helper()
	c.name = filepath.Join(t.TempDir(), c.id)
	if got, code := ends(t, "client", "keygen", "--alg", alg, "--out", c.name); code != 0 {
		t.Fatalf("client keygen: %s", got)
	}
	text, err := os.ReadFile(c.name + ".private.json")
	if err != nil {
		t.Fatal(err)
	}
	var secret struct{ D string }
	if err := cmp.Or(c.key.UnmarshalJSON(text), json.Unmarshal(text, &secret)); err != nil {
		t.Fatal(err)
	}
	c.private = append(c.private, secret.D)
	return c.name + ".jwks.json"
}

// assertion is what the client signs to prove itself.
func (c *member) assertion() string {
	c.t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(c.key.Algorithm), Key: c.key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		c.t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: c.id, Subject: c.id, Audience: jwt.Audience{c.client.Base + "/auth/token"},
		Expiry: jwt.NewNumericDate(time.Now().Add(5 * time.Minute)), ID: rand.Text(),
	}).Serialize()
	if err != nil {
		c.t.Fatal(err)
	}
	c.private = append(c.private, text[strings.LastIndexByte(text, '.'):])
	return text
}

// granted is what the token endpoint answers.
type granted struct {
	Token   string `json:"access_token"`
	Kind    string `json:"token_type"`
	Seconds int    `json:"expires_in"`
	Scope   string `json:"scope"`
	Error   string `json:"error"`
}

// prove asks for a token.
func (c *member) prove(assertion, scope string) (status int, g granted) {
	c.t.Helper()
	answer, err := c.http.PostForm(c.client.Base+"/auth/token", url.Values{
		"grant_type": {"client_credentials"}, "scope": {scope}, "client_assertion": {assertion},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := json.Unmarshal(readAll(c.t, answer), &g); err != nil {
		c.t.Fatal(err)
	}
	if g.Token != "" {
		c.private = append(c.private, g.Token[strings.LastIndexByte(g.Token, '.'):])
	}
	return answer.StatusCode, g
}

// token is one for some scopes, all of which must be granted.
func (c *member) token(scope string) string {
	c.t.Helper()
	status, g := c.prove(c.assertion(), scope)
	if status != http.StatusOK || g.Scope != scope || !strings.EqualFold(g.Kind, "bearer") || g.Seconds < 1 || g.Seconds > 300 {
		c.t.Fatalf("a token of %s for %s: %d, scope %q, %q, %d s, %s", c.id, scope, status, g.Scope, g.Kind, g.Seconds, g.Error)
	}
	return g.Token
}

// bearing sends a token with each request.
type bearing struct {
	token string
	next  http.RoundTripper
}

// RoundTrip is that of an http.RoundTripper, which leaves the request as it is.
func (b *bearing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// with is a bulk client that has a token.
func (s *secured) with(token string) *bulkclient.Client {
	return &bulkclient.Client{Base: s.client.Base, HTTP: &http.Client{Transport: &bearing{token, s.http.Transport}}}
}

// export makes one, and leaves it there.
func (s *secured) export(token, path string, params url.Values) (*bulkclient.Job, *bulkclient.Manifest) {
	s.t.Helper()
	job, err := s.with(token).Start(s.t.Context(), path, params)
	if err != nil {
		s.t.Fatal(err)
	}
	m, err := job.Wait(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return job, m
}

// holds are the resources of an export, by Type/id in order, without the canary.
func (s *secured) holds(token string, m *bulkclient.Manifest) (keys []string) {
	s.t.Helper()
	for _, f := range m.Output {
		body, err := s.with(token).Fetch(s.t.Context(), f)
		if err != nil {
			s.t.Fatal(err)
		}
		_, err = body.Lines(func(line []byte) error {
			var name struct{ ResourceType, ID string }
			err := json.Unmarshal(line, &name)
			keys = append(keys, name.ResourceType+"/"+strings.TrimPrefix(name.ID, canary+"-"))
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	slices.Sort(keys)
	return keys
}

// content stands in resources, and nowhere else: the trail may name a Patient by his id, as
// a request did, and no more.
const content = "content-5e1d"

// sick writes two Patients, each with what was measured, and a Group of either.
func (s *secured) sick() {
	s.t.Helper()
	var list []*kgo.Record
	put := func(kind, id, more string) {
		body := `{"resourceType":"` + kind + `","id":"` + id + `",` + more + `}`
		list = append(list, &kgo.Record{Topic: s.topic, Key: []byte(kind + "/" + id), Value: []byte(body), Timestamp: time.Now()})
	}
	for _, name := range []string{"a", "b"} {
		id := canary + "-" + name
		put("Patient", id, `"name":[{"family":"`+content+`"}]`)
		put("Group", "of-"+name, `"type":"person","actual":true,"member":[{"entity":{"reference":"Patient/`+id+`"}}]`)
		for _, category := range []string{"laboratory", "vital-signs"} {
			put("Observation", id+"-"+category, `"status":"final","code":{"text":"`+content+`"},"subject":{"reference":"Patient/`+id+`"},`+
				`"category":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/observation-category","code":"`+category+`"}]}]`)
		}
	}
	s.put(list...)
}

// covers waits until exports hold what was written until now.
func (s *secured) covers(token string) {
	s.t.Helper()
	now := time.Now()
	s.until("an export holds what was written", func() bool {
		job, m := s.export(token, "$export", url.Values{"_type": {"Endpoint"}})
		if err := job.Delete(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
		return m.TransactionTime.After(now)
	})
}

// keepsSecrets stops the server and looks for what it has said.
func (s *secured) keepsSecrets() {
	s.t.Helper()
	_, metrics := s.get("", strings.TrimSuffix(s.client.Base, "/fhir")+"/metrics")
	if err := s.stop(); err != nil {
		s.t.Fatal(err)
	}
	log, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	names, trail := s.written()
	s.traces.mu.Lock()
	defer s.traces.mu.Unlock()
	for name, text := range map[string]string{"the log": string(log), "/metrics": metrics, "traces": s.traces.sent.String(), "names of files": names, "the trail": trail} {
		if len(text) < 1000 {
			s.t.Errorf("%s: %d bytes prove nothing", name, len(text))
		}
		for _, secret := range append(s.private, canary, content) {
			if strings.Contains(text, secret) && (name != "the trail" || secret != canary) {
				s.t.Errorf("%s: holds %.12s…", name, secret)
			}
		}
	}
}

// written are the names of all files of the server, and what its audit trail says.
func (s *secured) written() (names, trail string) {
	s.t.Helper()
	var list, lines strings.Builder
	err := filepath.WalkDir(s.store(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		list.WriteString(path + "\n")
		if d.IsDir() || filepath.Base(filepath.Dir(path)) != "audit" {
			return nil
		}
		text, err := os.ReadFile(path)
		lines.Write(text)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return list.String(), lines.String()
}
