package smart

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/net/dns/dnsmessage"
)

// A keyServer is a client's, with whatever it answers.
type keyServer struct {
	*httptest.Server
	f      *Fetcher
	asked  atomic.Int64
	answer atomic.Pointer[func(http.ResponseWriter)]
	mu     sync.Mutex
	clock  time.Time
}

func newKeyServer(t *testing.T) *keyServer {
	s := &keyServer{clock: time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if r.Header.Get("Authorization") != "" {
			t.Error("keys are asked for with authorization")
		}
		(*s.answer.Load())(w)
	}))
	t.Cleanup(s.Close)
	s.f = &Fetcher{Allow: []string{"127.0.0.1"}, TLS: s.trust(), Now: s.now}
	return s
}

func (s *keyServer) trust() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return &tls.Config{RootCAs: pool}
}

func (s *keyServer) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

func (s *keyServer) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = s.clock.Add(d)
}

func (s *keyServer) says(status int, cache, body string) {
	s.answer.Store(new(func(w http.ResponseWriter) {
		if cache != "" {
			w.Header().Set("Cache-Control", cache)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
}

func setText(t testing.TB, kids ...string) string {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, kid := range kids {
		set.Keys = append(set.Keys, newSigner(t, jose.ES384, kid).public())
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestFetch: keys are kept as long as their server lets, asked for again at most once
// a minute, and never later than it says.
func TestFetch(t *testing.T) {
	s := newKeyServer(t)
	want := func(what, kid string, has bool, asked int64) {
		t.Helper()
		keys, err := s.f.Keys(t.Context(), s.URL, kid)
		_, known := keys.find(kid, "")
		if err != nil || known != has || s.asked.Load() != asked {
			t.Errorf("%s: has %v, %v, asked %d times; want %v, %d", what, known, err, s.asked.Load(), has, asked)
		}
	}
	s.says(200, "max-age=600", setText(t, "a"))
	want("at first", "a", true, 1)
	s.pass(599 * time.Second)
	want("while they are fresh", "a", true, 1)
	s.says(200, "public, max-age=600", setText(t, "a", "b"))
	want("a new key", "b", true, 2)
	want("a key that nobody has", "x", false, 2)
	s.pass(59 * time.Second)
	want("within the minute", "x", false, 2)
	s.pass(2 * time.Second)
	want("after it", "x", false, 3)
	s.says(200, "", setText(t, "b"))
	s.pass(600 * time.Second)
	want("a key that was taken away", "a", false, 4)
	s.says(500, "", "")
	s.pass(4 * time.Minute)
	want("while they are fresh, and the server is ill", "b", true, 4)
	want("and another key is wanted", "x", false, 5)
	s.pass(2 * time.Minute)
	refused := func(what string, asked int64) {
		t.Helper()
		keys, err := s.f.Keys(t.Context(), s.URL, "b")
		if r, is := errors.AsType[*Refusal](err); !is || keys != nil || r.Code != "invalid_client" || s.asked.Load() != asked {
			t.Errorf("%s: %v, %v, asked %d times, want %d", what, keys, err, s.asked.Load(), asked)
		}
	}
	refused("when they are too old", 6)
	refused("and again at once", 6)
	s.says(200, "no-store", setText(t, "b"))
	s.pass(61 * time.Second)
	want("well again", "b", true, 7)
	want("never kept", "b", true, 8)
}

// TestFetchRefuses: what is no key set of the internet is not fetched, and no error
// tells where something lies.
func TestFetchRefuses(t *testing.T) {
	s := newKeyServer(t)
	good := setText(t, "a")
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	for _, c := range []struct {
		name, says string
		with       func()
		f          *Fetcher
		url        string
	}{
		{"a private network", "private network", nil, &Fetcher{TLS: s.trust()}, s.URL},
		{"a name of it", "private network", nil, &Fetcher{TLS: s.trust()}, strings.Replace(s.URL, "127.0.0.1", "localhost", 1)},
		{"another's name", "private network", nil, &Fetcher{TLS: s.trust(), Allow: []string{"localhost"}}, s.URL},
		{"http", "https", nil, &Fetcher{Allow: []string{"127.0.0.1"}}, strings.Replace(s.URL, "https", "http", 1)},
		{"no URL", "absolute", nil, &Fetcher{}, "jwks.json"},
		{"a user in it", "absolute", nil, &Fetcher{}, "https://me:secret@client.example.org/"},
		{"a certificate of nobody", "certificate", nil, &Fetcher{Allow: []string{"127.0.0.1"}}, s.URL},
		{"a redirect", "302", func() {
			s.answer.Store(new(func(w http.ResponseWriter) { w.Header().Set("Location", elsewhere.URL); w.WriteHeader(302) }))
		}, nil, s.URL},
		{"another answer", "404", func() { s.says(404, "", good) }, nil, s.URL},
		{"no keys", "JSON Web Key Set", func() { s.says(200, "", "<html>") }, nil, s.URL},
		{"too many", "more than", func() { s.says(200, "", good+strings.Repeat(" ", MaxKeys)) }, nil, s.URL},
		{"nobody there", "reached", nil, &Fetcher{Allow: []string{"127.0.0.1"}}, "https://127.0.0.1:1/"},
	} {
		if c.with != nil {
			c.with()
		} else {
			s.says(200, "", good)
		}
		f := c.f
		if f == nil {
			f = &Fetcher{Allow: []string{"127.0.0.1"}, TLS: s.trust()}
		}
		keys, err := f.Keys(t.Context(), c.url, "a")
		if err == nil || keys != nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "127.0.0.1") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v; want an error that says %s", c.name, keys, err, c.says)
		}
	}
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, good) }))
	defer plain.Close()
	for at, ok := range map[string]bool{plain.URL: true, strings.Replace(plain.URL, "127.0.0.1", "localhost", 1): true, "http://192.168.0.1/": false, "http://client.example.org/": false} {
		if err := (&Fetcher{Plain: true}).CheckURL(at); (err == nil) != ok {
			t.Errorf("http on this machine, %s: %v", at, err)
		}
	}
	if keys, err := (&Fetcher{Plain: true}).Keys(t.Context(), plain.URL, "a"); err != nil || len(keys) != 1 {
		t.Errorf("http on this machine: %v", err)
	}
}

