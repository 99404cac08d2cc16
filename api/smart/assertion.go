package smart

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"tidemark/api/outcome"
)

// A Client is who may ask for tokens.
type Client struct {
	ID      string // client_id
	Serial  uint64 // its own for ever: one of the same name that comes later is another
	Keys    Keys   // nil if they are fetched
	KeysURL string // jwks_uri, "" if they are kept here
	// CheckSecret tells whether a text is its secret; nil if it has none, as is right for
	// all that can sign. It compares in constant time.
	CheckSecret func(text string) bool
	// Disabled: it can have no token, and is spoken of as one that nobody knows.
	Disabled bool
	// Rights are the most that a token of it can have.
	Rights Rights
}

// A Refusal is an error of the token endpoint (RFC 6749, 5.2; RFC 7521, 4.2.1). What it
// says comes from the client itself, and tells nobody what he does not know.
type Refusal struct {
	Code        string // such as invalid_client
	Description string
}

func (r *Refusal) Error() string { return r.Code + ": " + r.Description }

func refuse(format string, args ...any) error {
	return &Refusal{"invalid_client", fmt.Sprintf(format, args...)}
}

// Leeway is how far clocks may be apart.
const Leeway = time.Minute

const (
	maxAssertion = 16 << 10        // bytes
	maxLife      = 5 * time.Minute // of an assertion (SMART 2.2.0, "exp")
	maxJTI       = 255             // bytes
)

// A Verifier checks what clients say to prove who they are.
type Verifier struct {
	// Client finds one by its client_id, if it may do anything.
	Client func(id string) (Client, bool)
	// Fetch gets the keys at a client's URL. One that has a kid is wanted: what is kept
	// of that URL may be too old to have it.
	Fetch func(ctx context.Context, url, kid string) (Keys, error)
	// Once tells whether nobody has said id before, and does not forget it before an
	// instant, whatever happens.
	Once func(id []byte, until time.Time) (bool, error)
	// Audience are the URLs of the token endpoint.
	Audience []string
	Now      func() time.Time // default time.Now
}

// Verify finds out which client signed an assertion (RFC 7523, 3; SMART 2.2.0,
// "Asymmetric (public key) authentication"). An error is a *Refusal, or says why it cannot be told
// now. An assertion proves somebody once.
func (v *Verifier) Verify(ctx context.Context, assertion string) (Client, error) {
	return v.verify(ctx, assertion, &Attempt{})
}

// verify notes whom an attempt speaks of, and by which key.
func (v *Verifier) verify(ctx context.Context, assertion string, a *Attempt) (Client, error) {
	if len(assertion) > maxAssertion {
		return Client{}, refuse("the client_assertion has more than %d bytes", maxAssertion)
	}
	token, err := jwt.ParseSigned(assertion, Algorithms)
	if err != nil {
		return Client{}, refuse("the client_assertion is not a JWT that is signed by one of %s", algorithmNames())
	}
	header := token.Headers[0]
	if typ, given := header.ExtraHeaders[jose.HeaderType].(string); given && !strings.EqualFold(typ, "JWT") {
		return Client{}, refuse("the typ of the client_assertion is %s: right is JWT", outcome.Quote(typ))
	}
	if header.KeyID == "" {
		return Client{}, refuse("the client_assertion has no kid in its header")
	}
	var said jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&said); err != nil {
		return Client{}, refuse("the claims of the client_assertion are not a JSON object of strings and numbers")
	}
	a.Client, a.KeyID = said.Issuer, header.KeyID
	client, known := v.Client(said.Issuer)
	if !known || said.Issuer == "" || client.Disabled {
		return Client{}, refuse("the iss of the client_assertion, %s, is no client here", outcome.Quote(said.Issuer))
	}
	key, err := v.key(ctx, &client, &header)
	if err != nil {
		return Client{}, err
	}
	if err := token.Claims(key, &said); err != nil {
		return Client{}, refuse("the signature of the client_assertion is not that of the client's key %s", outcome.Quote(header.KeyID))
	}
	if err := v.check(&said, client.ID); err != nil {
		return Client{}, err
	}
	if err := v.first(&said); err != nil {
		return Client{}, err
	}
	return client, nil
}

// key is that which a client must have signed with.
func (v *Verifier) key(ctx context.Context, c *Client, h *jose.Header) (*jose.JSONWebKey, error) {
	if jku, given := h.ExtraHeaders["jku"]; given && (jku != c.KeysURL || c.KeysURL == "") {
		return nil, refuse("the jku of the client_assertion is not the URL of keys that was registered")
	}
	keys := c.Keys
	if c.KeysURL != "" {
		var err error
		if keys, err = v.Fetch(ctx, c.KeysURL, h.KeyID); err != nil {
			return nil, err
		}
	}
	key, known := keys.find(h.KeyID, jose.SignatureAlgorithm(h.Algorithm))
	switch {
	case key != nil:
		return key, nil
	case known:
		return nil, refuse("the client has no key, or several, with the kid %s for %s", outcome.Quote(h.KeyID), outcome.Quote(h.Algorithm))
	}
	return nil, refuse("the client has no key with the kid %s", outcome.Quote(h.KeyID))
}

// check judges claims whose signature is right.
func (v *Verifier) check(said *jwt.Claims, id string) error {
	now := v.now()
	switch {
	case said.Subject != id:
		return refuse("the sub of the client_assertion is not its iss: both are the client_id")
	case !slices.ContainsFunc(v.Audience, said.Audience.Contains):
		return refuse("the aud of the client_assertion is not the token endpoint: right is %s", v.Audience[0])
	case said.Expiry == nil:
		return refuse("the client_assertion has no exp")
	case now.After(said.Expiry.Time().Add(Leeway)):
		return refuse("the client_assertion has expired: it is %s here", now.UTC().Format(time.RFC3339))
	case said.Expiry.Time().After(now.Add(maxLife + Leeway)):
		return refuse("the client_assertion expires in more than five minutes: it is %s here", now.UTC().Format(time.RFC3339))
	case said.NotBefore != nil && said.NotBefore.Time().After(now.Add(Leeway)):
		return refuse("the client_assertion is not valid yet (nbf): it is %s here", now.UTC().Format(time.RFC3339))
	case said.IssuedAt != nil && said.IssuedAt.Time().After(now.Add(Leeway)):
		return refuse("the client_assertion was issued in the future (iat): it is %s here", now.UTC().Format(time.RFC3339))
	case said.ID == "" || len(said.ID) > maxJTI:
		return refuse("the client_assertion has no jti, or one of more than %d bytes", maxJTI)
	}
	return nil
}

// first refuses an assertion that somebody has used. It is asked last: what is refused
// for another reason is not used up.
func (v *Verifier) first(said *jwt.Claims) error {
	id := sha256.Sum256([]byte(said.Issuer + "\x00" + said.ID))
	switch first, err := v.Once(id[:], said.Expiry.Time().Add(Leeway)); {
	case err != nil:
		return fmt.Errorf("remember an assertion: %w", err)
	case !first:
		return refuse("the client_assertion was used before: each has a jti of its own")
	}
	return nil
}

func (v *Verifier) now() time.Time {
	if v.Now == nil {
		return time.Now()
	}
	return v.Now()
}

func algorithmNames() string {
	var names []string
	for _, a := range Algorithms {
		names = append(names, string(a))
	}
	return strings.Join(names, ", ")
}
