package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tidemark/api"
	"tidemark/api/smart"
)

// TestWhyATokenIsRefused: of another server's token the operator learns what is wrong with
// it, and who sent it does not.
func TestWhyATokenIsRefused(t *testing.T) {
	var log bytes.Buffer
	away := false
	s := newServer(t, api.Options{
		Auth: api.Auth{Needed: true, External: &smart.External{
			Issuer: "https://login.example.org", Audience: public, TokenTypes: []string{"JWT"},
			Keys: func(context.Context, string, string) (smart.Keys, error) {
				if away {
					return nil, errors.New("its host has no address")
				}
				return nil, nil
			},
		}},
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	ask := func(claims string) (status int, body string) {
		log.Reset()
		r := httptest.NewRequest(http.MethodGet, "/fhir/Patient/1", nil)
		r.Header.Set("Authorization", "Bearer eyJhbGciOiJSUzI1NiIsImtpZCI6ImNhbmFyeSIsInR5cCI6IkpXVCJ9."+base64.RawURLEncoding.EncodeToString([]byte(claims))+".AAAA")
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if status, body := ask(`{"iss":"canary"}`); status != http.StatusUnauthorized || strings.Contains(body, "auth.") {
		t.Errorf("%d %s", status, body)
	}
	if said := log.String(); !strings.Contains(said, "its iss is not auth.external.issuer") || strings.Contains(said, "canary") {
		t.Error(said)
	}
	away = true
	if status, body := ask(`{"iss":"https://login.example.org"}`); status != http.StatusServiceUnavailable || strings.Contains(body, "host") {
		t.Errorf("%d %s", status, body)
	}
	if said := log.String(); !strings.Contains(said, "level=WARN") || !strings.Contains(said, "auth.external.jwks_url") || !strings.Contains(said, "its host has no address") {
		t.Error(said)
	}
}
