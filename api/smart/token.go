package smart

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// A Token is what an access token of ours says.
type Token struct {
	ID      string // in the audit, in place of the token itself
	Issuer  string // "": this server
	Client  string // client_id
	Serial  uint64 // of the client; 0 if another issuer made the token
	Rights  Rights
	Expires time.Time
	// Certificate is the SHA-256 of the client certificate with which alone the token
	// counts (RFC 8705, 3.1, "x5t#S256"); "": it counts for who has it.
	Certificate string
}

// Bound tells whether a token counts on a connection that has proved a certificate; nil
// if it has proved none.
func (t *Token) Bound(to *x509.Certificate) bool {
	if t.Certificate == "" {
		return true
	}
	return to != nil && subtle.ConstantTimeCompare([]byte(t.Certificate), []byte(thumbprint(to))) == 1
}

// thumbprint is a certificate's as tokens tell it.
func thumbprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// A Minter makes access tokens and knows its own again. They are signed with a secret of
// this server, so nobody is asked about one, and it outlives a restart; whether its
// client may still do anything is for who asks to find out.
type Minter struct {
	// Issuer is the base that clients see: a token of one server counts at no other
	// that has the same secret.
	Issuer string
	// Secrets sign: the first makes tokens, all of them are known.
	Secrets []Secret
	// Lifetime of tokens (auth.token_lifetime; default 5 min: SMART 2.2.0, "should not
	// exceed").
	Lifetime time.Duration
	Now      func() time.Time // default time.Now
}

// A Secret signs tokens.
type Secret struct {
	ID  string
	Key []byte // SecretSize at least
}

// SecretSize is that of a Secret's key, bytes: of HMAC with SHA-256.
const SecretSize = 32

// NewSecret makes one.
func NewSecret() Secret {
	key := make([]byte, SecretSize)
	_, _ = rand.Read(key) // never fails
	return Secret{ID: rand.Text(), Key: key}
}

// MaxTokenLifetime is what a token may live at most.
const MaxTokenLifetime = 5 * time.Minute

// tokenType tells an access token from whatever else is signed (RFC 9068, 2.1).
const tokenType = "at+jwt"

const maxToken = 64 << 10 // bytes

// tokenClaims are those of RFC 9068, and the serial number of the client.
type tokenClaims struct {
	jwt.Claims
	Client string `json:"client_id"`
	Serial uint64 `json:"serial"`
	Scope  string `json:"scope"`
	Bound  *bound `json:"cnf,omitempty"`
}

// bound is what else one must have to use a token (RFC 8705, 3.1).
type bound struct {
	Certificate string `json:"x5t#S256"`
}

// Mint makes a token for a client that was verified. Its times are whole seconds, as
// those of any JWT.
func (m *Minter) Mint(c Client, rights Rights) (text string, t Token, err error) {
	return m.MintFor(c, rights, nil)
}

// MintFor makes one that counts with a certificate alone, if there is one.
func (m *Minter) MintFor(c Client, rights Rights, to *x509.Certificate) (text string, t Token, err error) {
	now := m.now().Truncate(time.Second)
	t = Token{ID: rand.Text(), Client: c.ID, Serial: c.Serial, Rights: rights, Expires: now.Add(m.lifetime())}
	var cnf *bound
	if to != nil {
		t.Certificate = thumbprint(to)
		cnf = &bound{t.Certificate}
	}
	secret := m.Secrets[0]
	options := (&jose.SignerOptions{}).WithType(tokenType).WithHeader("kid", secret.ID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: secret.Key}, options)
	if err != nil {
		return "", Token{}, fmt.Errorf("make an access token: %w", err)
	}
	text, err = jwt.Signed(signer).Claims(tokenClaims{
		Claims: jwt.Claims{Issuer: m.Issuer, Subject: c.ID, Audience: jwt.Audience{m.Issuer}, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(t.Expires), ID: t.ID},
		Client: c.ID, Serial: c.Serial, Scope: rights.String(), Bound: cnf,
	}).Serialize()
	if err != nil {
		return "", Token{}, fmt.Errorf("make an access token: %w", err)
	}
	return text, t, nil
}

// What is wrong with a token (RFC 6750, 3.1: invalid_token for both). Neither says more:
// whoever has none of ours learns nothing.
var (
	ErrToken   = errors.New("the access token is none of this server's")
	ErrExpired = errors.New("the access token has expired: the token endpoint gives a new one")
)

// Check reads a token of ours. There is no leeway: the clock that made it judges it.
func (m *Minter) Check(text string) (Token, error) {
	if len(text) > maxToken {
		return Token{}, ErrToken
	}
	signed, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		return Token{}, ErrToken
	}
	header := signed.Signatures[0].Protected
	if header.ExtraHeaders[jose.HeaderType] != tokenType {
		return Token{}, ErrToken
	}
	for _, s := range m.Secrets {
		if s.ID != header.KeyID {
			continue
		}
		payload, err := signed.Verify(s.Key)
		if err != nil {
			return Token{}, ErrToken
		}
		return m.read(payload)
	}
	return Token{}, ErrToken
}

// read judges claims that are ours.
func (m *Minter) read(payload []byte) (Token, error) {
	var c tokenClaims
	if err := json.Unmarshal(payload, &c); err != nil || c.Issuer != m.Issuer || c.Expiry == nil {
		return Token{}, ErrToken
	}
	t := Token{ID: c.ID, Client: c.Client, Serial: c.Serial, Rights: Parse(c.Scope), Expires: c.Expiry.Time()}
	if c.Bound != nil {
		// One that does not say to which certificate counts with none.
		t.Certificate = cmp.Or(c.Bound.Certificate, "?")
	}
	if !m.now().Before(t.Expires) {
		return Token{}, ErrExpired
	}
	return t, nil
}

// lifetime is that of a token, never more than SMART allows.
func (m *Minter) lifetime() time.Duration {
	if m.Lifetime <= 0 || m.Lifetime > MaxTokenLifetime {
		return MaxTokenLifetime
	}
	return m.Lifetime
}

func (m *Minter) now() time.Time {
	if m.Now == nil {
		return time.Now()
	}
	return m.Now()
}
