package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tidemark/cmd/tidemark/internal/bulkclient"
)

var siegeTime = flag.Duration("siege.time", 12*time.Second, "how long TestSiege goes on; above 45s it also sees that slow headers and bodies are ended")

// What a siege may cost: the budget of design.md 4, and for each of 1,900 connections
// what a header may take.
const (
	siegeMemory  = budget + 1900*64<<10
	siegeLate    = 10 * time.Second // by so much may a connection be ended after it should
	siegeStreams = 1000
	siegePace    = 100 * time.Millisecond // between two attacks of one besieger: they share the processors with what they besiege
)

// Everything that wears a server down, at once and each from an address of its own:
// connections that never finish their headers or bodies, headers and bodies beyond
// all measure, a thousand downloads, storms of kick-offs. Memory stays bounded,
// health is told all the time, and a client that behaves is served meanwhile.
func TestSiege(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8 and tells what memory a process took")
	}
	if with := checking(); with != "" {
		t.Skipf("built with %s, which takes memory and time of its own", with)
	}
	r := oneTopic(t)
	const n = 400
	var batch []*kgo.Record
	rng := rand.NewChaCha8([32]byte{3})
	for i := range n {
		batch = append(batch, r.change("Media", fmt.Sprint(i), noise(rng, 16<<10), time.Now()))
	}
	r.put(batch...)
	r.start()
	_, m := r.beyond(time.Now(), nil)
	if len(m.Output) != 1 {
		t.Fatalf("%d files, want one of Media", len(m.Output))
	}

	s := &siege{r: r, address: strings.TrimSuffix(strings.TrimPrefix(r.client.Base, "http://"), "/fhir"), file: m.Output[0], rows: n}
	ctx, cancel := context.WithTimeout(t.Context(), *siegeTime)
	defer cancel()
	g := new(errgroup.Group)
	g.Go(func() error { return s.health(ctx) })
	g.Go(func() error { return s.behave(ctx) })
	attacks := []struct {
		name  string
		many  int
		sends func(ctx context.Context, from *besieger) error
	}{
		{"slow headers", 500, s.slowHeaders},
		{"slow bodies", 200, s.slowBodies},
		{"slow forms", 100, s.slowForms},
		{"endless headers", 20, s.endlessHeaders},
		{"oversized bodies", 20, s.oversizedBodies},
		{"kick-offs", 50, s.kickOffs},
		{"kick-offs with large bodies", 100, s.largeKickOffs},
		{"downloads", siegeStreams, s.downloads},
	}
	for i, a := range attacks {
		b := newBesieger(fmt.Sprintf("127.0.0.%d", 10+i), s.address)
		for range a.many {
			g.Go(func() error {
				for ctx.Err() == nil {
					if err := a.sends(ctx, b); err != nil && ctx.Err() == nil {
						return fmt.Errorf("%s: %w", a.name, err)
					}
					b.done.Add(1)
					pause(ctx, siegePace)
				}
				return nil
			})
		}
		t.Cleanup(func() {
			b.client.CloseIdleConnections()
			t.Logf("%s: %d times, answers %s", a.name, b.done.Load(), b.said())
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d probes, the slowest %v; a client that behaves: %d downloads, the slowest %v", s.probes, s.slowest, s.served, s.slowestServed)
	if s.probes == 0 {
		t.Error("health was not told once")
	}
	if s.served == 0 {
		t.Error("the client that behaves was not served once")
	}
	if peak := r.report(t, "besieged"); peak > siegeMemory {
		t.Errorf("peak RSS is %d MB, want at most %d", peak>>20, siegeMemory>>20)
	}
	if !strings.Contains(r.get("/metrics"), "tidemark_api_connections") {
		t.Error("/metrics does not tell of connections")
	}
	if err := r.stop(); err != nil {
		t.Errorf("SIGTERM after the siege: %v", err)
	}
}

type siege struct {
	r       *rig
	address string
	file    bulkclient.File
	rows    int

	probes        int
	slowest       time.Duration
	served        int
	slowestServed time.Duration
}

// health asks as a platform does: with a connection of its own each time. How long that takes
// is logged and not judged: besiegers, and whatever else this machine tests, share the
// processors with the server. That no answer comes is a fault.
func (s *siege) health(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	for ctx.Err() == nil {
		began := time.Now()
		answer, err := client.Get("http://" + s.address + "/healthz")
		if err != nil {
			return fmt.Errorf("health: %w", err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("health: %s", answer.Status)
		}
		s.probes++
		s.slowest = max(s.slowest, time.Since(began))
		pause(ctx, 50*time.Millisecond)
	}
	return nil
}

// behave downloads the file again and again, and counts its lines.
func (s *siege) behave(ctx context.Context) error {
	for ctx.Err() == nil {
		began := time.Now()
		var v volume
		for _, coding := range []string{"gzip", "identity"} {
			if err := v.add(s.file, coding); err != nil {
				return fmt.Errorf("a client that behaves: %w", err)
			}
		}
		if v.lines != 2*s.rows {
			return fmt.Errorf("a client that behaves: %d lines, want %d", v.lines, 2*s.rows)
		}
		s.served++
		s.slowestServed = max(s.slowestServed, time.Since(began))
	}
	return nil
}

// A besieger has one address.
type besieger struct {
	to     string
	dialer net.Dialer
	client *http.Client
	done   atomic.Int64

	mu      sync.Mutex
	answers map[int]int
}

func newBesieger(from, to string) *besieger {
	b := &besieger{to: to, dialer: net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, answers: map[int]int{}}
	b.client = &http.Client{Transport: &http.Transport{DialContext: b.dialer.DialContext, MaxIdleConnsPerHost: 2000, DisableCompression: true}}
	return b
}

func (b *besieger) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprint(b.answers)
}

// heard notes an answer and checks that it is one of those that are right.
func (b *besieger) heard(status int, right ...int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers[status]++
	if slices.Contains(right, status) {
		return nil
	}
	return fmt.Errorf("answer %d, want one of %v", status, right)
}

func (b *besieger) dial(ctx context.Context) (net.Conn, error) {
	return b.dialer.DialContext(ctx, "tcp", b.to)
}

// slowHeaders sends a byte now and then until the server has enough of it. It must
// have before the siege is over.
func (s *siege) slowHeaders(ctx context.Context, b *besieger) error {
	conn, err := b.dial(ctx)
	if err != nil {
		return nil // it may be kept out
	}
	defer conn.Close()
	began := time.Now()
	if _, err := io.WriteString(conn, "GET /fhir/metadata HTTP/1.1\r\nHost: localhost\r\nX: "); err != nil {
		return nil
	}
	for ctx.Err() == nil {
		if _, err := conn.Write([]byte("x")); err != nil {
			return nil
		}
		if time.Since(began) > 11*time.Second+siegeLate {
			return errors.New("a header that never ends is still read")
		}
		pause(ctx, 200*time.Millisecond)
	}
	return nil
}

const kickOffHead = "POST /fhir/Patient/$export HTTP/1.1\r\nHost: localhost\r\nAccept: application/fhir+json\r\nPrefer: respond-async\r\nContent-Type: application/fhir+json\r\n"

func (s *siege) slowBodies(ctx context.Context, b *besieger) error {
	return s.slowBody(ctx, b, kickOffHead, 1<<20)
}

// slowForms is what everybody can send, whoever he is.
func (s *siege) slowForms(ctx context.Context, b *besieger) error {
	return s.slowBody(ctx, b, "POST /fhir/auth/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n", 60<<10)
}

// slowBody sends nearly all of the largest body at once, so that it is held, and
// then almost nothing.
func (s *siege) slowBody(ctx context.Context, b *besieger, head string, size int) error {
	conn, err := b.dial(ctx)
	if err != nil {
		return nil // it may be kept out
	}
	defer conn.Close()
	began := time.Now()
	if _, err := fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n", head, size); err != nil {
		return nil
	}
	if _, err := conn.Write(bytes.Repeat([]byte(" "), size-1000)); err != nil {
		return nil
	}
	for ctx.Err() == nil {
		if _, err := conn.Write([]byte(" ")); err != nil {
			return nil
		}
		if time.Since(began) > 31*time.Second+siegeLate {
			return errors.New("a body that never ends is still read")
		}
		pause(ctx, 200*time.Millisecond)
	}
	return nil
}

// endlessHeaders sends headers until the server has enough of them.
func (s *siege) endlessHeaders(ctx context.Context, b *besieger) error {
	conn, err := b.dial(ctx)
	if err != nil {
		return nil // it may be kept out
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /fhir/metadata HTTP/1.1\r\nHost: localhost\r\n"); err != nil {
		return nil
	}
	line := []byte("X-Flood: " + strings.Repeat("x", 4000) + "\r\n")
	for sent := 0; ctx.Err() == nil; sent += len(line) {
		if _, err := conn.Write(line); err != nil {
			return nil
		}
		if sent > 64<<20 {
			return errors.New("64 MiB of headers were read")
		}
	}
	return nil
}

func (s *siege) oversizedBodies(ctx context.Context, b *besieger) error {
	return b.post(ctx, io.LimitReader(spaces{}, 64<<20), http.StatusRequestEntityTooLarge, http.StatusServiceUnavailable)
}

// spaces is white space for ever.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// post kicks an export off with a body. A server that answers before it has read all
// may end the connection before the answer is seen.
func (b *besieger) post(ctx context.Context, body io.Reader, right ...int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+b.to+"/fhir/Patient/$export", body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/fhir+json")
	return b.send(req, right...)
}

func (b *besieger) send(req *http.Request, right ...int) error {
	req.Header.Set("Accept", "application/fhir+json")
	req.Header.Set("Prefer", "respond-async")
	answer, err := b.client.Do(req)
	if err != nil {
		return nil
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	return b.heard(answer.StatusCode, right...)
}

func (s *siege) kickOffs(ctx context.Context, b *besieger) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.to+"/fhir/$export?_type=Media&_typeFilter=Media%3Fstatus=completed", nil)
	if err != nil {
		return err
	}
	return b.send(req, http.StatusAccepted, http.StatusTooManyRequests)
}

// largeBody names as many Patients as one may, in nearly as many bytes as one may.
var largeBody = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	b.WriteString(`{"resourceType":"Parameters","parameter":[`)
	for i := range 10_000 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":"patient","valueReference":{"reference":"Patient/%05d-%s"}}`, i, strings.Repeat("x", 20))
	}
	b.WriteString(`]}`)
	return b.Bytes()
})

func (s *siege) largeKickOffs(ctx context.Context, b *besieger) error {
	return b.post(ctx, bytes.NewReader(largeBody()), http.StatusNotFound, http.StatusTooManyRequests, http.StatusServiceUnavailable)
}

// downloads takes the file in the coding that costs the server most, in large pieces
// and without haste.
func (s *siege) downloads(ctx context.Context, b *besieger) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.file.URL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity")
	answer, err := b.client.Do(req)
	if err != nil {
		return nil
	}
	defer answer.Body.Close()
	if err := b.heard(answer.StatusCode, http.StatusOK); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		if _, err := answer.Body.Read(buf); err != nil {
			return nil
		}
		pause(ctx, 100*time.Millisecond)
	}
}
