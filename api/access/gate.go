package access

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"tidemark/api/clients"
	"tidemark/api/smart"
)

// A Gate finds out who sent a request. Every route is behind it that is not for
// everybody.
type Gate struct {
	// Needed: nobody is let in without a token. Else whoever has none is anybody, and
	// who has one is bound by it (decisions.md 6).
	Needed bool
	// Token reads an access token. ErrToken and ErrExpired of package smart are the
	// client's fault, another error means that it cannot be told now.
	Token func(ctx context.Context, text string) (smart.Token, error)
	// Certificates: clients prove one, and tokens that are bound to none do not count.
	Certificates bool
	// Issuer of the tokens; "": this server.
	Issuer string
	// Client finds out whose a token is.
	Client func(t *smart.Token) (clients.Client, bool)
}

// Enter finds out who sent a request: a *Challenge if it cannot be told and must be.
func (g *Gate) Enter(r *http.Request) (*Caller, error) {
	text, scheme := smart.Bearer(r.Header)
	switch {
	case scheme == smart.BadScheme:
		return nil, &Challenge{Code: "invalid_request", Text: "the Authorization header cannot be read, or there are several: right is one, Bearer and a token"}
	case scheme != smart.BearerScheme && !g.Needed:
		return Anybody(), nil
	case scheme != smart.BearerScheme:
		return nil, &Challenge{Text: "this needs an access token (Authorization: Bearer ...): /.well-known/smart-configuration under the base tells where it is to be had"}
	}
	token, err := g.Token(r.Context(), text)
	if errors.Is(err, smart.ErrToken) || errors.Is(err, smart.ErrExpired) {
		return nil, &Challenge{Code: "invalid_token", Text: err.Error(), Cause: err}
	}
	if err != nil {
		return nil, fmt.Errorf("check an access token: %w", err)
	}
	if !token.Bound(certificate(r)) || g.Certificates && token.Certificate == "" {
		return nil, &Challenge{Code: "invalid_token", Text: "the access token counts only with the certificate with which it was asked for"}
	}
	return g.caller(&token)
}

// certificate is that which a connection has proved, nil if none.
func certificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	return r.TLS.VerifiedChains[0][0]
}

// caller is whose a token is, and what is left of what it lets: since it was made
// something may have been taken from its client.
func (g *Gate) caller(t *smart.Token) (*Caller, error) {
	c, known := g.Client(t)
	if !known || c.Disabled {
		return nil, &Challenge{Code: "invalid_token", Text: "the client of the access token is not known here, or not any more, or is disabled"}
	}
	rights, err := c.May.Rights().Grant(t.Rights.String())
	if err != nil {
		return nil, &Denied{Text: "none of the scopes of the access token is permitted to its client", Scope: true}
	}
	return &Caller{Issuer: g.Issuer, Client: c.ID, Serial: c.Serial, Token: t.ID, Rights: rights, May: c.May, Limits: c.Limits}, nil
}

// Still tells whether a caller may still do all that he might when he came in.
func (g *Gate) Still(c *Caller) bool {
	if c.Serial == 0 {
		return true
	}
	of, known := g.Client(&smart.Token{Client: c.Client, Serial: c.Serial})
	return known && !of.Disabled && of.Serial == c.Serial && c.May.Within(&of.May)
}
