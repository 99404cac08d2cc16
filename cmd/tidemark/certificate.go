package main

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// certificateLife is how long a certificate is used before its files are looked
// at again: renewal tools replace them in place and signal nobody.
const certificateLife = 10 * time.Second

// A certificate follows its files.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]time.Time // of the files as they were loaded
	looked  time.Time
}

// loadCertificate reads the files once, so that a wrong name stops the start.
func loadCertificate(certFile, keyFile string) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificate) load() error {
	stamp, err := c.stamps()
	if err != nil {
		return fmt.Errorf("load http.tls: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("load http.tls.cert_file and http.tls.key_file: %w", err)
	}
	c.current, c.stamp = &pair, stamp
	return nil
}

func (c *certificate) stamps() (stamp [2]time.Time, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return stamp, err
		}
		stamp[i] = info.ModTime()
	}
	return stamp, nil
}

// get gives the newest certificate that loads. While only one of the two files
// has been replaced they do not fit, and the old pair goes on.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) >= certificateLife {
		c.looked = time.Now()
		if stamp, err := c.stamps(); err == nil && stamp != c.stamp {
			_ = c.load() // fails while the files do not fit; looked at again
		}
	}
	return c.current, nil
}
