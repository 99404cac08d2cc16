package clients

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/api/smart"
)

// secretBytes are those of a secret that we make; minSecret is how long one must be that
// somebody else has made, as those bytes are in base64.
const (
	secretBytes = 32
	minSecret   = 43
)

// NewSecret makes a secret for a client that cannot sign. It is shown once.
func NewSecret() string {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// BySecret is how a client proves itself with a secret, of which a hash is kept. That
// is a plain SHA-256: nobody guesses 256 random bits, however fast he can hash.
func BySecret(text string) (Proof, error) {
	if len(text) < minSecret {
		return Proof{}, fmt.Errorf("the secret has less than %d characters: make one with `openssl rand -base64 32`", minSecret)
	}
	return Proof{SecretHash: hash(text)}, nil
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// CheckSecret tells whether a text is the client's secret, in a time that tells nothing.
func (c *Client) CheckSecret(text string) bool {
	return c.SecretHash != "" && subtle.ConstantTimeCompare([]byte(hash(text)), []byte(c.SecretHash)) == 1
}

// signedFor is how long what a secret has signed may be of use: tokens for minutes, URLs
// of files for capability.ttl, which is hours.
const signedFor = 24 * time.Hour

// tokenFile holds what signs tokens.
const tokenFile = "token.keys"

type tokenSecrets struct {
	Version int           `json:"version"`
	Secrets []tokenSecret `json:"secrets"` // the newest first
}

type tokenSecret struct {
	ID   string    `json:"id"`
	Key  []byte    `json:"key"`
	Made time.Time `json:"made"`
}

// Secrets are those that sign tokens, the newest first. One is made where there is none.
func Secrets(fs vfs.FS, dir string) ([]smart.Secret, error) {
	t, err := readSecrets(fs, dir)
	if errors.Is(err, os.ErrNotExist) {
		return RotateSecrets(fs, dir, time.Now(), false)
	}
	return t.list(), err
}

// RotateSecrets makes a secret that signs from now on. The one before it counts on, for
// tokens that are out, and goes at the next rotation once they have expired; all go now
// if somebody knows one who should not.
func RotateSecrets(fs vfs.FS, dir string, now time.Time, all bool) ([]smart.Secret, error) {
	t, err := readSecrets(fs, dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	s := smart.NewSecret()
	next := tokenSecrets{Version: fileVersion, Secrets: []tokenSecret{{s.ID, s.Key, now.UTC()}}}
	for _, old := range t.Secrets {
		after := next.Secrets[len(next.Secrets)-1].Made // since then it has signed nothing
		if all || now.Sub(after) > signedFor {
			break
		}
		next.Secrets = append(next.Secrets, old)
	}
	data, err := json.MarshalIndent(next, "", "  ")
	if err == nil {
		err = ReplaceFile(fs, dir, tokenFile, append(data, '\n'))
	}
	if err != nil {
		return nil, fmt.Errorf("write what signs tokens: %w", err)
	}
	return next.list(), nil
}

func readSecrets(fs vfs.FS, dir string) (t tokenSecrets, err error) {
	data, err := ReadFile(fs, dir, tokenFile)
	if err != nil {
		return t, err
	}
	path := fs.PathJoin(dir, tokenFile)
	damaged := fmt.Errorf("%s is damaged: move it away, and a new one is made; clients then need new tokens", path)
	if json.Unmarshal(data, &t) != nil {
		return t, damaged
	}
	if t.Version != fileVersion {
		return t, fmt.Errorf("%s has version %d, this program knows %d: use the program that wrote it, or a newer one", path, t.Version, fileVersion)
	}
	for _, s := range t.Secrets {
		if s.ID == "" || len(s.Key) < smart.SecretSize {
			return t, damaged
		}
	}
	if len(t.Secrets) == 0 {
		return t, damaged
	}
	return t, nil
}

func (t *tokenSecrets) list() (all []smart.Secret) {
	for _, s := range t.Secrets {
		all = append(all, smart.Secret{ID: s.ID, Key: s.Key})
	}
	return all
}
