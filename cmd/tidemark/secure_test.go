package main

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"tidemark/cmd/tidemark/internal/config"
)

// The way to a broker that wants TLS, a client's certificate and a password, from the
// configuration on.
func TestSecuredBroker(t *testing.T) {
	t.Parallel() // it mostly waits
	dir := t.TempDir()
	certFile, keyFile, password := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "password")
	writePair(t, certFile, keyFile, time.Now().Unix())
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(password, []byte(canary+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	known, err := authorities(certFile)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "fhir-changes"),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: known}),
		kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "reader", canary))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	trust, err := kafkaTLS(config.ClientTLS{Enabled: true, CAFile: certFile, CertFile: certFile, KeyFile: keyFile})
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(cluster.ListenAddrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{
		"--set", "kafka.tls.enabled=true", "--set", "kafka.tls.ca_file=" + certFile,
		"--set", "kafka.tls.cert_file=" + certFile, "--set", "kafka.tls.key_file=" + keyFile,
		"--set", "kafka.sasl.mechanism=SCRAM-SHA-512", "--set", "kafka.sasl.username=reader", "--set", "kafka.sasl.password_file=" + password,
	}
	r := newRig(t, "localhost:"+port, "fhir-changes", []kgo.Opt{
		kgo.DialTLSConfig(trust), kgo.SASL(scram.Auth{User: "reader", Pass: canary}.AsSha512Mechanism()),
	}, secrets...)
	r.start()
	r.live(20)
	r.catchUp()
	r.prove()
	if got, code := ends(t, append(r.args, "--print-config")...); code != 0 || strings.Contains(got, canary) {
		t.Errorf("serve --print-config: exit %d, want 0 and no password: %s", code, got)
	}

	// What is written goes the same way.
	file := filepath.Join(dir, "roster.csv")
	if err := os.WriteFile(file, []byte("p1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"group", "set", "g", file, "--topic", "fhir-changes", "--set", "store.path=" + r.store(), "--set", "kafka.brokers=localhost:" + port}, secrets...)
	if got, code := ends(t, args...); code != 0 || !strings.Contains(got, "the server has it") {
		t.Errorf("group set: exit %d: %s", code, got)
	}
	if got, code := ends(t, args[:len(args)-6]...); code != exitFailed || strings.Contains(got, canary) { // without the password
		t.Errorf("group set without a password: exit %d: %s", code, got)
	} else {
		t.Log(got)
	}
}
