package smart

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// Keys are the public keys of a client.
type Keys []jose.JSONWebKey

// MaxKeys bounds a key set, bytes.
const MaxKeys = 64 << 10

// minRSA is the shortest RSA key that is taken, bits (NIST SP 800-131A).
const minRSA = 2048

// ParseKeys reads a JSON Web Key Set (RFC 7517). Every key of a kind that we know must
// be public, have a kid, and be strong enough; others are left out. No error repeats a
// key: somebody may have put a private one there.
func ParseKeys(set []byte) (keys Keys, err error) {
	if len(set) > MaxKeys {
		return nil, fmt.Errorf("the key set has more than %d bytes", MaxKeys)
	}
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(set, &raw) != nil || raw.Keys == nil {
		return nil, errors.New(`it is no JSON Web Key Set: right is {"keys": [{"kty": "EC", "kid": "1", ...}]}`)
	}
	for i, text := range raw.Keys {
		var kind struct {
			Kty, D, K string
			Kid       string
		}
		if json.Unmarshal(text, &kind) != nil {
			return nil, fmt.Errorf("key %d of the set is not an object, or its members are no strings", i+1)
		}
		switch {
		case kind.D != "" || kind.K != "":
			return nil, fmt.Errorf("key %d of the set is a private or a secret one: make new ones, and give only the public one away", i+1)
		case kind.Kty != "RSA" && kind.Kty != "EC" && kind.Kty != "OKP":
			continue
		case kind.Kid == "":
			return nil, fmt.Errorf("key %d of the set has no kid", i+1)
		}
		var key jose.JSONWebKey
		if json.Unmarshal(text, &key) != nil || !key.Valid() || !key.IsPublic() {
			return nil, fmt.Errorf("key %d of the set cannot be used: an RSA key has n and e and at most %d bits, an EC key crv, x and y, an OKP key crv and x", i+1, jose.MaxRSAModulusBits)
		}
		if rsa, is := key.Key.(*rsa.PublicKey); is && rsa.N.BitLen() < minRSA {
			return nil, fmt.Errorf("key %d of the set is an RSA key of %d bits: right are %d at least", i+1, rsa.N.BitLen(), minRSA)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("the key set has no key that signs: right are RSA, EC and OKP ones")
	}
	return keys, nil
}

// Algorithms are those with which clients may sign, the ones that every server and
// client of SMART knows first.
var Algorithms = []jose.SignatureAlgorithm{
	jose.RS384, jose.ES384, jose.ES256, jose.ES512, jose.RS256, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA,
}

// find is the one key of a kid that fits an algorithm (SMART 2.2.0, "Signature
// verification"): of several nobody knows which is meant.
func (k Keys) find(kid string, alg jose.SignatureAlgorithm) (key *jose.JSONWebKey, known bool) {
	for i := range k {
		if k[i].KeyID != kid {
			continue
		}
		known = true
		if !fits(&k[i], alg) {
			continue
		}
		if key != nil {
			return nil, true
		}
		key = &k[i]
	}
	return key, known
}

// fits tells whether a key signs by an algorithm, and is meant to.
func fits(key *jose.JSONWebKey, alg jose.SignatureAlgorithm) bool {
	if key.Use != "" && key.Use != "sig" || key.Algorithm != "" && key.Algorithm != string(alg) {
		return false
	}
	switch alg {
	case jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512:
		_, is := key.Key.(*rsa.PublicKey)
		return is
	case jose.ES256:
		return onCurve(key, elliptic.P256())
	case jose.ES384:
		return onCurve(key, elliptic.P384())
	case jose.ES512:
		return onCurve(key, elliptic.P521())
	case jose.EdDSA:
		_, is := key.Key.(ed25519.PublicKey)
		return is
	}
	return false
}

func onCurve(key *jose.JSONWebKey, curve elliptic.Curve) bool {
	ec, is := key.Key.(*ecdsa.PublicKey)
	return is && ec.Curve == curve
}
