package smart

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const endpoint = "https://bulk.example.org/auth/token"

// A signer signs as a client does.
type signer struct {
	alg jose.SignatureAlgorithm
	kid string
	key crypto.Signer
}

func newSigner(t testing.TB, alg jose.SignatureAlgorithm, kid string) signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch alg {
	case jose.ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.ES512:
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case jose.EdDSA:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return signer{alg, kid, key}
}

func (s signer) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: s.key.Public(), KeyID: s.kid}
}

// sign makes an assertion; header adds to what a client says there.
func (s signer) sign(t testing.TB, header, claims map[string]any) string {
	t.Helper()
	options := &jose.SignerOptions{}
	if _, other := header["typ"]; !other {
		options = options.WithType("JWT")
	}
	for name, value := range header {
		if value == nil {
			continue
		}
		options = options.WithHeader(jose.HeaderKey(name), value)
	}
	made, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: jose.JSONWebKey{Key: s.key, KeyID: s.kid}}, options)
	if err != nil {
		t.Fatal(err)
	}
	return compact(t, made, claims)
}

func compact(t testing.TB, by jose.Signer, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := by.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func setOf(t testing.TB, keys ...jose.JSONWebKey) Keys {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	set, err := ParseKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// memory is a guard that forgets nothing.
func memory() func([]byte, time.Time) (bool, error) {
	var mu sync.Mutex
	seen := map[string]bool{}
	return func(id []byte, _ time.Time) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		first := !seen[string(id)]
		seen[string(id)] = true
		return first, nil
	}
}

// TestAssertion: every fault of an assertion has its answer, and only what has none is
// let in (RFC 7523, SMART 2.2.0).
func TestAssertion(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	ours, others := newSigner(t, jose.ES384, "ec"), newSigner(t, jose.ES384, "ec")
	rsaKey, twice := newSigner(t, jose.RS384, "rsa"), newSigner(t, jose.ES384, "twice")
	url := "https://client.example.org/jwks"
	clients := map[string]Client{
		"app":     {ID: "app", Serial: 1, Keys: setOf(t, ours.public(), rsaKey.public(), twice.public(), newSigner(t, jose.ES384, "twice").public())},
		"fetched": {ID: "fetched", Serial: 2, KeysURL: url},
		"other":   {ID: "other", Serial: 3, Keys: setOf(t, others.public())},
	}
	fetched := 0
	v := &Verifier{
		Client: func(id string) (Client, bool) { c, ok := clients[id]; return c, ok },
		Fetch: func(_ context.Context, at, kid string) (Keys, error) {
			if fetched++; at != url {
				t.Errorf("fetched from %s", at)
			}
			return setOf(t, ours.public()), nil
		},
		Once: memory(), Audience: []string{endpoint, "http://127.0.0.1:8080/auth/token"}, Now: func() time.Time { return now },
	}
	n := 0
	claims := func(changes map[string]any) map[string]any {
		n++
		c := map[string]any{"iss": "app", "sub": "app", "aud": endpoint, "exp": now.Add(5 * time.Minute).Unix(), "jti": fmt.Sprint(n)}
		maps.Copy(c, changes)
		for name, value := range c {
			if value == nil {
				delete(c, name)
			}
		}
		return c
	}
	with := func(changes map[string]any) string { return ours.sign(t, nil, claims(changes)) }
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	unsigned := func(alg string, secret []byte) string {
		if secret != nil {
			return hmacSigned(t, "ec", secret, claims(nil))
		}
		encode := func(v any) string { b, _ := json.Marshal(v); return base64.RawURLEncoding.EncodeToString(b) }
		return encode(map[string]any{"alg": alg, "typ": "JWT", "kid": "ec"}) + "." + encode(claims(nil)) + "."
	}
	der, err := x509.MarshalPKIXPublicKey(ours.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	used := with(nil)
	if c, err := v.Verify(t.Context(), used); err != nil || c.Serial != 1 {
		t.Fatalf("a good one is %v, %v", c, err)
	}
	for _, c := range []struct{ name, assertion, says string }{
		{"by another algorithm", rsaKey.sign(t, nil, claims(nil)), ""},
		{"a URL behind a proxy", with(map[string]any{"aud": []string{"x", "http://127.0.0.1:8080/auth/token"}}), ""},
		{"clocks apart", with(map[string]any{"exp": at(-59 * time.Second), "iat": at(59 * time.Second), "nbf": at(59 * time.Second)}), ""},
		{"clocks apart, the other way", with(map[string]any{"exp": at(5*time.Minute + 59*time.Second)}), ""},
		{"keys that are fetched", ours.sign(t, nil, claims(map[string]any{"iss": "fetched", "sub": "fetched"})), ""},
		{"and their URL is named", ours.sign(t, map[string]any{"jku": url}, claims(map[string]any{"iss": "fetched", "sub": "fetched"})), ""},
		{"without a typ", ours.sign(t, map[string]any{"typ": nil}, claims(nil)), ""},
		{"a typ in small letters", ours.sign(t, map[string]any{"typ": "jwt"}, claims(nil)), ""},

		{"nothing", "", "not a JWT"},
		{"no JWT", "a.b.c", "not a JWT"},
		{"too long", strings.Repeat("a", maxAssertion+1), "bytes"},
		{"algorithm none", unsigned("none", nil), "not a JWT that is signed"},
		{"HS256 with the public key", unsigned("", der), "not a JWT that is signed"},
		{"another typ", ours.sign(t, map[string]any{"typ": "at+jwt"}, claims(nil)), "typ"},
		{"no kid", signer{jose.ES384, "", ours.key}.sign(t, nil, claims(nil)), "kid"},
		{"an unknown kid", signer{jose.ES384, "no", ours.key}.sign(t, nil, claims(nil)), `no key with the kid "no"`},
		{"two keys with one kid", twice.sign(t, nil, claims(nil)), "or several"},
		{"the wrong kty", signer{jose.RS384, "ec", rsaKey.key}.sign(t, nil, claims(nil)), `for "RS384"`},
		{"another curve", signer{jose.ES256, "ec", newSigner(t, jose.ES256, "").key}.sign(t, nil, claims(nil)), `for "ES256"`},
		{"another's signature", others.sign(t, nil, claims(nil)), "signature"},
		{"claims that were changed", tampered(with(nil)), "signature"},
		{"a foreign jku", ours.sign(t, map[string]any{"jku": "https://evil.example.org/jwks"}, claims(map[string]any{"iss": "fetched", "sub": "fetched"})), "jku"},
		{"a jku where keys are kept", ours.sign(t, map[string]any{"jku": url}, claims(nil)), "jku"},
		{"an empty jku", ours.sign(t, map[string]any{"jku": ""}, claims(nil)), "jku"},
		{"an unknown client", with(map[string]any{"iss": "nobody", "sub": "nobody"}), `"nobody", is no client`},
		{"no iss", with(map[string]any{"iss": nil}), "no client"},
		{"iss that is not sub", with(map[string]any{"sub": "other"}), "sub"},
		{"no sub", with(map[string]any{"sub": nil}), "sub"},
		{"another's name", with(map[string]any{"iss": "other", "sub": "other"}), "signature"},
		{"a wrong aud", with(map[string]any{"aud": "https://bulk.example.org/auth/token/"}), "aud"},
		{"no aud", with(map[string]any{"aud": nil}), "aud"},
		{"no exp", with(map[string]any{"exp": nil}), "exp"},
		{"expired", with(map[string]any{"exp": at(-61 * time.Second)}), "expired"},
		{"exp too far", with(map[string]any{"exp": at(5*time.Minute + 61*time.Second)}), "five minutes"},
		{"exp for ever", with(map[string]any{"exp": 1e15}), "five minutes"},
		{"exp as text", with(map[string]any{"exp": "soon"}), "claims"},
		{"not yet", with(map[string]any{"nbf": at(61 * time.Second)}), "nbf"},
		{"from the future", with(map[string]any{"iat": at(61 * time.Second)}), "iat"},
		{"no jti", with(map[string]any{"jti": nil}), "jti"},
		{"a jti too long", with(map[string]any{"jti": strings.Repeat("a", maxJTI+1)}), "jti"},
		{"used before", used, "used before"},
		{"the jti used before", with(map[string]any{"jti": "1"}), "used before"},
	} {
		client, err := v.Verify(t.Context(), c.assertion)
		refused, is := errors.AsType[*Refusal](err)
		switch {
		case c.says == "" && (err != nil || client.ID == ""):
			t.Errorf("%s: refused: %v", c.name, err)
		case c.says != "" && (!is || refused.Code != "invalid_client" || !strings.Contains(refused.Description, c.says) || client.ID != ""):
			t.Errorf("%s: %v, %v; want invalid_client that says %s", c.name, client, err, c.says)
		case is && len(refused.Description) > 300:
			t.Errorf("%s: %d bytes of a description", c.name, len(refused.Description))
		}
	}
	if fetched != 2 {
		t.Errorf("keys were fetched %d times, want 2: not for whom nobody knows, nor for a foreign jku", fetched)
	}
	v.Once = func([]byte, time.Time) (bool, error) { return false, errors.New("no room") }
	if c, err := v.Verify(t.Context(), with(nil)); err == nil || c.ID == "" && errors.As(err, new(*Refusal)) {
		t.Errorf("when nothing can be remembered: %v, %v", c, err)
	}
}

// TestAssertionIsKept: an assertion is remembered for as long as it could be used.
func TestAssertionIsKept(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	key := newSigner(t, jose.ES384, "k")
	var ids [][]byte
	var until time.Time
	v := &Verifier{
		Client: func(id string) (Client, bool) { return Client{ID: id, Keys: setOf(t, key.public())}, true },
		Once: func(id []byte, at time.Time) (bool, error) {
			ids, until = append(ids, slices.Clone(id)), at
			return true, nil
		},
		Audience: []string{endpoint}, Now: func() time.Time { return now },
	}
	exp := now.Add(4 * time.Minute)
	for _, c := range [][2]string{{"app", "1"}, {"app", "2"}, {"app1", ""}, {"other", "1"}} {
		if c[1] == "" {
			c[1] = "1"
		}
		text := key.sign(t, nil, map[string]any{"iss": c[0], "sub": c[0], "aud": endpoint, "exp": exp.Unix(), "jti": c[1]})
		if _, err := v.Verify(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	if !until.Equal(exp.Add(Leeway)) {
		t.Errorf("kept until %v, may be used until %v", until, exp.Add(Leeway))
	}
	for i := range ids {
		for j := range i {
			if string(ids[i]) == string(ids[j]) {
				t.Errorf("assertions %d and %d are one", i, j)
			}
		}
	}
}

// tampered is an assertion whose claims somebody changed.
func tampered(text string) string {
	parts := strings.Split(text, ".")
	claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
	changed := strings.Replace(string(claims), `"aud"`, `"xyz":1,"aud"`, 1)
	return parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(changed)) + "." + parts[2]
}

func hmacSigned(t testing.TB, kid string, secret []byte, claims map[string]any) string {
	t.Helper()
	made, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: secret}, (&jose.SignerOptions{}).WithHeader("kid", kid))
	if err != nil {
		t.Fatal(err)
	}
	return compact(t, made, claims)
}

// TestParseKeys: which key sets are taken, and that no error repeats a key.
func TestParseKeys(t *testing.T) {
	private := func(alg jose.SignatureAlgorithm) string {
		s := newSigner(t, alg, "k")
		text, err := json.Marshal(jose.JSONWebKey{Key: s.key, KeyID: "k"})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	public := func(alg jose.SignatureAlgorithm, kid string) string {
		text, err := json.Marshal(newSigner(t, alg, kid).public())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	short, _ := json.Marshal(jose.JSONWebKey{Key: weak.Public(), KeyID: "k"})
	for _, c := range []struct {
		name, set string
		n         int
		says      string
	}{
		{"one of each", `{"keys":[` + public(jose.RS384, "a") + "," + public(jose.ES256, "b") + "," + public(jose.EdDSA, "c") + `],"more":1}`, 3, ""},
		{"kinds that nobody knows", `{"keys":[{"kty":"NEW","kid":"n"},` + public(jose.ES384, "a") + `]}`, 1, ""},
		{"only such", `{"keys":[{"kty":"NEW","kid":"n"}]}`, 0, "no key that signs"},
		{"none", `{"keys":[]}`, 0, "no key that signs"},
		{"no set", `[]`, 0, "no JSON Web Key Set"},
		{"a key alone", public(jose.ES384, "a"), 0, "no JSON Web Key Set"},
		{"no JSON", `SECRET`, 0, "no JSON Web Key Set"},
		{"too long", `{"keys":[]}` + strings.Repeat(" ", MaxKeys), 0, "more than"},
		{"without kid", `{"keys":[` + public(jose.ES384, "") + `]}`, 0, "no kid"},
		{"private", `{"keys":[` + private(jose.ES384) + `]}`, 0, "private"},
		{"private RSA", `{"keys":[` + public(jose.ES384, "a") + "," + private(jose.RS384) + `]}`, 0, "key 2"},
		{"secret", `{"keys":[{"kty":"oct","kid":"k","k":"U0VDUkVU"}]}`, 0, "secret"},
		{"short", `{"keys":[` + string(short) + `]}`, 0, "1024 bits"},
		{"half", `{"keys":[{"kty":"EC","kid":"k","crv":"P-384","x":"AAAA"}]}`, 0, "cannot be used"},
		{"no point of the curve", `{"keys":[{"kty":"EC","kid":"k","crv":"P-256","x":"` + strings.Repeat("A", 43) + `","y":"` + strings.Repeat("A", 43) + `"}]}`, 0, "cannot be used"},
		{"no object", `{"keys":[1]}`, 0, "not an object"},
		{"a number for a text", `{"keys":[{"kty":"EC","kid":7}]}`, 0, "no strings"},
	} {
		keys, err := ParseKeys([]byte(c.set))
		if len(keys) != c.n || (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %d keys, %v; want %d, %s", c.name, len(keys), err, c.n, c.says)
		}
		if err != nil && (strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "U0VD") || strings.Contains(err.Error(), "AAAA")) {
			t.Errorf("%s: the error repeats the key: %v", c.name, err)
		}
	}
}

// TestKeysFit: what a key is meant for counts.
func TestKeysFit(t *testing.T) {
	key := newSigner(t, jose.ES384, "k").public()
	for _, c := range []struct {
		use, alg string
		alone    bool
	}{{"", "", true}, {"sig", "ES384", true}, {"enc", "", false}, {"sig", "ES256", false}} {
		key.Use, key.Algorithm = c.use, c.alg
		if found, known := (Keys{key}).find("k", jose.ES384); (found != nil) != c.alone || !known {
			t.Errorf("use %q, alg %q: %v", c.use, c.alg, found)
		}
	}
	enc, sig := key, newSigner(t, jose.ES384, "k").public()
	enc.Use, enc.Algorithm = "enc", ""
	if found, _ := (Keys{enc, sig}).find("k", jose.ES384); found == nil || found.Key != sig.Key {
		t.Error("a key that encrypts stands in the way of one that signs")
	}
}

// FuzzAssertion: whatever is said, nobody is let in who has not signed.
func FuzzAssertion(f *testing.F) {
	key := newSigner(f, jose.ES384, "k")
	f.Add(key.sign(f, nil, map[string]any{"iss": "app", "sub": "app", "aud": "elsewhere", "exp": 1, "jti": "1"}))
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	keys := setOf(f, key.public())
	v := &Verifier{
		Client: func(id string) (Client, bool) { return Client{ID: id, Keys: keys}, id == "app" },
		Once:   memory(), Audience: []string{endpoint},
	}
	f.Fuzz(func(t *testing.T, assertion string) {
		if c, err := v.Verify(t.Context(), assertion); err == nil {
			t.Errorf("%v is let in", c)
		}
	})
}
