package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"tidemark/cmd/tidemark/internal/config"
)

// adminHandler serves operators: metrics, probes and profiles, never data. The
// probes are those of http.listen, for platforms that cannot ask there: with mutual
// TLS they have no certificate.
func adminHandler(metrics, probes http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /healthz", probes)
	mux.Handle("GET /readyz", probes)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// ownHost refuses requests whose Host is not a loopback name: a web page that
// resolves its own name to 127.0.0.1 (DNS rebinding) could otherwise read along
// through the operator's browser.
func ownHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !config.IsLoopback(trimBrackets(host)) {
			http.Error(w, "this address answers to localhost only", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func trimBrackets(host string) string {
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		return host[1 : len(host)-1]
	}
	return host
}

// runAdmin serves admin.listen until ctx ends.
func runAdmin(ctx context.Context, listener net.Listener, handler http.Handler) error {
	if host, _, err := net.SplitHostPort(listener.Addr().String()); err == nil && config.IsLoopback(host) {
		handler = ownHost(handler)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	done := context.AfterFunc(ctx, func() { _ = server.Close() }) // a profile under way is of no worth to anybody
	defer done()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve admin.listen: %w", err)
	}
	return nil
}

// listen opens a port. Its error names the key that chose it.
func listen(ctx context.Context, key, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s (%s): %w; another program may have the port: stop it, or choose another with --set %s=127.0.0.1:PORT",
			address, key, err, key)
	}
	return l, nil
}
