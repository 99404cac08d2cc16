package api_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tidemark/api"
)

// Few large bodies are read at a time, however slowly they come; small ones, and
// what has none, go on beside them. One that has ended makes room.
func TestLargeBodies(t *testing.T) {
	base, stop := running(t, api.Options{})
	to := strings.TrimPrefix(base, "http://")
	const head = "POST /fhir/$export HTTP/1.1\r\nHost: localhost\r\nAccept: application/fhir+json\r\nPrefer: respond-async\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
	var open []net.Conn
	begin := func(length string) string {
		t.Helper()
		conn, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
		if _, err := io.WriteString(conn, head+length+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, _ := conn.Read(b)
		line, _, _ := strings.Cut(string(b[:n]), "\r\n")
		return line
	}
	const goOn, later = "HTTP/1.1 100 Continue", "HTTP/1.1 503 Service Unavailable"
	for i := range 5 {
		length, want := "Content-Length: 100000", goOn
		if i%2 == 1 {
			length = "Transfer-Encoding: chunked"
		}
		if i == 4 {
			want = later
		}
		if got := begin(length); got != want {
			t.Errorf("body %d: %s, want %s", i+1, got, want)
		}
	}
	if got := begin("Content-Length: 100"); got != goOn {
		t.Errorf("a small body beside large ones: %s", got)
	}
	if got := begin("Content-Length: 2000000"); got != later {
		t.Errorf("too large a body beside large ones: %s", got)
	}
	if resp, err := http.Get(base + "/healthz"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("health beside large bodies: %v", err)
	}
	open[0].Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if got := begin("Content-Length: 2000000"); got == "HTTP/1.1 413 Request Entity Too Large" { // at once, though nothing of it came
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a body that has ended makes no room")
		}
	}
	for _, c := range open {
		c.Close()
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