// TestFetchOnce: who comes while keys are fetched waits for them, and one that hangs
// up takes them from nobody.
func TestFetchOnce(t *testing.T) {
	s := newKeyServer(t)
	held, entered := make(chan struct{}), make(chan struct{}, 1)
	good := setText(t, "a")
	s.answer.Store(new(func(w http.ResponseWriter) {
		entered <- struct{}{}
		<-held
		fmt.Fprint(w, good)
	}))
	ctx, hangUp := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range 20 {
		of := t.Context()
		if i == 0 {
			of = ctx
		}
		all.Go(func() {
			if keys, err := s.f.Keys(of, s.URL, "a"); err != nil || len(keys) != 1 {
				t.Errorf("%v, %v", keys, err)
			}
		})
		if i == 0 {
			<-entered
		}
	}
	hangUp()
	close(held)
	all.Wait()
	if s.asked.Load() != 1 {
		t.Errorf("asked %d times", s.asked.Load())
	}
}

// TestFetchInTurn: of a URL that lets nothing be kept, who waits has what was asked for
// after he came, and does not ask in turn: else strangers made its owner wait. What was
// asked for in vain is nobody's.
func TestFetchInTurn(t *testing.T) {
	s := newKeyServer(t)
	const many = 40
	together := func() (got int64) {
		var all sync.WaitGroup
		var had atomic.Int64
		of := s.f.sets[s.URL]
		of.mu.Lock()
		for range many {
			all.Go(func() {
				if keys, err := s.f.Keys(t.Context(), s.URL, "a"); err == nil && len(keys) == 1 {
					had.Add(1)
				}
			})
		}
		time.Sleep(100 * time.Millisecond) // they wait now; on a busy machine some come later
		of.mu.Unlock()
		all.Wait()
		return had.Load()
	}
	s.says(http.StatusOK, "no-store", setText(t, "a"))
	if _, err := s.f.Keys(t.Context(), s.URL, "a"); err != nil {
		t.Fatal(err)
	}
	if got, asked := together(), s.asked.Load()-1; got != many || asked < 1 || asked > many/4 {
		t.Errorf("%d of %d had the keys, which were asked for %d times, want once, or some more if the machine is busy", got, many, asked)
	}
	s.says(http.StatusInternalServerError, "", "")
	if got := together(); got != 0 {
		t.Errorf("%d had keys that nobody was to keep", got)
	}
}

