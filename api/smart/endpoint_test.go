package smart

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/go-jose/go-jose/v4"

	"tidemark/store"
)

// A tokenServer is an endpoint with some clients.
type tokenServer struct {
	*Endpoint
	now  time.Time
	key  signer
	seen []Attempt
	n    int
}

func newTokenServer(t testing.TB) *tokenServer {
	s := &tokenServer{now: time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC), key: newSigner(t, jose.ES384, "ec")}
	twice := newSigner(t, jose.ES384, "twice")
	keys := setOf(t, s.key.public(), twice.public(), newSigner(t, jose.ES384, "twice").public())
	all := Parse("system/*.rs")
	clients := map[string]Client{
		"app":     {ID: "app", Serial: 7, Keys: keys, Rights: all},
		"poor":    {ID: "poor", Serial: 8, Keys: keys},
		"off":     {ID: "off", Serial: 9, Keys: keys, Rights: all, Disabled: true, CheckSecret: func(string) bool { return true }},
		"old one": {ID: "old one", Serial: 10, Rights: all, CheckSecret: func(text string) bool { return text == "a:%+b" }},
		"fetched": {ID: "fetched", Serial: 11, KeysURL: "https://client.example.org/jwks", Rights: all},
	}
	clock := func() time.Time { return s.now }
	s.Endpoint = &Endpoint{
		Verifier: &Verifier{
			Client: func(id string) (Client, bool) { c, ok := clients[id]; return c, ok },
			Once:   memory(), Audience: []string{endpoint}, Now: clock,
		},
		Minter: &Minter{Issuer: "https://bulk.example.org/fhir", Secrets: []Secret{NewSecret()}, Now: clock},
		Seen:   func(_ context.Context, a Attempt) error { s.seen = append(s.seen, a); return nil },
	}
	s.Verifier.Fetch = func(context.Context, string, string) (Keys, error) {
		_, err := ParseKeys([]byte(strings.Repeat(" ", MaxKeys+1)))
		return nil, refuse("the keys of the client cannot be had: %v", err)
	}
	return s
}

// proof is a good assertion with changes.
func (s *tokenServer) proof(t testing.TB, changes map[string]any) string {
	s.n++
	claims := map[string]any{"iss": "app", "sub": "app", "aud": endpoint, "exp": s.now.Add(5 * time.Minute).Unix(), "jti": fmt.Sprint(s.n)}
	maps.Copy(claims, changes)
	return s.key.sign(t, nil, claims)
}

// form is a good body with changes; nil takes a parameter away.
func (s *tokenServer) form(t testing.TB, changes map[string]string) string {
	f := url.Values{"grant_type": {"client_credentials"}, "scope": {"system/*.rs"}, "client_assertion_type": {assertionType}}
	for name, value := range changes {
		f.Set(name, value)
	}
	if _, given := changes["client_assertion"]; !given {
		f.Set("client_assertion", s.proof(t, nil))
	}
	return f.Encode()
}

func (s *tokenServer) post(body string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/auth/token", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	maps.Copy(r.Header, header)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func basicHeader(id, secret string) http.Header {
	return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))}}
}

