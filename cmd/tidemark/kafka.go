package main

import (
	"crypto/tls"
	"fmt"
	"os"
	"strings"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
	"github.com/twmb/franz-go/pkg/kgo"
	franzplain "github.com/twmb/franz-go/pkg/sasl/plain"
	franzscram "github.com/twmb/franz-go/pkg/sasl/scram"

	"tidemark/cmd/tidemark/internal/config"
)

// kafkaTLS reads the files of kafka.tls; nil means plain TCP.
func kafkaTLS(c config.ClientTLS) (*tls.Config, error) {
	if !c.Enabled {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pool, err := authorities(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read kafka.tls.ca_file: %w", err)
		}
		t.RootCAs = pool
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read kafka.tls.cert_file and kafka.tls.key_file: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// kafkaSASL reads the password; nil means no authentication.
func kafkaSASL(c config.SASL) (sasl.Mechanism, error) {
	if c.Mechanism == "" {
		return nil, nil
	}
	password, err := kafkaPassword(c)
	if err != nil {
		return nil, err
	}
	algorithm := scram.SHA256
	switch c.Mechanism {
	case "PLAIN":
		return plain.Mechanism{Username: c.Username, Password: password}, nil
	case "SCRAM-SHA-512":
		algorithm = scram.SHA512
	}
	m, err := scram.Mechanism(algorithm, c.Username, password)
	if err != nil {
		// The error may quote what it could not prepare.
		return nil, fmt.Errorf("kafka.sasl: user or password holds characters that %s does not allow", c.Mechanism)
	}
	return m, nil
}

func kafkaPassword(c config.SASL) (string, error) {
	text, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("read kafka.sasl.password_file: %w", err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// kafkaReach is how franz-go reaches the brokers.
func kafkaReach(c config.Kafka) ([]kgo.Opt, error) {
	reach := []kgo.Opt{kgo.SeedBrokers(c.Brokers...), kgo.ClientID("tidemark")}
	secure, err := kafkaTLS(c.TLS)
	if err != nil {
		return nil, err
	}
	if secure != nil {
		reach = append(reach, kgo.DialTLSConfig(secure))
	}
	if c.SASL.Mechanism == "" {
		return reach, nil
	}
	password, err := kafkaPassword(c.SASL)
	if err != nil {
		return nil, err
	}
	login := franzscram.Auth{User: c.SASL.Username, Pass: password}
	switch c.SASL.Mechanism {
	case "PLAIN":
		return append(reach, kgo.SASL(franzplain.Auth{User: c.SASL.Username, Pass: password}.AsMechanism())), nil
	case "SCRAM-SHA-512":
		return append(reach, kgo.SASL(login.AsSha512Mechanism())), nil
	}
	return append(reach, kgo.SASL(login.AsSha256Mechanism())), nil
}
