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
// more it says, and an ID token is none that gives access. Both are refused. Where the client
// is read from sub itself, that says nothing.
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
	// Programs say that a token is a program's, each alone, where sub does not; nil: DefaultPrograms.
	Programs []Mark
	// ScopeNames are what an issuer calls scopes that it cannot spell: whoever has one has these.
	ScopeNames map[string]string
	// Keys gets the issuer's keys, as Fetcher.Keys does.
	Keys func(ctx context.Context, url, kid string) (Keys, error)
	Now  func() time.Time // default time.Now
}

// ErrIssuer says that it cannot be told now whether a token is good.
var ErrIssuer = errors.New("the keys of the authorization server (auth.external.jwks_url) cannot be had")

// A tokenFault is ErrToken to who sent the token. What it holds is for the operator, and
// nothing of it comes from the token.
type tokenFault string

func (tokenFault) Error() string { return ErrToken.Error() }

// Is lets errors.Is find ErrToken.
func (tokenFault) Is(err error) bool { return err == ErrToken } //nolint:errorlint // as errors.Is wants it

// Why tells an operator what is wrong with a token of another server, of which Check said
// no more than ErrToken; "" if it is something else.
func Why(err error) string {
	f, _ := errors.AsType[tokenFault](err)
	return string(f)
}

// A Mark is a claim with a value, in which ClientMark stands for the client's id.
type Mark struct{ Claim, Value string }

// ClientMark is the client's id in the value of a Mark.
const ClientMark = "{client}"

// ParseMark reads a Mark that is written claim=value.
func ParseMark(text string) (m Mark, ok bool) {
	m.Claim, m.Value, ok = strings.Cut(text, "=")
	return m, ok && m.Claim != "" && m.Value != ""
}

// DefaultPrograms are what Auth0 and Microsoft Entra say of tokens that no user has asked for.
func DefaultPrograms() []Mark { return []Mark{{"gty", "client-credentials"}, {"idtyp", "app"}} }

// users are claims that only tokens about a user have: of ID tokens (OpenID Connect Core,
// 2; 3.1.3.6; 3.3.2.11), and of who acts for another (RFC 8693, 4.1).
var users = []string{"nonce", "at_hash", "c_hash", "s_hash", "auth_time", "act"}

// Check reads a token. ErrToken, ErrExpired, or ErrIssuer, which tells the operator why: no
// error tells a stranger what a right token would be.
func (e *External) Check(ctx context.Context, text string) (Token, error) {
	if len(text) > maxToken {
		return Token{}, tokenFault("it is longer than any token")
	}
	signed, err := jwt.ParseSigned(text, Algorithms)
	if err != nil {
		return Token{}, tokenFault("it is no JWT that is signed by a pair of keys")
	}
	header := signed.Headers[0]
	var said jwt.Claims
	switch { // before anybody is asked for keys
	case header.KeyID == "":
		return Token{}, tokenFault("its header has no kid")
	case !e.takes(header.ExtraHeaders[jose.HeaderType]):
		return Token{}, tokenFault("its typ is none of auth.external.token_types")
	case signed.UnsafeClaimsWithoutVerification(&said) != nil:
		return Token{}, tokenFault("its claims are not those of a JWT")
	case said.Issuer != e.Issuer || said.Issuer == "":
		return Token{}, tokenFault("its iss is not auth.external.issuer, letter by letter")
	}
	keys, err := e.Keys(ctx, e.KeysURL, header.KeyID)
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	key, _ := keys.find(header.KeyID, jose.SignatureAlgorithm(header.Algorithm))
	var more map[string]any
	if key == nil {
		return Token{}, tokenFault("auth.external.jwks_url has no key, or several, with its kid and for its alg")
	}
	if signed.Claims(key, &said, &more) != nil {
		return Token{}, tokenFault("its signature is not that of the key")
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
	client := one(more[e.clientClaim()])
	certificate, ok := boundTo(more["cnf"])
	switch {
	case client == "":
		return Token{}, tokenFault("it has no one client in auth.external.client_claim")
	case e.Audience == "" || !said.Audience.Contains(e.Audience):
		return Token{}, tokenFault("auth.external.audience is not among its aud")
	case said.Expiry == nil:
		return Token{}, tokenFault("it has no exp")
	case !e.program(client, said.Subject, more):
		return Token{}, tokenFault("it is not a program's: its sub is not the client, and no claim says so; or it has claims of a user's session")
	case !ok:
		return Token{}, tokenFault("its cnf binds it to something that is no certificate")
	}
	now := e.now()
	switch late := now.Add(Leeway); {
	case said.NotBefore != nil && said.NotBefore.Time().After(late), said.IssuedAt != nil && said.IssuedAt.Time().After(late):
		return Token{}, tokenFault("it is from the future (nbf, iat): are the clocks right?")
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
	// Keycloak says among the claims what a token is for: ID, Refresh, Logout or this.
	if kind, there := more["typ"]; there && kind != "Bearer" && !e.takes(kind) {
		return false
	}
	if sub == client && e.clientClaim() != "sub" {
		return true
	}
	marks := e.Programs
	if marks == nil {
		marks = DefaultPrograms()
	}
	return slices.ContainsFunc(marks, func(m Mark) bool {
		said, is := more[m.Claim].(string)
		return is && said == strings.ReplaceAll(m.Value, ClientMark, client)
	})
}

func (e *External) clientClaim() string { return cmp.Or(e.ClientClaim, "client_id") }

// scopes are those of a token, as a text or as a list of them.
func (e *External) scopes(more map[string]any) string {
	value, there := more[cmp.Or(e.ScopeClaim, "scope")]
	if !there && e.ScopeClaim == "" {
		value = more["scp"]
	}
	list := strings.Fields(strings.Join(texts(value), " "))
	for i, name := range list {
		if scopes, is := e.ScopeNames[name]; is {
			list[i] = scopes
		}
	}
	return strings.Join(list, " ")
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