// TestEndpoint: every fault has its answer (RFC 6749, 5.2), and a client that has none a token.
func TestEndpoint(t *testing.T) {
	s := newTokenServer(t)
	claim := func(name string, value any) string {
		return s.form(t, map[string]string{"client_assertion": s.proof(t, map[string]any{name: value})})
	}
	of := func(id string) string {
		return s.form(t, map[string]string{"client_assertion": s.proof(t, map[string]any{"iss": id, "sub": id})})
	}
	says := func(assertion string) string {
		return s.form(t, map[string]string{"client_assertion": assertion})
	}
	change := func(name, value string) string { return s.form(t, map[string]string{name: value}) }
	plain := "grant_type=client_credentials&scope=system/*.rs"
	in := func(d time.Duration) int64 { return s.now.Add(d).Unix() }
	claims := map[string]any{"iss": "app", "sub": "app", "aud": endpoint, "exp": in(time.Minute), "jti": "x"}
	der, _ := x509.MarshalPKIXPublicKey(s.key.key.Public())
	jku := s.key.sign(t, map[string]any{"jku": "https://evil.example.org/"}, map[string]any{"iss": "fetched", "sub": "fetched"})
	used := s.form(t, nil)
	if w := s.post(used, nil); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	bearer := http.Header{"Authorization": {"Bearer"}}
	for _, c := range []struct {
		name, body string
		header     http.Header
		status     int
		code       string
	}{
		{"good", s.form(t, nil), nil, 200, ""},
		{"a charset", s.form(t, nil), http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=UTF-8"}}, 200, ""},
		{"an empty Bearer", s.form(t, nil), bearer, 200, ""},
		{"its own client_id", change("client_id", "app"), nil, 200, ""},
		{"what nobody knows", change("more", "x"), nil, 200, ""},
		{"Basic", plain, basicHeader("old one", "a:%+b"), 200, ""},

		{"no form", "{}", http.Header{"Content-Type": {"application/json"}}, 400, "invalid_request"},
		{"half a form", "%zz", nil, 400, "invalid_request"},
		{"compressed", s.form(t, nil), http.Header{"Content-Encoding": {"gzip"}}, 415, "invalid_request"},
		{"too long", s.form(t, nil) + "&x=" + strings.Repeat("a", maxForm), nil, 413, "invalid_request"},
		{"twice", s.form(t, nil) + "&scope=system/*.rs", nil, 400, "invalid_request"},
		{"no grant_type", change("grant_type", ""), nil, 400, "invalid_request"},
		{"another grant_type", change("grant_type", "authorization_code"), nil, 400, "unsupported_grant_type"},
		{"another grant_type of nobody", "grant_type=password", nil, 400, "unsupported_grant_type"},
		{"another assertion_type", change("client_assertion_type", "x"), nil, 400, "invalid_request"},
		{"no assertion_type", change("client_assertion_type", ""), nil, 400, "invalid_request"},
		{"no assertion", change("client_assertion", ""), nil, 400, "invalid_request"},
		{"no proof", plain, nil, 401, "invalid_client"},
		{"a token", plain, http.Header{"Authorization": {"Bearer abc"}}, 401, "invalid_client"},
		{"a secret in the body", plain + "&client_id=app&client_secret=x", nil, 401, "invalid_client"},
		{"two proofs", s.form(t, nil), basicHeader("old one", "a:%+b"), 400, "invalid_request"},
		{"two secrets", plain + "&client_secret=x", basicHeader("old one", "a:%+b"), 400, "invalid_request"},
		{"two headers", plain, http.Header{"Authorization": {"Basic YTpi", "Basic YTpi"}}, 400, "invalid_request"},
		{"a wrong secret", plain, basicHeader("old one", "x"), 401, "invalid_client"},
		{"a secret of who has none", plain, basicHeader("app", "x"), 401, "invalid_client"},
		{"a secret of who is disabled", plain, basicHeader("off", "x"), 401, "invalid_client"},
		{"a secret of nobody", plain, basicHeader("nobody", "x"), 401, "invalid_client"},
		{"no secret", plain, http.Header{"Authorization": {"Basic !"}}, 400, "invalid_request"},
		{"another's client_id", change("client_id", "poor"), nil, 401, "invalid_client"},
		{"nobody", of("nobody"), nil, 401, "invalid_client"},
		{"disabled", of("off"), nil, 401, "invalid_client"},
		{"oversized keys", of("fetched"), nil, 401, "invalid_client"},
		{"a foreign jku", says(jku), nil, 401, "invalid_client"},
		{"algorithm none", says("eyJhbGciOiJub25lIiwia2lkIjoiZWMifQ.e30."), nil, 401, "invalid_client"},
		{"HS256 with the public key", says(hmacSigned(t, "ec", der, claims)), nil, 401, "invalid_client"},
		{"two keys with one kid", says(signer{jose.ES384, "twice", s.key.key}.sign(t, nil, claims)), nil, 401, "invalid_client"},
		{"a wrong kty", says(signer{jose.RS384, "ec", newSigner(t, jose.RS384, "").key}.sign(t, nil, claims)), nil, 401, "invalid_client"},
		{"a wrong aud", claim("aud", "https://elsewhere.example.org"), nil, 401, "invalid_client"},
		{"iss that is not sub", claim("sub", "other"), nil, 401, "invalid_client"},
		{"exp too far", claim("exp", in(7*time.Minute)), nil, 401, "invalid_client"},
		{"expired", claim("exp", in(-2*time.Minute)), nil, 401, "invalid_client"},
		{"not yet", claim("nbf", in(2*time.Minute)), nil, 401, "invalid_client"},
		{"used before", used, nil, 401, "invalid_client"},
		{"a client without scopes", of("poor"), nil, 400, "unauthorized_client"},
		{"no scope", change("scope", ""), nil, 400, "invalid_scope"},
		{"only writing", change("scope", "system/*.write openid"), nil, 400, "invalid_scope"},
		{"bad syntax", change("scope", "system/*.sr"), nil, 400, "invalid_scope"},
	} {
		w := s.post(c.body, c.header)
		var got struct {
			Error, Error_description, Access_token, Token_type, Scope string //nolint:revive // as they are sent
			Expires_in                                                int    //nolint:revive // as they are sent
		}
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != c.status || got.Error != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.name, w.Code, w.Body, c.status, c.code)
		}
		h, basic := w.Header(), strings.HasPrefix(c.header.Get("Authorization"), "Basic")
		if h.Get("Cache-Control") != "no-store" || h.Get("Pragma") != "no-cache" || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v", c.name, h)
		}
		if (h.Get("WWW-Authenticate") != "") != (basic && c.status == 401) {
			t.Errorf("%s: WWW-Authenticate %q", c.name, h.Get("WWW-Authenticate"))
		}
		a := s.seen[len(s.seen)-1]
		if a.Error != c.code || (c.code == "") != (a.TokenID != "" && a.Granted == "system/*.rs" && a.Serial != 0) {
			t.Errorf("%s: seen as %+v", c.name, a)
		}
		if c.code != "" {
			if got.Error_description == "" || got.Access_token != "" {
				t.Errorf("%s: %s", c.name, w.Body)
			}
			continue
		}
		token, err := s.Minter.Check(got.Access_token)
		if err != nil || got.Token_type != "bearer" || got.Expires_in != 300 || got.Scope != "system/*.rs" || token.ID != a.TokenID || token.Client != a.Client {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	nobody, off := s.post(of("nobody"), nil).Body.String(), s.post(of("off"), nil).Body.String()
	if strings.ReplaceAll(nobody, "nobody", "off") != off {
		t.Errorf("who is disabled is spoken of in other words: %s, %s", off, nobody)
	}
	w := s.post(change("scope", "system/Patient.read system/*.write"), nil)
	if !strings.Contains(w.Body.String(), `"scope":"system/Patient.read"`) {
		t.Errorf("the dialect that was asked for: %s", w.Body)
	}
}

