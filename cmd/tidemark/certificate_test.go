package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tidemark/cmd/tidemark/internal/config"
)

// writePair writes a self-signed certificate with this serial number.
func writePair(t *testing.T, certFile, keyFile string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, certFile, serial, &pem.Block{Type: "CERTIFICATE", Bytes: cert})
	writePEM(t, keyFile, serial, &pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// writePEM writes a file with a stamp of its own: file clocks are too coarse to tell
// the versions of a test apart.
func writePEM(t *testing.T, name string, stamp int64, block *pem.Block) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(stamp, 0)
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
}

// An authority signs clients' certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(1, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{parsed, key}
}

func (a *authority) write(t *testing.T, name string, stamp int64) {
	writePEM(t, name, stamp, &pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue makes a certificate for a use, valid until end.
func (a *authority) issue(t *testing.T, use x509.ExtKeyUsage, end time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "a client"}, ExtKeyUsage: []x509.ExtKeyUsage{use},
		NotBefore: time.Unix(0, 0), NotAfter: end,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key}
}

func TestCertificateFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	files := config.ServerTLS{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	if _, err := loadCertificate(files, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "http.tls") {
		t.Errorf("missing files: got error %v, want one that names the key", err)
	}
	writePair(t, files.CertFile, files.KeyFile, 1)
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		c, err := loadCertificate(files, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			t.Fatal(err)
		}
		serial := func() int64 {
			t.Helper()
			var leaf *x509.Certificate
			for range 3 { // times that the files are looked at
				<-time.After(2 * certificateLife)
				now, err := c.get(nil)
				if err != nil {
					t.Fatal(err)
				}
				if leaf, err = x509.ParseCertificate(now.Certificates[0].Certificate[0]); err != nil {
					t.Fatal(err)
				}
			}
			return leaf.SerialNumber.Int64()
		}
		if got := serial(); got != 1 || said.Len() > 0 {
			t.Errorf("got certificate %d, want 1; said %s", got, &said)
		}
		writePair(t, files.CertFile, filepath.Join(dir, "other.pem"), 2)
		if got := serial(); got != 1 {
			t.Errorf("certificate without its key: got %d, want 1", got)
		}
		if err := os.Remove(files.KeyFile); err != nil {
			t.Fatal(err)
		}
		if got := serial(); got != 1 {
			t.Errorf("certificate whose key is gone: got %d, want 1", got)
		}
		if got := strings.Count(said.String(), "cannot be used"); got != 2 {
			t.Errorf("two faults were told %d times:\n%s", got, &said)
		}
		writePair(t, files.CertFile, files.KeyFile, 3)
		if got := serial(); got != 3 || strings.Count(said.String(), "taken up") != 1 {
			t.Errorf("replaced: got certificate %d, want 3; said %s", got, &said)
		}
	})
}

// handshake speaks TLS to a server of these files and tells what both sides say.
func handshake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, err error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answered := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			answered <- err
			return
		}
		defer conn.Close()
		err = conn.(*tls.Conn).HandshakeContext(t.Context())
		if err == nil {
			state = conn.(*tls.Conn).ConnectionState()
			_, err = io.WriteString(conn, "ok")
		}
		answered <- err
	}()
	client = client.Clone()
	client.InsecureSkipVerify = true // the server's side is what is looked at
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		_, err = io.ReadAll(conn) // TLS 1.3: the client learns here that it is refused
		conn.Close()
	}
	return state, errors.Join(<-answered, err)
}

// What is weak is not spoken, whoever offers it.
func TestTLSIsStrong(t *testing.T) {
	dir := t.TempDir()
	files := config.ServerTLS{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	writePair(t, files.CertFile, files.KeyFile, 1)
	c, err := loadCertificate(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		client *tls.Config
		ok     bool
	}{
		{"TLS 1.3", &tls.Config{MinVersion: tls.VersionTLS13}, true},
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, true},
		{"TLS 1.2 with CBC", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA}}, false},
		{"TLS 1.1", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
		{"HTTP/2 and 1.1", &tls.Config{NextProtos: []string{"h2", "http/1.1"}}, true},
		{"HTTP/2 only", &tls.Config{NextProtos: []string{"h2"}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			state, err := handshake(t, c.config(), test.client)
			if (err == nil) != test.ok {
				t.Errorf("handshake: %v, want success %t", err, test.ok)
			}
			if err == nil && state.NegotiatedProtocol == "h2" {
				t.Error("HTTP/2 was agreed on")
			}
		})
	}
}

