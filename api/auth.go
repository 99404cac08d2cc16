package api

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"

	"tidemark/api/access"
	"tidemark/api/clients"
	"tidemark/api/smart"
)

// Auth is who may read. The zero value asks for no tokens, and gives none.
type Auth struct {
	// Needed: nobody reads without a token (auth.mode is not none).
	Needed bool
	// Clients are those who can have tokens; nil: nobody can.
	Clients Clients
	// Secrets sign tokens of this server, and URLs: the first signs, all are known. None:
	// nothing is signed.
	Secrets []smart.Secret
	// Lifetime of tokens (auth.token_lifetime), 5 min at most.
	Lifetime time.Duration
	// Audiences are further URLs of the token endpoint, beside that under PublicURL
	// (auth.audiences).
	Audiences []string
	// Fetcher of the keys that clients keep at a URL.
	Fetcher *smart.Fetcher
	// External knows the tokens of another server (auth.mode is external): then ours count
	// for nothing, and none are given.
	External *smart.External
	// SignedURLs is how long the URLs of output files work, without a token, that a
	// manifest gives (capability.ttl); 0: files need a token as everything else does.
	SignedURLs time.Duration
	// Certificates: nobody gets in without one (http.tls.client_ca_file), and tokens are
	// bound to it.
	Certificates bool
	// Once tells whether nobody has said something before (store.DB.Once).
	Once func(said []byte, until time.Time) (bool, error)
}

// Clients are those who can have tokens, as clients.Registry knows them.
type Clients interface {
	ByID(id string) (clients.Client, bool)
	BySerial(serial uint64) (clients.Client, bool)
	// Prover is one as it proves itself by a signature.
	Prover(id string) (smart.Client, bool)
	List() []clients.Client
}

// nobody can have a token.
type nobody struct{}

func (nobody) ByID(string) (clients.Client, bool)     { return clients.Client{}, false }
func (nobody) BySerial(uint64) (clients.Client, bool) { return clients.Client{}, false }
func (nobody) Prover(string) (smart.Client, bool)     { return smart.Client{}, false }
func (nobody) List() []clients.Client                 { return nil }

func (a Auth) withDefaults() Auth {
	if a.Clients == nil {
		a.Clients = nobody{}
	}
	if a.Fetcher == nil {
		a.Fetcher = &smart.Fetcher{}
	}
	return a
}

// UseSecrets has other secrets sign from now on: Auth.Secrets in place of those before.
func (s *Server) UseSecrets(list []smart.Secret) { s.secrets.Store(&list) }

// minter makes tokens of this server and knows them again, by the secrets of now.
func (s *Server) minter() *smart.Minter {
	return &smart.Minter{Issuer: s.o.PublicURL, Secrets: *s.secrets.Load(), Lifetime: s.o.Auth.Lifetime}
}

// newGate is where requests come in.
func (s *Server) newGate() *access.Gate {
	a := s.o.Auth
	if e := a.External; e != nil {
		return &access.Gate{
			Needed: a.Needed, Issuer: e.Issuer, Token: e.Check, Certificates: s.certificates(),
			Client: func(t *smart.Token) (clients.Client, bool) { return a.Clients.ByID(t.Client) },
		}
	}
	return &access.Gate{
		Needed: a.Needed, Certificates: s.certificates(),
		Token:  func(_ context.Context, text string) (smart.Token, error) { return s.minter().Check(text) },
		Client: func(t *smart.Token) (clients.Client, bool) { return a.Clients.BySerial(t.Serial) },
	}
}

// certificates tells whether clients prove one to get in at all (mutual TLS).
func (s *Server) certificates() bool { return s.o.Auth.Certificates }

// givesTokens tells whether clients get tokens here.
func (s *Server) givesTokens() bool {
	a := &s.o.Auth
	return a.External == nil && len(a.Secrets) > 0 && a.Once != nil
}

// TokenPath is the token endpoint's under the base.
const TokenPath = "/auth/token"

// tokenURL is where clients get tokens of this server, "" if they get none here.
func (s *Server) tokenURL() string {
	if !s.givesTokens() {
		return ""
	}
	return s.o.PublicURL + TokenPath
}

// endpoint gives tokens.
func (s *Server) endpoint(r *http.Request) *smart.Endpoint {
	a := s.o.Auth
	return &smart.Endpoint{
		Minter: s.minter(),
		Verifier: &smart.Verifier{
			Client: a.client, Fetch: a.Fetcher.Keys, Once: a.Once,
			Audience: append([]string{s.tokenURL()}, a.Audiences...),
		},
		Seen:       func(ctx context.Context, a smart.Attempt) error { return s.attempted(ctx, r, a) },
		RetryAfter: s.o.RetryAfter,
	}
}

// client is one as it asks for tokens.
func (a *Auth) client(id string) (smart.Client, bool) {
	c, known := a.Clients.Prover(id)
	of, still := a.Clients.BySerial(c.Serial)
	if !known || !still {
		return smart.Client{}, false
	}
	c.Rights = of.May.Rights()
	if of.SecretHash != "" {
		c.CheckSecret = of.CheckSecret
	}
	return c, true
}

// authRoutes mounts where clients learn how to get tokens, and where they get them.
func (s *Server) authRoutes(r chi.Router, open func(route string, h handler) http.Handler) {
	const discovery = base + "/.well-known/smart-configuration"
	if s.o.Auth.External != nil || s.givesTokens() {
		s.at(r, discovery, discovery, reading(open(discovery, s.discover)))
	}
	if s.givesTokens() {
		s.at(r, base+TokenPath, base+TokenPath, methods{http.MethodPost: open(base+TokenPath, func(w http.ResponseWriter, r *http.Request) error {
			s.endpoint(r).ServeHTTP(w, r)
			return nil
		})})
	}
}

// discover tells where and how clients get tokens.
func (s *Server) discover(w http.ResponseWriter, r *http.Request) error {
	d := smart.Discovery{
		TokenEndpoint: s.tokenURL(), External: s.o.Auth.External != nil,
		Secrets: slices.ContainsFunc(s.o.Auth.Clients.List(), func(c clients.Client) bool { return c.SecretHash != "" }),
		Bound:   s.certificates(),
	}
	d.ServeHTTP(w, r)
	return nil
}
