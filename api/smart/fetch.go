package smart

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tidemark/api/outcome"
)

// A Fetcher gets the key sets of clients that keep them at a URL. Whoever knows a
// client's name can make us ask that URL: so it asks seldom, of the internet only,
// and follows nobody.
type Fetcher struct {
	// Allow are hosts that may have addresses of a private network.
	Allow []string
	// Plain lets URLs of this machine be http.
	Plain bool
	// TLS of the connections (default: of the system, 1.2 at least).
	TLS *tls.Config
	// Resolver of names (default: of the system).
	Resolver *net.Resolver
	Now      func() time.Time // default time.Now

	once   sync.Once
	client *http.Client
	mu     sync.Mutex
	sets   map[string]*fetched // by URL: as many as clients have
}

const (
	fetchTime = 5 * time.Second // of all there is to one
	// keptFor is how long keys stay of which nothing is said, and maxKept however much is.
	keptFor = 5 * time.Minute
	maxKept = 24 * time.Hour
	// refetch is how soon keys are asked for again that were not there, or not to be had.
	refetch = time.Minute
)

// fetched is what is known of one URL.
type fetched struct {
	begun atomic.Int64 // how often it was asked
	mu    sync.Mutex   // held while it is asked: who comes meanwhile has the same answer, or the next
	keys  Keys
	until time.Time // they may be kept
	asked time.Time
	err   error // of the last time
}

// CheckURL tells whether keys can be fetched from a URL at all.
func (f *Fetcher) CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return errors.New("it is no absolute URL without user and fragment, such as https://client.example.org/jwks.json")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && f.Plain && isLocal(u.Hostname()):
		return nil
	}
	return errors.New("its scheme is not https")
}

func isLocal(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Keys are those at a URL, as Verifier.Fetch wants them. They are kept for as long as
// the client's server lets (SMART 2.2.0: a server shall not cache them any longer),
// and asked for again, at most once a minute, if there is no key with the kid.
func (f *Fetcher) Keys(ctx context.Context, at, kid string) (Keys, error) {
	f.mu.Lock()
	if f.sets == nil {
		f.sets = map[string]*fetched{}
	}
	s := f.sets[at]
	if s == nil {
		s = &fetched{}
		f.sets[at] = s
	}
	f.mu.Unlock()
	came := s.begun.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := f.now()
	// What was asked for after somebody came was not kept for him: a URL that lets nothing
	// be kept is not asked by each who waits in turn, which strangers could make many.
	fresh := now.Before(s.until) || s.begun.Load() > came && s.err == nil
	_, known := s.keys.find(kid, "")
	soon := now.Before(s.asked.Add(refetch))
	switch {
	case fresh && (known || soon):
		return s.keys, nil
	case s.err != nil && soon:
	case soon && !known && s.keys != nil:
		return s.keys, nil // they may be too old to be used: these have not got the key
	default:
		// It is for whoever comes next, too: a client that hangs up ends nothing.
		s.begun.Add(1)
		keys, until, err := f.fetch(context.WithoutCancel(ctx), at)
		s.asked, s.err = now, err
		if err == nil {
			s.keys, s.until = keys, until
		}
		if err == nil || fresh {
			return s.keys, nil
		}
	}
	return nil, refuse("the keys of the client cannot be had from the URL that was registered: %s", outcome.Quote(s.err.Error()))
}

// fetch asks a URL once.
func (f *Fetcher) fetch(ctx context.Context, at string) (keys Keys, until time.Time, err error) {
	if err := f.CheckURL(at); err != nil {
		return nil, until, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, until, err
	}
	request.Header.Set("Accept", "application/json")
	f.once.Do(f.connect)
	answer, err := f.client.Do(request)
	if err != nil {
		return nil, until, plainly(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, until, fmt.Errorf("the answer is %d, not 200", answer.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, MaxKeys+1))
	if err != nil {
		return nil, until, plainly(err)
	}
	keys, err = ParseKeys(body)
	return keys, f.now().Add(keeping(answer.Header)), err
}

// plainly is an error without the URL, which may hold what is nobody's business, and
// without addresses: who asks does not learn what lies where in our network.
func plainly(err error) error {
	switch {
	case errors.Is(err, errForbidden):
		return errForbidden
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("it does not answer in time")
	case errors.As(err, new(*net.DNSError)):
		return errors.New("its host has no address")
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return errors.New("its certificate is not to be trusted")
	}
	return errors.New("it cannot be reached")
}

// errForbidden: the host has an address that clients' keys are not fetched from.
var errForbidden = errors.New("its host lies in a private network")

// connect makes the client: without proxies, which would resolve names for us, and
// without redirects, which would lead elsewhere than was registered.
func (f *Fetcher) connect() {
	f.client = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: f.dial, TLSClientConfig: f.config(), ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 16 << 10,
			MaxIdleConns: 16, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: fetchTime,
		},
	}
}

func (f *Fetcher) config() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.TLS != nil {
		c = f.TLS.Clone()
		c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	}
	return c
}

// dial connects to an address that the host has now: what it had when it was looked
// at is of no use to know.
func (f *Fetcher) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Resolver: f.Resolver}
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !f.allowed(host, at.Addr()) {
			return errForbidden
		}
		return nil
	}
	return d.DialContext(ctx, network, address)
}

// allowed tells whether a host's address may be asked.
func (f *Fetcher) allowed(host string, at netip.Addr) bool {
	if at = at.Unmap(); at.IsLoopback() && f.Plain && isLocal(host) {
		return true
	}
	return slices.Contains(f.Allow, host) || at.IsGlobalUnicast() && !at.IsPrivate() && !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(at) })
}

// special are addresses that look like anybody's and are not (IANA's registries of
// special purposes): shared by a provider's customers, for tests and documents, reserved,
// or leading to an IPv4 address of whatever kind.
var special = prefixes(`0.0.0.0/8 100.64.0.0/10 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4
	64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16 3fff::/20 5f00::/16 fec0::/10`)

func prefixes(list string) (all []netip.Prefix) {
	for text := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// keeping is for how long an answer may be kept (RFC 9111, 4.2).
func keeping(h http.Header) time.Duration {
	life, said := keptFor, strings.ToLower(strings.Join(h.Values("Cache-Control"), ","))
	for directive := range strings.SplitSeq(said, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch name {
		case "no-store", "no-cache":
			return 0
		case "max-age":
			life = seconds(strings.Trim(value, `"`)) - seconds(h.Get("Age"))
		}
	}
	return max(0, life)
}

// seconds are those that a header says, up to maxKept: none if it says none.
func seconds(text string) time.Duration {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(min(n, int64(maxKept/time.Second))) * time.Second
}

func (f *Fetcher) now() time.Time {
	if f.Now == nil {
		return time.Now()
	}
	return f.Now()
}