// TestEndpointURL: parameters in the URL, and other methods.
func TestEndpointURL(t *testing.T) {
	s := newTokenServer(t)
	for target, status := range map[string]int{"POST /auth/token?scope=x": 400, "GET /auth/token": 405, "PUT /auth/token": 405} {
		method, path, _ := strings.Cut(target, " ")
		r := httptest.NewRequest(method, path, strings.NewReader(s.form(t, nil)))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != status || !strings.Contains(w.Body.String(), "invalid_request") || (w.Header().Get("Allow") == "POST") != (status == 405) {
			t.Errorf("%s: %d %v %s", target, w.Code, w.Header(), w.Body)
		}
	}
}

// TestEndpointRemembers: who cannot be remembered gets nothing, and uses nothing up.
func TestEndpointRemembers(t *testing.T) {
	s := newTokenServer(t)
	once := s.Verifier.Once
	s.Verifier.Once = func([]byte, time.Time) (bool, error) { return false, errors.New("disk sda1 is full") }
	body := s.form(t, nil)
	w := s.post(body, nil)
	if w.Code != 503 || w.Header().Get("Retry-After") != "5" || strings.Contains(w.Body.String(), "sda1") || !strings.Contains(w.Body.String(), unavailable) {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	s.Verifier.Once = once
	if w := s.post(body, nil); w.Code != 200 {
		t.Errorf("well again: %d %s", w.Code, w.Body)
	}
}

// TestEndpointKilled: a token is given, the process is killed at once, and its assertion is
// refused by the next one: a hundred times of a hundred, whatever the disk had not synced.
func TestEndpointKilled(t *testing.T) {
	fs, rng := vfs.NewCrashableMem(), rand.New(rand.NewPCG(1, 66))
	s := newTokenServer(t)
	s.now = time.Now() // the store's clock
	open := func(of vfs.FS) *store.DB {
		t.Helper()
		db, err := store.Open("store", store.Options{FS: of})
		if err != nil {
			t.Fatal(err)
		}
		s.Verifier.Once = db.Once
		return db
	}
	var said []string
	db := open(fs)
	for n := range 100 {
		body := s.form(t, nil)
		if w := s.post(body, nil); w.Code != 200 {
			t.Fatalf("%d: %d %s", n, w.Code, w.Body)
		}
		said = append(said, body)
		killed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50 * rng.IntN(3), RNG: rng})
		_ = db.Close() // of the process that is dead: it changes nothing any more
		fs = killed
		db = open(fs)
		if w := s.post(body, nil); w.Code != 401 || !strings.Contains(w.Body.String(), "used before") {
			t.Errorf("%d: after a kill: %d %s", n, w.Code, w.Body)
		}
	}
	defer db.Close()
	for n, body := range said {
		if w := s.post(body, nil); w.Code != 401 {
			t.Errorf("%d: after all kills: %d %s", n, w.Code, w.Body)
		}
	}
	if w := s.post(s.form(t, nil), nil); w.Code != 200 {
		t.Errorf("another assertion: %d %s", w.Code, w.Body)
	}
}

