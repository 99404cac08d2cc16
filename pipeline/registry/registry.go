// Package registry asks a schema registry that speaks Confluent's API for the schemas that
// records name, each once: what it has told is kept, so that records flow while it is away.
// It refuses to know what a schema means.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"tidemark/pipeline/decode"
)

// A Keeper keeps what was told.
type Keeper interface {
	Remember(name string, what []byte) error
	Remembered(name string) ([]byte, error)
}

// Config says where the registry is. URL must be set.
type Config struct {
	URL                string // of the API, such as http://registry:8081 or http://apicurio:8080/apis/ccompat/v7
	Username, Password string // for HTTP Basic; "": none
	TLS                *tls.Config
	Keeper             Keeper
	// Timeout bounds one request; default 10 s.
	Timeout time.Duration
	// AskAgain is how long the answer that there is no such schema holds; default one minute:
	// a producer that names a schema of another registry must not flood this one.
	AskAgain time.Duration
}

// Registry is safe for concurrent use.
type Registry struct {
	c      Config
	client *sr.Client

	mu      sync.Mutex
	missing map[uint32]time.Time // when it was told that there is none
}

var _ decode.Schemas = (*Registry)(nil)

// New makes a Registry. It asks for nothing yet.
func New(c Config) (*Registry, error) {
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.AskAgain == 0 {
		c.AskAgain = time.Minute
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = c.TLS
	o := []sr.ClientOpt{
		sr.URLs(strings.TrimRight(c.URL, "/")), sr.HTTPClient(&http.Client{Transport: transport, Timeout: c.Timeout}), sr.UserAgent("tidemark"),
	}
	if c.Username != "" {
		o = append(o, sr.BasicAuth(c.Username, c.Password))
	}
	client, err := sr.NewClient(o...)
	if err != nil {
		return nil, fmt.Errorf("schema registry: %w", err)
	}
	return &Registry{c: c, client: client, missing: map[uint32]time.Time{}}, nil
}

// Schema implements decode.Schemas.
func (r *Registry) Schema(id uint32) (kind, text string, err error) {
	name := fmt.Sprintf("schema/%s/%d", r.c.URL, id)
	kept, err := r.c.Keeper.Remembered(name)
	if err != nil {
		return "", "", err
	}
	if kind, text, ok := strings.Cut(string(kept), "\n"); ok {
		return kind, text, nil
	}
	if r.isMissing(id) {
		return "", "", decode.ErrNoSchema
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.c.Timeout)
	defer cancel()
	s, err := r.client.SchemaByID(ctx, int(id))
	if answer, is := errors.AsType[*sr.ResponseError](err); is && answer.ErrorCode == noSuchSchema {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.missing[id] = time.Now()
		return "", "", decode.ErrNoSchema
	}
	if err != nil {
		return "", "", fmt.Errorf("ask the schema registry at %s for schema %d: %w", r.c.URL, id, err)
	}
	if kind = s.Type.String(); len(s.References) > 0 {
		kind = "REFERENCES" // to others, which are not looked up
	}
	if err := r.c.Keeper.Remember(name, []byte(kind+"\n"+s.Schema)); err != nil {
		return "", "", fmt.Errorf("keep schema %d: %w", id, err)
	}
	return kind, s.Schema, nil
}

// noSuchSchema is Confluent's code for that; another 404 says that the URL is wrong.
const noSuchSchema = 40403

func (r *Registry) isMissing(id uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, known := r.missing[id]
	if known && time.Since(at) >= r.c.AskAgain {
		delete(r.missing, id)
		return false
	}
	return known
}
