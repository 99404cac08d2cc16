package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"tidemark/api/clients"
	"tidemark/api/smart"
)

// TestGateCertificate: a token that was asked for with a certificate counts with no other.
func TestGateCertificate(t *testing.T) {
	mine, other := &x509.Certificate{Raw: []byte("mine")}, &x509.Certificate{Raw: []byte("other")}
	minter := smart.Minter{Issuer: "http://tidemark.test/fhir", Secrets: []smart.Secret{smart.NewSecret()}}
	text, _, err := minter.MintFor(smart.Client{ID: "c", Serial: 1}, clients.Anything.Rights(), mine)
	if err != nil {
		t.Fatal(err)
	}
	g := Gate{
		Needed: true,
		Token:  func(_ context.Context, text string) (smart.Token, error) { return minter.Check(text) },
		Client: func(*smart.Token) (clients.Client, bool) {
			return clients.Client{ID: "c", Serial: 1, May: clients.Anything}, true
		},
	}
	for _, c := range []struct {
		name   string
		shown  *x509.Certificate
		enters bool
	}{{"the same", mine, true}, {"another", other, false}, {"none", nil, false}} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", "Bearer "+text)
		if c.shown != nil {
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{c.shown}}}
		}
		_, err := g.Enter(r)
		if challenge, refused := errors.AsType[*Challenge](err); refused == c.enters || refused && challenge.Code != "invalid_token" {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestGateCertificates: where clients prove a certificate, a token that is bound to none
// does not count (decisions.md 6).
func TestGateCertificates(t *testing.T) {
	g := Gate{
		Needed: true, Certificates: true,
		Token: func(context.Context, string) (smart.Token, error) {
			return smart.Token{Serial: 1, Rights: clients.Anything.Rights()}, nil
		},
		Client: func(*smart.Token) (clients.Client, bool) {
			return clients.Client{ID: "c", Serial: 1, May: clients.Anything}, true
		},
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer x")
	if _, err := g.Enter(r); err == nil {
		t.Error("it counts")
	}
	g.Certificates = false
	if _, err := g.Enter(r); err != nil {
		t.Error(err)
	}
}

// TestGateUnavailable: that it cannot be told whose a token is, is not its client's fault.
func TestGateUnavailable(t *testing.T) {
	g := Gate{Needed: true, Token: func(context.Context, string) (smart.Token, error) { return smart.Token{}, smart.ErrIssuer }}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer x")
	if _, err := g.Enter(r); !errors.Is(err, smart.ErrIssuer) {
		t.Errorf("%v", err)
	}
}

// TestStill: what was taken from a client since it came in is seen; what it was given
// does no harm.
func TestStill(t *testing.T) {
	some := clients.Permission{Levels: []string{"patient"}, Scopes: "system/Patient.rs"}
	now := clients.Client{ID: "c", Serial: 1, May: some}
	known := true
	g := Gate{Client: func(*smart.Token) (clients.Client, bool) { return now, known }}
	c := &Caller{Client: "c", Serial: 1, Rights: some.Rights(), May: some}
	if !g.Still(c) || !g.Still(Anybody()) {
		t.Error("nothing was taken")
	}
	now.May = clients.Anything
	if !g.Still(c) {
		t.Error("something was given")
	}
	now.May = clients.Permission{Levels: []string{"patient"}, Scopes: "system/Observation.rs"}
	if g.Still(c) {
		t.Error("a scope was taken")
	}
	now.May, now.Disabled = some, true
	if g.Still(c) {
		t.Error("it was disabled")
	}
	now.Disabled, now.Serial = false, 2
	if g.Still(c) {
		t.Error("another of the same name")
	}
	if now.Serial, known = 1, false; g.Still(c) {
		t.Error("it was removed")
	}
}

// TestOwner: no two clients are the same owner, whoever knows them.
func TestOwner(t *testing.T) {
	seen := map[Owner]bool{}
	for _, o := range []Owner{OwnerOf("", 0), OwnerOf("", 1), OwnerOf("", 11), OwnerOf("https://a", 1), OwnerOf("https://b", 1)} {
		if seen[o] {
			t.Errorf("%q twice", o)
		}
		seen[o] = true
	}
	if Anybody().Owner() != "" {
		t.Error("who has no token owns something")
	}
}
