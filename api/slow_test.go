package api

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"tidemark/api/apitest"
	"tidemark/api/smart"
)

// serving has one connection to a handler, in memory.
func serving(t *testing.T, h http.Handler) (client net.Conn, stop func()) {
	t.Helper()
	l := &pipes{make(chan net.Conn), make(chan struct{})}
	server := &http.Server{Handler: h, IdleTimeout: idleTimeout}
	go func() { _ = server.Serve(l) }()
	client, conn := net.Pipe()
	l.conns <- conn
	return client, func() {
		client.Close()
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// TestSlowBodies: a body that never comes to its end holds no connection, whatever the
// route does with it, and whether it is let in or not.
func TestSlowBodies(t *testing.T) {
	const form, resource = "Content-Type: application/x-www-form-urlencoded\r\n", "Content-Type: application/fhir+json\r\nAccept: application/fhir+json\r\nPrefer: respond-async\r\n"
	for _, c := range []struct {
		name, request, body string
		needed              bool
	}{
		{"a token", "POST /fhir/auth/token", form, true},
		{"a kick-off without a token", "POST /fhir/$export", resource, true},
		{"a kick-off", "POST /fhir/$export", resource, false},
		{"what has no body", "GET /fhir/metadata", "", true},
		{"a probe", "GET /healthz", "", true},
		{"a method that is not allowed", "PUT /fhir/metadata", "", true},
		{"nothing", "POST /nothing", "", true},
	} {
		for _, length := range []string{"Content-Length: 1000\r\n\r\na", "Transfer-Encoding: chunked\r\n\r\n5\r\na"} {
			synctest.Test(t, func(t *testing.T) {
				s, err := New(Options{
					Store: apitest.New(1), PublicURL: "http://tidemark.test/fhir",
					Auth: Auth{Needed: c.needed, Secrets: []smart.Secret{smart.NewSecret()}, Once: func([]byte, time.Time) (bool, error) { return true, nil }},
				})
				if err != nil {
					t.Fatal(err)
				}
				client, stop := serving(t, s.Handler())
				defer stop()
				began := time.Now()
				if _, err := io.WriteString(client, c.request+" HTTP/1.1\r\nHost: localhost\r\n"+c.body+length); err != nil {
					t.Fatal(err)
				}
				_ = client.SetReadDeadline(began.Add(time.Hour))
				from := bufio.NewReader(client)
				answer, err := http.ReadResponse(from, nil)
				if err != nil {
					t.Fatalf("%s: no answer after %v: %v", c.name, time.Since(began), err)
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				_, err = from.ReadByte()
				if took := time.Since(began); err != io.EOF || took > bodyTime+time.Second { //nolint:errorlint // of a pipe
					t.Errorf("%s: after %v the connection is there still: %v", c.name, took, err)
				}
			})
		}
	}
}

// TestPunctualBody: a body that has come leaves no deadline behind, which would end what
// is sent meanwhile.
func TestPunctualBody(t *testing.T) {
	for _, request := range []string{"GET", "POST"} {
		synctest.Test(t, func(t *testing.T) {
			client, stop := serving(t, outermost(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				time.Sleep(2 * bodyTime)
				if r.Context().Err() != nil {
					t.Errorf("%s: the request has ended: %v", r.Method, context.Cause(r.Context()))
				}
			})))
			defer stop()
			if _, err := io.WriteString(client, request+" / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na"); err != nil {
				t.Fatal(err)
			}
			_, _ = http.ReadResponse(bufio.NewReader(client), nil)
		})
	}
}
