package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/go-jose/go-jose/v4"
)

type keygenCmd struct {
	Out string `default:"client" type:"path" placeholder:"NAME" help:"Write NAME.private.json and NAME.jwks.json."`
	Alg string `default:"ES384" enum:"ES384,RS384" help:"The algorithm: ES384 or RS384."`
}

// Help is shown by --help.
func (*keygenCmd) Help() string {
	return `Makes a pair of keys for a client: the private one as a JSON Web Key into NAME.private.json, which only you can read, and the public one as
a JSON Web Key Set into NAME.jwks.json. It needs no server and no store. Nothing that is there is overwritten.

  tidemark client keygen --out research
  tidemark client add research --jwks research.jwks.json --level system --scope system/*.rs`
}

// rsaBits of a new key (NIST SP 800-57: 128 bits of security).
const rsaBits = 3072

// Run makes a pair of keys. The private one appears nowhere but in its file.
func (c *keygenCmd) Run(out io.Writer) error {
	key, err := newKey(c.Alg)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	public := key.Public()
	print, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return fmt.Errorf("name the key: %w", err)
	}
	key.KeyID = base64.RawURLEncoding.EncodeToString(print)
	public = key.Public()
	private, set := c.Out+".private.json", c.Out+".jwks.json"
	if err := writeNew(private, 0o600, &key); err != nil {
		return err
	}
	if err := writeNew(set, 0o644, &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}}); err != nil {
		return errors.Join(err, os.Remove(private)) // it is of no use alone
	}
	_, err = fmt.Fprintf(out, `%s   the private key: give it to the client only
%s   the public key, %s, kid %s

Next: tidemark client add ID --jwks %[2]s --level system --scope 'system/*.rs'
`, private, set, c.Alg, key.KeyID)
	return err
}

func newKey(alg string) (jose.JSONWebKey, error) {
	var key any
	var err error
	if alg == "RS384" {
		key, err = rsa.GenerateKey(rand.Reader, rsaBits)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	return jose.JSONWebKey{Key: key, Algorithm: alg, Use: "sig"}, err
}

// writeNew writes a file that is not there yet.
func writeNew(path string, mode os.FileMode, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: choose another name with --out, for whoever uses that key would lose it", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}
