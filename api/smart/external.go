package smart

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// An External knows access tokens that another server has made (RFC 9068). Tokens of our own
// count for nothing there, and its tokens for nothing at a Minter.
//
// Only programs may come. A token is a program's if its sub is the client, or if a claim
// says so (Programs); if it speaks of a session or of somebody else it is a user's, whatever
// more it says, and an ID token is none that gives access. Both are refused.
type External struct {
	// Issuer is the iss, letter by letter (auth.external.issuer).
	Issuer string
	// Audience is what a token must be for (auth.external.audience).
	Audience string
	// KeysURL is where the issuer keeps its keys.
	KeysURL string
	// ClientClaim names the claim with the client (default client_id), and ScopeClaim that with
	// the scopes (default scope, or scp where there is none).
	ClientClaim, ScopeClaim string
	// TokenTypes are the typ that count (default at+jwt). One with JWT among them relies on the
	// other marks of ID tokens.
	TokenTypes []string
	// Programs are claims that say that a token is a program's by a value, where sub does not (default:
	// gty=client-credentials and idtyp=app).
	Programs map[string]string
	// Keys gets the issuer's keys, as Fetcher.Keys does.
	Keys func(ctx context.Context, url, kid string) (Keys, error)
	Now  func() time.Time // default time.Now
}

// ErrIssuer says that it cannot be told now whether a token is good.
var ErrIssuer = errors.New("the keys of the authorization server cannot be had")

// programs are what well-known servers say of tokens that no user has asked for.
var programs = map[string]string{"gty": "client-credentials", "idtyp": "app"}

// users are claims that only tokens about a user have: of ID tokens (OpenID Connect Core,
// 2; 3.1.3.6; 3.3.2.11), and of who acts for another (RFC 8693, 4.1).
var users = []string{"nonce", "at_hash", "c_hash", "s_hash", "auth_time", "act"}

// Check reads a token. ErrToken, ErrExpired, or ErrIssuer, which tells the operator why: no
// error tells a stranger what a right token would be.
func (e *External) Check(ctx context.Context, text string) (Token, error) {
	if len(text) > maxToken {
		return Token{}, ErrToken
	}
	signed, err := jwt.ParseSigned(text, Algorithms)
	if err != nil {
		return Token{}, ErrToken
	}
	header := signed.Headers[0]
	var said jwt.Claims
	if header.KeyID == "" || !e.takes(header.ExtraHeaders[jose.HeaderType]) ||
		signed.UnsafeClaimsWithoutVerification(&said) != nil || said.Issuer != e.Issuer || said.Issuer == "" {
		return Token{}, ErrToken // before anybody is asked for keys
	}
	keys, err := e.Keys(ctx, e.KeysURL, header.KeyID)
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	key, _ := keys.find(header.KeyID, jose.SignatureAlgorithm(header.Algorithm))
	var more map[string]any
	if key == nil || signed.Claims(key, &said, &more) != nil {
		return Token{}, ErrToken
	}
	return e.read(&said, more)
}

// takes tells whether a typ counts; application/ may stand before it (RFC 9068, 4).
func (e *External) takes(typ any) bool {
	text, _ := typ.(string)
	text = strings.TrimPrefix(strings.ToLower(text), "application/")
	types := e.TokenTypes
	if len(types) == 0 {
		types = []string{tokenType}
	}
	return slices.ContainsFunc(types, func(t string) bool { return strings.EqualFold(t, text) })
}

// read judges claims whose signature is right.
func (e *External) read(said *jwt.Claims, more map[string]any) (Token, error) {
	client := one(more[cmp.Or(e.ClientClaim, "client_id")])
	if client == "" || e.Audience == "" || !said.Audience.Contains(e.Audience) || said.Expiry == nil || !e.program(client, said.Subject, more) {
		return Token{}, ErrToken
	}
	certificate, ok := boundTo(more["cnf"])
	if !ok {
		return Token{}, ErrToken
	}
	now := e.now()
	switch late := now.Add(Leeway); {
	case said.NotBefore != nil && said.NotBefore.Time().After(late), said.IssuedAt != nil && said.IssuedAt.Time().After(late):
		return Token{}, ErrToken
	case !now.Before(said.Expiry.Time().Add(Leeway)):
		return Token{}, ErrExpired
	}
	return Token{
		ID: said.ID, Issuer: said.Issuer, Client: client, Rights: Parse(e.scopes(more)),
		Expires: said.Expiry.Time(), Certificate: certificate,
	}, nil
}

// program tells whether a token is a program's and nobody's else.
func (e *External) program(client, sub string, more map[string]any) bool {
	for _, name := range users {
		if _, there := more[name]; there {
			return false
		}
	}
	if sub == client {
		return true
	}
	marks := e.Programs
	if marks == nil {
		marks = programs
	}
	for name, value := range marks {
		if said, is := more[name].(string); is && said == value {
			return true
		}
	}
	return false
}

// scopes are those of a token, as a text or as a list of them.
func (e *External) scopes(more map[string]any) string {
	value, there := more[cmp.Or(e.ScopeClaim, "scope")]
	if !there && e.ScopeClaim == "" {
		value = more["scp"]
	}
	return strings.Join(texts(value), " ")
}

// texts are those of a claim that is one or a list of them; of anything else there are none.
func texts(value any) (list []string) {
	if text, is := value.(string); is {
		return []string{text}
	}
	all, _ := value.([]any)
	for _, v := range all {
		text, is := v.(string)
		if !is {
			return nil
		}
		list = append(list, text)
	}
	return list
}

// one is the only text of a claim: of several nobody knows which is meant.
func one(value any) string {
	if list := texts(value); len(list) == 1 {
		return list[0]
	}
	return ""
}

// boundTo is the certificate of a cnf. One that binds to something else is not ok: it
// would be as good as none.
func boundTo(cnf any) (certificate string, ok bool) {
	if cnf == nil {
		return "", true
	}
	members, _ := cnf.(map[string]any)
	certificate, _ = members["x5t#S256"].(string)
	return certificate, certificate != ""
}

func (e *External) now() time.Time {
	if e.Now == nil {
		return time.Now()
	}
	return e.Now()
}
