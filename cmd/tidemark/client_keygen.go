package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/go-jose/go-jose/v4"
)

type keygenCmd struct {
	Out string `default:"client" type:"path" placeholder:"NAME" help:"Write NAME.private.json, NAME.private.pem and NAME.jwks.json."`
	Alg string `default:"ES384" enum:"ES384,RS384" help:"The algorithm: ES384 or RS384."`
}

// Help is shown by --help.
func (*keygenCmd) Help() string {
	return `Makes a pair of keys for a client: the private one as a JSON Web Key into NAME.private.json and as PEM into NAME.private.pem, which only
you can read, and the public one as a JSON Web Key Set into NAME.jwks.json. It needs no server and no store. Nothing that is there is overwritten.

  tidemark client keygen --out research
  tidemark client add research --jwks research.jwks.json --level system --scope system/*.rs`
}

// rsaBits of a new key (NIST SP 800-57: 128 bits of security).
const rsaBits = 3072

// Run makes a pair of keys. The private one appears nowhere but in its files.
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
	files, err := keyFiles(c.Out, key)
	if err != nil {
		return fmt.Errorf("write the key: %w", err)
	}
	if err := writeAll(files); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, `%s   the private key: give it to the client only
%s   the same, for clients that read PEM
%s   the public key, %s, kid %s

Next: tidemark client add ID --jwks %[3]s --level system --scope 'system/*.rs'
`, files[0].path, files[1].path, files[2].path, c.Alg, key.KeyID)
	return err
}

// A keyFile is one of a pair of keys.
type keyFile struct {
	path    string
	mode    os.FileMode
	content []byte
}

// keyFiles are the private key, twice, and the public one. What reads PEM finds no kid
// in it, and takes the thumbprint, which ours is (RFC 7638).
func keyFiles(name string, key jose.JSONWebKey) ([]keyFile, error) {
	private, err := json.MarshalIndent(&key, "", "  ")
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key.Key)
	if err != nil {
		return nil, err
	}
	set, err := json.MarshalIndent(&jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}}, "", "  ")
	return []keyFile{
		{name + ".private.json", 0o600, append(private, '\n')},
		{name + ".private.pem", 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})},
		{name + ".jwks.json", 0o644, append(set, '\n')},
	}, err
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

// writeAll writes all files, or leaves none: some of them are of no use alone.
func writeAll(files []keyFile) error {
	for i, f := range files {
		if err := writeNew(f); err != nil {
			for _, alone := range files[:i] {
				err = errors.Join(err, os.Remove(alone.path))
			}
			return err
		}
	}
	return nil
}

// writeNew writes a file that is not there yet.
func writeNew(f keyFile) error {
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: choose another name with --out, for whoever uses that key would lose it", f.path)
	}
	if err != nil {
		return err
	}
	_, err = file.Write(f.content)
	return errors.Join(err, file.Sync(), file.Close())
}
