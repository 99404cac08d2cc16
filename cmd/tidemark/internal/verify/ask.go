package verify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/manifest"
)

// Asker asks the server for checksums of the files that these pages list. A
// token is sent only if the manifest demands one, only to the origin that the
// export was asked for at (or, where the manifest does not tell, the one that
// has all files), and never over plain HTTP to another machine: a manifest is
// only a file, and anybody may have written it.
func Asker(pages []*manifest.Manifest, token string, transport http.RoundTripper) (func(context.Context, manifest.File) (uint32, error), error) {
	b := bearer{next: transport}
	if token != "" && pages[0].RequiresAccessToken {
		home, err := origin(pages)
		if err != nil {
			return nil, err
		}
		b.token, b.origin = token, home
	}
	client := &bulkclient.Client{Patience: 20 * time.Second, HTTP: &http.Client{
		Transport:     b,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	return func(ctx context.Context, f manifest.File) (uint32, error) {
		crc, err := client.Checksum(ctx, f)
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // a URL may be a secret
		}
		return crc, err
	}, nil
}

// origin is where a token may go.
func origin(pages []*manifest.Manifest) (string, error) {
	home := originOf(pages[0].Request)
	for _, e := range list(pages) {
		o := originOf(e.URL)
		if home == "" {
			home = o
		}
		if o == "" || o != home {
			return "", fmt.Errorf("%s lies elsewhere than the others, or than where the export was asked for: a token goes to one place only; ask without --token-file", e)
		}
	}
	u, err := url.Parse(home)
	if err != nil {
		return "", err
	}
	if u.Scheme != "https" && !loopback(u.Hostname()) {
		return "", errors.New("the server is asked over plain HTTP, which everybody on the way can read: the token is not sent")
	}
	return home, nil
}

// originOf is scheme and host of a URL, "" if it has none.
func originOf(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// bearer sends a token to one origin.
type bearer struct {
	token, origin string
	next          http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" && originOf(r.URL.String()) == b.origin {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}
