package smart

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"time"
)

// A Capability signs URLs of output files: who has one may download that file for a
// while, without a token. Whether its client may still do anything is for who asks to
// find out. What is signed gives access and reaches no log.
type Capability struct {
	// Secrets sign: the first signs, all of them are known, so that one can be replaced.
	Secrets []Secret
	Now     func() time.Time // default time.Now
}

// What is wrong with a signature. Neither says more: who has none learns nothing.
var (
	ErrCapability        = errors.New("the signature of the URL is none of this server's for this file")
	ErrCapabilityExpired = errors.New("the signature of the URL has expired: the manifest gives a new one")
)

const maxCapability = 256 // bytes

// Sign makes the value of a query parameter that lets download a file of a job until an
// instant, whole seconds, in the name of the client with a serial number.
func (c *Capability) Sign(job string, file int, serial uint64, expires time.Time) string {
	return sign(&c.Secrets[0], job, file, serial, expires.Unix())
}

// sign writes secret.serial.expires.signature. The signature covers every part with its
// length, after words that nothing else begins with which a secret signs.
func sign(s *Secret, job string, file int, serial uint64, expires int64) string {
	said := s.ID + "." + strconv.FormatUint(serial, 10) + "." + strconv.FormatInt(expires, 10)
	mac := hmac.New(sha256.New, s.Key)
	for _, part := range []string{"tidemark capability 1", job, strconv.Itoa(file), said} {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // never fails
		mac.Write([]byte(part))
	}
	return said + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Check tells in whose name a file may be downloaded. What was signed is written again
// and compared whole, so there is one way to write it.
func (c *Capability) Check(job string, file int, text string) (serial uint64, err error) {
	parts := strings.Split(text, ".")
	if len(text) > maxCapability || len(parts) != 4 {
		return 0, ErrCapability
	}
	serial, err = strconv.ParseUint(parts[1], 10, 64)
	if err != nil {
		return 0, ErrCapability
	}
	expires, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil {
		return 0, ErrCapability
	}
	for i := range c.Secrets {
		s := &c.Secrets[i]
		if s.ID != parts[0] || subtle.ConstantTimeCompare([]byte(text), []byte(sign(s, job, file, serial, expires))) != 1 {
			continue
		}
		if c.now().Unix() >= expires {
			return 0, ErrCapabilityExpired
		}
		return serial, nil
	}
	return 0, ErrCapability
}

func (c *Capability) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}
