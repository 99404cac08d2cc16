package smart

import (
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const issuer = "https://login.example.org/realms/hospital"

// newExternal is an issuer with a key, and how it signs: header and claims change what is good.
func newExternal(t testing.TB) (e *External, mint func(header, claims map[string]any) string, asked *int) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	key, asked := newSigner(t, jose.RS256, "k"), new(int)
	keys := setOf(t, key.public())
	e = &External{
		Issuer: issuer, Audience: "https://bulk.example.org/fhir", KeysURL: issuer + "/certs", Now: func() time.Time { return now },
		Keys: func(_ context.Context, url, _ string) (Keys, error) {
			if *asked++; url != issuer+"/certs" {
				t.Errorf("keys of %s", url)
			}
			return keys, nil
		},
	}
	return e, func(header, claims map[string]any) string {
		h := map[string]any{"typ": "at+jwt"}
		maps.Copy(h, header)
		c := map[string]any{"iss": issuer, "sub": "app", "client_id": "app", "aud": e.Audience, "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "jti": "1", "scope": "system/*.rs openid"}
		maps.Copy(c, claims)
		maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
		return key.sign(t, h, c)
	}, asked
}

// TestExternal: tokens of programs by the issuer for us count, and nothing else.
func TestExternal(t *testing.T) {
	e, mint, asked := newExternal(t)
	type m = map[string]any
	at := func(d time.Duration) int64 { return e.Now().Add(d).Unix() }
	for name, text := range map[string]string{
		"good": mint(nil, nil), "with application/": mint(m{"typ": "application/AT+JWT"}, nil), "for several": mint(nil, m{"aud": []string{"x", e.Audience}}),
		"clocks apart":     mint(nil, m{"exp": at(-59 * time.Second), "nbf": at(59 * time.Second), "iat": at(59 * time.Second)}),
		"scopes as a list": mint(nil, m{"scope": []string{"system/*.rs", "x"}}), "scp": mint(nil, m{"scope": nil, "scp": []string{"system/*.rs"}}),
		"a list of one client":             mint(nil, m{"client_id": []string{"app"}}),
		"sub is another's, but it says so": mint(nil, m{"sub": "app@clients", "gty": "client-credentials"}), "so does another": mint(nil, m{"sub": "0-1-2", "idtyp": "app"}),
	} {
		token, err := e.Check(t.Context(), text)
		if err != nil || token.Client != "app" || token.Issuer != issuer || token.Serial != 0 || token.ID != "1" || token.Rights.String() != "system/*.rs" {
			t.Errorf("%s: %+v, %v", name, token, err)
		}
	}
	der, _ := x509.MarshalPKIXPublicKey(newSigner(t, jose.RS256, "k").key.Public())
	claims := m{"iss": issuer, "sub": "app", "client_id": "app", "aud": e.Audience, "exp": at(time.Hour), "scope": "system/*.rs"}
	strange := newSigner(t, jose.RS256, "k")
	*asked = 0
	for name, text := range map[string]string{
		"nothing": "", "none": "eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0Iiwia2lkIjoiayJ9.e30.", "HS256": hmacSigned(t, "k", der, claims), "too long": strings.Repeat("a", maxToken+1),
		"another issuer": mint(nil, m{"iss": "https://evil.example.org"}), "a slash more": mint(nil, m{"iss": issuer + "/"}), "no issuer": mint(nil, m{"iss": nil}),
		"an ID token": mint(m{"typ": "JWT"}, nil), "no typ": mint(m{"typ": nil}, nil),
	} {
		if token, err := e.Check(t.Context(), text); !errors.Is(err, ErrToken) || err.Error() != ErrToken.Error() || Why(err) == "" || token.Client != "" {
			t.Errorf("%s: %+v, %v: %s", name, token, err, Why(err))
		}
	}
	if *asked != 0 {
		t.Errorf("strangers made us ask for keys %d times", *asked)
	}
	for name, text := range map[string]string{
		"another's signature": strange.sign(t, m{"typ": "at+jwt"}, claims), "another algorithm": signer{jose.ES384, "k", newSigner(t, jose.ES384, "").key}.sign(t, m{"typ": "at+jwt"}, claims),
		"an unknown kid": signer{jose.RS256, "x", strange.key}.sign(t, m{"typ": "at+jwt"}, claims), "changed": tampered(mint(nil, nil)),
		"for another": mint(nil, m{"aud": "https://other.example.org"}), "for nobody": mint(nil, m{"aud": nil}), "no exp": mint(nil, m{"exp": nil}),
		"not yet": mint(nil, m{"nbf": at(61 * time.Second)}), "from the future": mint(nil, m{"iat": at(61 * time.Second)}),
		"no client": mint(nil, m{"client_id": nil}), "several clients": mint(nil, m{"client_id": []string{"app", "other"}}), "a number": mint(nil, m{"client_id": 7}), "no sub": mint(nil, m{"sub": nil}),
		"a user": mint(nil, m{"sub": "alice"}), "a user's session": mint(nil, m{"auth_time": 1}), "a nonce": mint(nil, m{"nonce": "x"}), "at_hash": mint(nil, m{"at_hash": "x"}),
		"for somebody": mint(nil, m{"act": m{"sub": "x"}}), "a user who says otherwise": mint(nil, m{"sub": "alice", "gty": []string{"client-credentials"}}),
		"bound to a key": mint(nil, m{"cnf": m{"jkt": "x"}}), "bound to nothing": mint(nil, m{"cnf": "x"}),
	} {
		if token, err := e.Check(t.Context(), text); !errors.Is(err, ErrToken) || err.Error() != ErrToken.Error() || Why(err) == "" || token.Client != "" {
			t.Errorf("%s: %+v, %v: %s", name, token, err, Why(err))
		}
	}
	if _, err := e.Check(t.Context(), mint(nil, m{"exp": at(-time.Minute)})); !errors.Is(err, ErrExpired) {
		t.Errorf("expired: %v", err)
	}
	if token, err := e.Check(t.Context(), mint(nil, m{"scope": 7})); err != nil || token.Rights != nil {
		t.Errorf("scopes that are none: %v, %v", token.Rights, err)
	}
	certificate := &x509.Certificate{Raw: []byte("mine")}
	if token, err := e.Check(t.Context(), mint(nil, m{"cnf": m{"x5t#S256": thumbprint(certificate)}})); err != nil || !token.Bound(certificate) || token.Bound(nil) {
		t.Errorf("bound: %+v, %v", token, err)
	}
	e.Keys = func(context.Context, string, string) (Keys, error) { return nil, errors.New("away") }
	if _, err := e.Check(t.Context(), mint(nil, nil)); !errors.Is(err, ErrIssuer) || errors.Is(err, ErrToken) {
		t.Errorf("the issuer is away: %v", err)
	}
}

// TestExternalConfigured: claims of other names.
func TestExternalConfigured(t *testing.T) {
	e, mint, _ := newExternal(t)
	e.ClientClaim, e.ScopeClaim, e.TokenTypes, e.Programs = "azp", "roles", []string{"JWT"}, []Mark{{"kind", "robot"}}
	good := map[string]any{"azp": "robot", "client_id": nil, "kind": "robot", "roles": "system/Patient.rs", "scp": "system/*.rs"}
	token, err := e.Check(t.Context(), mint(map[string]any{"typ": "JWT"}, good))
	if err != nil || token.Client != "robot" || token.Rights.String() != "system/Patient.rs" {
		t.Errorf("%+v, %v", token, err)
	}
	good["kind"], good["gty"] = nil, "client-credentials"
	if _, err := e.Check(t.Context(), mint(map[string]any{"typ": "JWT"}, good)); !errors.Is(err, ErrToken) {
		t.Errorf("what says so in others' words: %v", err)
	}
}

// TestModes: tokens of one mode never count in the other.
func TestModes(t *testing.T) {
	e, mint, _ := newExternal(t)
	m := &Minter{Issuer: issuer, Secrets: []Secret{{ID: "k", Key: NewSecret().Key}}, Now: e.Now}
	e.Audience = m.Issuer
	ours, _, err := m.Mint(Client{ID: "app"}, Parse("system/*.rs"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Check(t.Context(), ours); !errors.Is(err, ErrToken) {
		t.Errorf("ours there: %v", err)
	}
	theirs := mint(nil, nil)
	if _, err := e.Check(t.Context(), theirs); err != nil {
		t.Errorf("theirs there: %v", err)
	}
	if _, err := m.Check(theirs); !errors.Is(err, ErrToken) {
		t.Errorf("theirs here: %v", err)
	}
}

// FuzzToken: whatever is presented, nobody is let in who has no token, in either mode.
func FuzzToken(f *testing.F) {
	e, mint, _ := newExternal(f)
	e.Now = nil // what is made here expires before
	e.Audience = "elsewhere"
	m := &Minter{Issuer: issuer, Secrets: []Secret{NewSecret()}}
	f.Add(tampered(mint(nil, nil)))
	f.Add("eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.e30.")
	f.Fuzz(func(t *testing.T, text string) {
		if token, err := e.Check(t.Context(), text); err == nil {
			t.Errorf("%+v", token)
		}
		if token, err := m.Check(text); err == nil {
			t.Errorf("%+v", token)
		}
	})
}
