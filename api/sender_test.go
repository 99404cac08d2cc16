package api

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// connection is a ResponseWriter that offers what net/http's does, and records
// what it is given.
type connection struct {
	http.ResponseWriter
	bytes.Buffer
	sources []io.Reader
	ends    []int64
}

func (c *connection) Header() http.Header         { return http.Header{} }
func (c *connection) WriteHeader(int)             {}
func (c *connection) Write(p []byte) (int, error) { return c.Buffer.Write(p) }
func (c *connection) ReadFrom(src io.Reader) (int64, error) {
	c.sources = append(c.sources, src)
	n, err := io.Copy(&c.Buffer, src)
	c.ends = append(c.ends, n)
	return n, err
}

// Sendfile needs an io.LimitedReader around an os.File, and nothing else: a
// sender hands on exactly that, in pieces, and leaves the count right.
func TestSenderKeepsSendfile(t *testing.T) {
	const size = 2*sendPiece + 100
	path := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size+50), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	conn := &connection{}
	s := newSender(conn)
	src := &io.LimitedReader{R: f, N: size}
	n, err := io.Copy(s, src) // as a caller may do it
	if err != nil || n != size || s.bytes != size || conn.Len() != size || src.N != 0 {
		t.Fatalf("copied %d (%v), counted %d, arrived %d, left %d", n, err, s.bytes, conn.Len(), src.N)
	}
	if len(conn.sources) != 3 {
		t.Errorf("%d pieces, want 3", len(conn.sources))
	}
	for _, src := range conn.sources {
		lr, ok := src.(*io.LimitedReader)
		if !ok {
			t.Fatalf("the connection got a %T", src)
		}
		if _, ok := lr.R.(*os.File); !ok {
			t.Fatalf("the connection got a LimitedReader of %T", lr.R)
		}
	}
}

func TestSenderShortSource(t *testing.T) {
	conn := &connection{}
	s := newSender(conn)
	n, err := s.ReadFrom(&io.LimitedReader{R: strings.NewReader("abc"), N: 10})
	if n != 3 || err != nil {
		t.Errorf("ReadFrom = %d, %v, want 3 and no error: the caller knows what is missing", n, err)
	}
	n, err = s.ReadFrom(strings.NewReader("defg"))
	if n != 4 || err != nil || conn.String() != "abcdefg" || s.bytes != 7 {
		t.Errorf("ReadFrom = %d, %v, arrived %q", n, err, conn.String())
	}
}

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// A client that stops reading is let go after a minute; one that reads slowly
// is served to the end.
func TestStall(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pause time.Duration // before each 64 KiB
		want  int64         // bytes that arrive at least
	}{
		{"slow", 3 * time.Second, 5 << 20},
		{"dead", 2 * time.Minute, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &pipes{make(chan net.Conn), make(chan struct{})}
				result := make(chan error, 1)
				server := &http.Server{Handler: outermost(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					to := newSender(w)
					to.Header().Set("Content-Length", "5242880")
					_, err := to.Write(make([]byte, 5<<20))
					result <- err
				}))}
				go func() { _ = server.Serve(l) }()
				client, conn := net.Pipe()
				l.conns <- conn
				if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				var got int64
				for {
					time.Sleep(tt.pause)
					n, err := io.CopyN(io.Discard, client, 64<<10)
					got += n
					if err != nil || got >= 5<<20 {
						break
					}
				}
				go func() { _, _ = io.Copy(io.Discard, client) }() // the headers' length is still under way
				if err := <-result; (err == nil) != (tt.name == "slow") {
					t.Errorf("the handler saw %v", err)
				}
				if got < tt.want {
					t.Errorf("%d bytes arrived, want %d", got, tt.want)
				}
				client.Close()
				if err := server.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