// TestEndpointBinds: a token that is got with a certificate counts with no other.
func TestEndpointBinds(t *testing.T) {
	s := newTokenServer(t)
	mine, others := &x509.Certificate{Raw: []byte("mine")}, &x509.Certificate{Raw: []byte("others")}
	r := httptest.NewRequest(http.MethodPost, "/auth/token", strings.NewReader(s.form(t, nil)))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{mine}}}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	var got granted
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	token, err := s.Minter.Check(got.Token)
	if err != nil || !token.Bound(mine) || token.Bound(others) || token.Bound(nil) {
		t.Errorf("%+v, %v", token, err)
	}
	if free := (&Token{}); !free.Bound(nil) || !free.Bound(mine) {
		t.Error("a token that is bound to nothing does not count")
	}
}

// TestBearer: what an Authorization says.
func TestBearer(t *testing.T) {
	for _, c := range []struct {
		values []string
		text   string
		kind   Scheme
	}{
		{nil, "", NoScheme},
		{[]string{""}, "", NoScheme},
		{[]string{"Bearer"}, "", NoScheme},
		{[]string{"bearer  "}, "", NoScheme},
		{[]string{"Bearer abc"}, "abc", BearerScheme},
		{[]string{"bEARER  a.b-c_d~e+f/g=="}, "a.b-c_d~e+f/g==", BearerScheme},
		{[]string{"Basic YTpi"}, "YTpi", BasicScheme},
		{[]string{"Digest a=b"}, "", OtherScheme},
		{[]string{"Bearerabc"}, "", OtherScheme},
		{[]string{"Bearer a b"}, "", BadScheme},
		{[]string{"Bearer =a"}, "", BadScheme},
		{[]string{"Bearer a,Bearer b"}, "", BadScheme},
		{[]string{"Basic"}, "", BadScheme},
		{[]string{"Bearer a", "Bearer a"}, "", BadScheme},
		{[]string{"Bearer é"}, "", BadScheme},
	} {
		if text, kind := Bearer(http.Header{"Authorization": c.values}); text != c.text || kind != c.kind {
			t.Errorf("%q: %q, %d; want %q, %d", c.values, text, kind, c.text, c.kind)
		}
	}
}

// FuzzBearer: a token holds nothing that could break a line or a header.
func FuzzBearer(f *testing.F) {
	f.Add("Bearer abc")
	f.Add("bearer  \t")
	f.Fuzz(func(t *testing.T, value string) {
		text, kind := Bearer(http.Header{"Authorization": {value}})
		if (text != "") != (kind == BearerScheme || kind == BasicScheme) || strings.ContainsAny(text, " ,\"\r\n\t\x00") {
			t.Errorf("%q, %d", text, kind)
		}
	})
}

// FuzzForm: whatever is sent, nobody gets a token who has proved nothing, and every answer is OAuth's.
func FuzzForm(f *testing.F) {
	s := newTokenServer(f)
	s.Seen = nil
	f.Add("grant_type=client_credentials&scope=system/*.rs&client_assertion_type="+url.QueryEscape(assertionType)+"&client_assertion=a.b.c", "")
	f.Add("grant_type=client_credentials", "Basic YTpi")
	f.Add("%zz&;", "Bearer")
	f.Fuzz(func(t *testing.T, body, authorization string) {
		w := s.post(body, http.Header{"Authorization": {authorization}})
		var say refused
		if err := json.Unmarshal(w.Body.Bytes(), &say); err != nil || w.Code < 400 || w.Code >= 500 || say.Code == "" || say.Description != describable(say.Description) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}
