package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"tidemark/cmd/tidemark/internal/config"
)

// certificateLife is how long a certificate is used before its files are looked
// at again: renewal tools replace them in place and signal nobody.
const certificateLife = 10 * time.Second

// A certificate follows its files, and those of the authorities of clients.
type certificate struct {
	files config.ServerTLS
	log   *slog.Logger

	mu      sync.Mutex
	current *tls.Config
	stamp   [3]time.Time // of the files as they were loaded
	broken  [3]time.Time // of the files as they did not load, and that was said
	looked  time.Time
}

// loadCertificate reads the files once, so that a wrong name stops the start.
func loadCertificate(files config.ServerTLS, log *slog.Logger) (*certificate, error) {
	c := &certificate{files: files, log: log, looked: time.Now()}
	return c, c.load(c.stamps())
}

// config is what a listener begins with: each handshake asks for the newest.
func (c *certificate) config() *tls.Config {
	base := serverTLS()
	base.GetConfigForClient = c.get
	return base
}

// serverTLS is what holds for every handshake (BCP 195). The cipher suites are
// those of TLS 1.2 that keep secrets when the server's key is lost and prove
// integrity by themselves; the order, and TLS 1.3's own, are Go's choice.
// HTTP/1.1 alone is offered: HTTP/2 halves the speed of downloads (tech.md 6).
func serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
}

// load reads all files; what one of them lacks leaves everything as it was.
func (c *certificate) load(stamp [3]time.Time) error {
	pair, err := tls.LoadX509KeyPair(c.files.CertFile, c.files.KeyFile)
	if err != nil {
		return fmt.Errorf("load http.tls.cert_file and http.tls.key_file: %w", err)
	}
	next := serverTLS()
	next.Certificates = []tls.Certificate{pair}
	if c.files.ClientCAFile != "" {
		if next.ClientCAs, err = authorities(c.files.ClientCAFile); err != nil {
			return fmt.Errorf("load http.tls.client_ca_file: %w", err)
		}
		next.ClientAuth = tls.RequireAndVerifyClientCert
		// A session that is resumed was verified by the authorities of its
		// beginning: one that is no longer trusted would still be let in.
		next.SessionTicketsDisabled = true
	}
	c.current, c.stamp = next, stamp
	return nil
}

func authorities(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New(file + " holds no certificate in PEM")
	}
	return pool, nil
}

// stamps tell whether a file is another one than before; one that is missing
// has none, and does not load.
func (c *certificate) stamps() (all [3]time.Time) {
	for i, name := range []string{c.files.CertFile, c.files.KeyFile, c.files.ClientCAFile} {
		if info, err := os.Stat(name); err == nil {
			all[i] = info.ModTime()
		}
	}
	return all
}

// get gives what has newest loaded. While only one of the files has been
// replaced they do not fit, and the old ones go on.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) >= certificateLife {
		c.looked = time.Now()
		c.reload()
	}
	return c.current, nil
}

// reload takes up files that have changed. What is wrong with them is said once
// for each state of theirs, however many handshakes meet it.
func (c *certificate) reload() {
	stamp := c.stamps()
	if stamp == c.stamp || stamp == c.broken {
		return
	}
	if err := c.load(stamp); err != nil {
		c.broken = stamp
		c.log.Warn("the files of http.tls have changed and cannot be used, the old ones go on: mend them if this is not a renewal under way", "error", err)
		return
	}
	c.log.Info("the files of http.tls have changed and were taken up")
}