// TestRebinding: a name that has a good address when it is looked at, and another when
// it is connected to, leads nowhere.
func TestRebinding(t *testing.T) {
	var answers atomic.Int64
	addresses := []string{"93.184.216.34", "169.254.169.254"}
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response = true
			m.Additionals = nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				at := netip.MustParseAddr(addresses[min(int(answers.Add(1))-1, 1)])
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: at.As4()}}}
			}
			if text, err := m.Pack(); err == nil {
				_, _ = server.WriteTo(text, from)
			}
		}
	}()
	f := &Fetcher{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", server.LocalAddr().String())
	}}}
	if found, err := f.Resolver.LookupHost(t.Context(), "client.example.org"); err != nil || found[0] != addresses[0] {
		t.Fatalf("at first: %v, %v", found, err)
	}
	_, err = f.Keys(t.Context(), "https://client.example.org/jwks.json", "a")
	if err == nil || !strings.Contains(err.Error(), "private network") || answers.Load() != 2 {
		t.Errorf("after %d answers: %v", answers.Load(), err)
	}
}

// TestAllowed: which addresses are the internet's.
func TestAllowed(t *testing.T) {
	f := &Fetcher{Allow: []string{"in.example.org"}}
	for at, ok := range map[string]bool{
		"93.184.216.34": true, "2606:2800:220:1::1": true, "100.63.255.255": true, "100.128.0.0": true,
		"127.0.0.1": false, "::1": false, "10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "fe80::1": false,
		"fc00::1": false, "100.64.0.1": false, "224.0.0.1": false, "ff02::1": false, "0.0.0.0": false, "::": false, "255.255.255.255": false,
		"::ffff:10.0.0.1": false, "::ffff:93.184.216.34": true, "64:ff9b::a00:1": false, "2002:a00:1::": false, "198.18.0.1": false,
	} {
		if got := f.allowed("client.example.org", netip.MustParseAddr(at)); got != ok {
			t.Errorf("%s: %v", at, got)
		}
		if !f.allowed("in.example.org", netip.MustParseAddr(at)) {
			t.Errorf("%s of a host that may: refused", at)
		}
	}
}

// TestKeeping: RFC 9111, 4.2.
func TestKeeping(t *testing.T) {
	for cache, want := range map[string]time.Duration{
		"": keptFor, "max-age=10": 10 * time.Second, `private, Max-Age="10"`: 10 * time.Second, "max-age=10, no-store": 0, "no-cache": 0, "max-age=-1": 0,
		"max-age=x": 0, "max-age=99999999999999": maxKept, "max-age=99999999999999999999999": 0, "must-revalidate": keptFor,
	} {
		if got := keeping(http.Header{"Cache-Control": {cache}}); got != want {
			t.Errorf("%q: %v, want %v", cache, got, want)
		}
	}
	if got := keeping(http.Header{"Cache-Control": {"max-age=10"}, "Age": {"7"}}); got != 3*time.Second {
		t.Errorf("of an answer that is 7 s old: %v", got)
	}
}

// TestFetchForNobody: a kid that is not there has keys asked for once a minute at most, also
// if they may not be kept: whoever knows a client's name can send one, without any key.
func TestFetchForNobody(t *testing.T) {
	s := newKeyServer(t)
	s.says(http.StatusOK, "no-store", setText(t, "a"))
	for range 3 {
		if _, err := s.f.Keys(t.Context(), s.URL, "a"); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.asked.Load(); n != 3 {
		t.Fatalf("keys that may not be kept were asked for %d times, right is each time", n)
	}
	for range 20 {
		keys, err := s.f.Keys(t.Context(), s.URL, "made up")
		if _, known := keys.find("made up", ""); known || err != nil {
			t.Errorf("%v, %v", keys, err)
		}
	}
	if n := s.asked.Load(); n != 3 {
		t.Errorf("a kid that is not there had them asked for %d times", n-3)
	}
	s.says(http.StatusOK, "no-store", setText(t, "made up"))
	s.pass(refetch)
	keys, err := s.f.Keys(t.Context(), s.URL, "made up")
	if _, known := keys.find("made up", ""); !known {
		t.Errorf("a minute later: %v, %v", keys, err)
	}
}