// With client_ca_file nobody comes in without a certificate of those authorities
// that is for clients and valid now; handlers see it; and what the file says is
// followed.
func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	files := config.ServerTLS{
		CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), ClientCAFile: filepath.Join(dir, "clients.pem"),
	}
	writePair(t, files.CertFile, files.KeyFile, 1)
	if _, err := loadCertificate(files, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "http.tls.client_ca_file") {
		t.Errorf("missing file: got error %v, want one that names the key", err)
	}
	writePEM(t, files.ClientCAFile, 1, &pem.Block{Type: "X"})
	if _, err := loadCertificate(files, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("file without a certificate: got error %v", err)
	}
	ours, others := newAuthority(t), newAuthority(t)
	ours.write(t, files.ClientCAFile, 2)
	c, err := loadCertificate(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	year := time.Now().AddDate(1, 0, 0)
	good, foreign := ours.issue(t, x509.ExtKeyUsageClientAuth, year), others.issue(t, x509.ExtKeyUsageClientAuth, year)
	server, sessions := c.config(), tls.NewLRUClientSessionCache(8)
	shows := func(pairs ...tls.Certificate) error {
		t.Helper()
		state, err := handshake(t, server, &tls.Config{
			ClientSessionCache: sessions,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // whatever the server asks for
				return &append(pairs, tls.Certificate{})[0], nil
			},
		})
		if err == nil && (len(state.VerifiedChains) == 0 || state.PeerCertificates[0].Subject.CommonName != "a client") {
			t.Error("the certificate is not there for handlers")
		}
		return err
	}
	if err := shows(good); err != nil {
		t.Errorf("a client's certificate: %v", err)
	}
	for name, pair := range map[string][]tls.Certificate{
		"none":                 nil,
		"of another authority": {foreign},
		"of a server":          {ours.issue(t, x509.ExtKeyUsageServerAuth, year)},
		"that has expired":     {ours.issue(t, x509.ExtKeyUsageClientAuth, time.Unix(1, 0))},
	} {
		if err := shows(pair...); err == nil {
			t.Errorf("a certificate %s was let in", name)
		}
	}

	// Another authority: who was let in before, even with a session to resume, is not now.
	others.write(t, files.ClientCAFile, 3)
	c.looked = time.Time{}
	if err := shows(good); err == nil {
		t.Error("a certificate of an authority that is gone was let in")
	}
	if err := shows(foreign); err != nil {
		t.Errorf("a certificate of the new authority: %v", err)
	}
}

// Health is asked over the listener like all else, and so needs a certificate
// there; platforms whose probes have none ask at admin.listen.
func TestMutualTLSOverHTTP(t *testing.T) {
	dir := t.TempDir()
	tlsFiles := config.ServerTLS{
		CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), ClientCAFile: filepath.Join(dir, "clients.pem"),
	}
	writePair(t, tlsFiles.CertFile, tlsFiles.KeyFile, 1)
	ours := newAuthority(t)
	ours.write(t, tlsFiles.ClientCAFile, 1)
	admin := freePort(t)
	r := oneTopic(t, "--set", "http.tls.cert_file="+tlsFiles.CertFile, "--set", "http.tls.key_file="+tlsFiles.KeyFile,
		"--set", "http.tls.client_ca_file="+tlsFiles.ClientCAFile, "--set", "admin.listen="+admin)
	r.launch()
	r.until("admin.listen tells that it is ready", func() bool {
		status, _, err := ask(http.MethodGet, "http://"+admin+"/readyz", nil)
		return err == nil && status == http.StatusOK
	})
	url := strings.Replace(r.client.Base, "http:", "https:", 1)
	url = strings.TrimSuffix(url, "/fhir") + "/healthz"
	get := func(c *tls.Config) (int, error) {
		c.InsecureSkipVerify = true
		transport := &http.Transport{TLSClientConfig: c}
		defer transport.CloseIdleConnections()
		answer, err := (&http.Client{Transport: transport}).Get(url)
		if err != nil {
			return 0, err
		}
		return answer.StatusCode, answer.Body.Close()
	}
	if status, err := get(&tls.Config{}); err == nil {
		t.Errorf("/healthz without a certificate: %d, want no handshake", status)
	}
	pair := ours.issue(t, x509.ExtKeyUsageClientAuth, time.Now().AddDate(1, 0, 0))
	if status, err := get(&tls.Config{Certificates: []tls.Certificate{pair}}); err != nil || status != http.StatusOK {
		t.Errorf("/healthz with a certificate: %d, %v", status, err)
	}
}
