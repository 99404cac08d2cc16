package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What stands between the server and everybody else is refused where it would
// mean something else than it looks like.
func TestOutside(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{
			"certificates of clients without TLS", "http:\n  tls: {client_ca_file: ca.pem}",
			[]string{"tidemark.yaml:2: http.tls.client_ca_file: asks for clients' certificates without TLS: http.tls.cert_file and http.tls.key_file are missing"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if d := cmp.Diff(test.want, faults(t, Source{File: write(t, test.text)})); d != "" {
				t.Error(d)
			}
		})
	}
}
