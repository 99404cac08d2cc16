package api

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"tidemark/api/access"
	"tidemark/api/smart"
)

// Signed URLs let a client that cannot send a token with each request, such as a loader
// of a data warehouse, fetch the files of a job: the manifest, for which a token is
// needed, signs the URL of each anew (decisions.md 6). They are nobody's but the client's
// whose they are, live shortly, and end with what their client may.

// signature is the query parameter that holds it.
const signature = "sig"

// capability signs URLs and knows them again, by the secrets of now.
func (s *Server) capability() *smart.Capability {
	return &smart.Capability{Secrets: *s.secrets.Load()}
}

// signer signs URLs of files; nil if they need a token as everything else does.
func (s *Server) signer() func(job string, file int, serial uint64, until time.Time) string {
	if !s.signs() {
		return nil
	}
	return func(job string, file int, serial uint64, until time.Time) string {
		if soon := time.Now().Add(s.o.Auth.SignedURLs); soon.Before(until) {
			until = soon
		}
		return "?" + signature + "=" + s.capability().Sign(job, file, serial, until)
	}
}

func (s *Server) signs() bool { return s.o.Auth.SignedURLs > 0 && len(s.o.Auth.Secrets) > 0 }

// signedFor is how long signed URLs work; 0: none are given.
func (s *Server) signedFor() time.Duration {
	if !s.signs() {
		return 0
	}
	return s.o.Auth.SignedURLs
}

// bySignature lets in who has a signed URL of a file, as the client that it was signed
// for. Whoever sends a token to it, it is not looked at.
func (s *Server) bySignature(h handler) handler {
	if !s.signs() {
		return s.enter(h)
	}
	return func(w http.ResponseWriter, r *http.Request) error {
		file, err := strconv.Atoi(chi.URLParam(r, "file"))
		if err != nil {
			return err // the pattern lets nothing else through
		}
		serial, err := s.capability().Check(chi.URLParam(r, "job"), file, r.URL.Query().Get(signature))
		if errors.Is(err, smart.ErrCapability) || errors.Is(err, smart.ErrCapabilityExpired) {
			return &access.Denied{Text: err.Error()}
		}
		if err != nil {
			return err
		}
		client, known := s.o.Auth.Clients.BySerial(serial)
		if !known || client.Disabled {
			return &access.Denied{Text: smart.ErrCapability.Error()}
		}
		caller := &access.Caller{Issuer: s.gate.Issuer, Client: client.ID, Serial: serial, Rights: client.May.Rights(), May: client.May, Limits: client.Limits}
		identified(r.Context(), caller)
		return h(w, r.WithContext(access.With(r.Context(), caller)))
	}
}
