package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
)

// command runs one command line and returns what it prints and its exit code.
func command(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out strings.Builder
	err := run(t.Context(), args, &out)
	if err == nil {
		return out.String(), 0
	}
	return out.String() + err.Error(), exitCode(err)
}

func TestHelpTeaches(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}} {
		got, code := command(t, args...)
		for _, want := range []string{"tidemark demo", "serve", "check-config", "deadletter", "reindex", "$export"} {
			if code != 0 || !strings.Contains(got, want) {
				t.Errorf("%q: exit %d, want 0 and %q in:\n%s", args, code, want, got)
			}
		}
	}
	for _, name := range []string{"demo", "serve", "check", "reindex", "promise", "deadletter", "client", "group", "load", "reconcile", "verify", "check-config", "version"} {
		if got, code := command(t, name, "--help"); code != 0 || !strings.Contains(got, "Usage: tidemark "+name) {
			t.Errorf("%s --help: exit %d:\n%s", name, code, got)
		}
	}
}

func TestUsageFaultsExitWith2(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(broken, []byte("a: 1\nhttp: {listen: 5}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"nothing"},
		{"serve", "--nothing"},
		{"serve", "--set", "http.listn=1"},
		{"serve", "--print-config", "--config", broken},
		{"check-config"},
		{"check-config", broken},
		{"check-config", filepath.Join(t.TempDir(), "missing.yaml")},
	} {
		if got, code := command(t, args...); code != exitUsage {
			t.Errorf("%q: exit %d, want %d:\n%s", args, code, exitUsage, got)
		}
	}
	got, _ := command(t, "check-config", broken)
	for _, want := range []string{"2 faults", broken + ":1: unknown key a", broken + ":2: http.listen"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}
}

func TestSampleHasNoFault(t *testing.T) {
	if got, code := command(t, "check-config", "../../deploy/tidemark.yaml"); code != 0 || !strings.Contains(got, "no fault") {
		t.Errorf("exit %d: %s", code, got)
	}
}

func TestPrintConfigStartsNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	got, code := command(t, "serve", "--print-config", "--set", "store.path="+dir)
	if code != 0 || !strings.Contains(got, "path: "+dir) || !strings.Contains(got, "# --set store.path") {
		t.Errorf("exit %d: %s", code, got)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the store directory exists: %v", err)
	}
}

func TestVersion(t *testing.T) {
	if got, code := command(t, "version"); code != 0 || !strings.HasPrefix(got, "tidemark "+version) {
		t.Errorf("exit %d: %s", code, got)
	}
}

func TestMetricsHaveOurNamesAndUnits(t *testing.T) {
	tel, err := newTelemetry(t.Context(), config.Default().Telemetry, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer tel.shutdown(t.Context()) //nolint:errcheck // nothing is sent
	counter, err := tel.meters.Meter("test").Int64Counter("store.bytes")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 5)
	answer := httptest.NewRecorder()
	tel.metrics.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{"\ntidemark_store_bytes_total 5\n", "\ngo_goroutines ", "\nprocess_start_time_seconds "} {
		if !strings.Contains(answer.Body.String(), want) {
			t.Errorf("/metrics lacks %q:\n%s", want, answer.Body)
		}
	}
}

func TestTracesGoToTheCollector(t *testing.T) {
	came := make(chan string, 1)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { came <- r.URL.Path }))
	defer collector.Close()
	tel, err := newTelemetry(t.Context(), config.Telemetry{OTLPEndpoint: collector.URL, Sample: 1}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, span := tel.tracers.Tracer("test").Start(t.Context(), "kick-off")
	span.End()
	if err := tel.shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-came; got != "/v1/traces" {
		t.Errorf("got a request to %s, want /v1/traces", got)
	}
}

func TestLogFormat(t *testing.T) {
	for _, test := range []struct{ format, begins string }{{"text", "time="}, {"json", "{"}, {"auto", "{"}} {
		var out strings.Builder
		log := newLogger(config.Log{Level: "warn", Format: test.format}, &out)
		log.Info("not shown")
		log.Warn("shown")
		if got := out.String(); !strings.HasPrefix(got, test.begins) || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: got %q", test.format, got)
		}
	}
}

func TestAdmin(t *testing.T) {
	word := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
	}
	handler := ownHost(adminHandler(word("metrics"), word("ok")))
	for _, test := range []struct {
		host, path string
		want       int
	}{
		{"127.0.0.1:8081", "/metrics", http.StatusOK},
		{"localhost:8081", "/debug/pprof/", http.StatusOK},
		{"[::1]:8081", "/debug/pprof/heap", http.StatusOK},
		{"[::1]", "/metrics", http.StatusOK},
		{"localhost", "/healthz", http.StatusOK},
		{"localhost", "/readyz", http.StatusOK},
		{"localhost", "/nothing", http.StatusNotFound},
		{"localhost", "/fhir/metadata", http.StatusNotFound},
		{"evil.example.org:8081", "/metrics", http.StatusMisdirectedRequest},
		{"127.0.0.1.example.org", "/debug/pprof/", http.StatusMisdirectedRequest},
	} {
		r := httptest.NewRequest(http.MethodGet, test.path, nil)
		r.Host = test.host
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, r)
		if answer.Code != test.want {
			t.Errorf("%s at %s: got %d, want %d", test.path, test.host, answer.Code, test.want)
		}
	}
}

// Metrics are on http.listen only while nobody else reaches it and they have no place of
// their own; profiles are never there.
func TestMetricsAreForOperators(t *testing.T) {
	for _, test := range []struct {
		listen, admin string
		want          int
	}{
		{"127.0.0.1:8080", "", http.StatusOK},
		{"127.0.0.1:8080", "127.0.0.1:8081", http.StatusNotFound},
		{"0.0.0.0:8080", "", http.StatusNotFound},
		{":8080", "", http.StatusNotFound},
		{"0.0.0.0:8080", "127.0.0.1:8081", http.StatusNotFound},
	} {
		c := config.Default()
		c.HTTP.Listen, c.Admin.Listen = test.listen, test.admin
		log := slog.New(slog.DiscardHandler)
		tel, err := newTelemetry(t.Context(), c.Telemetry, log)
		if err != nil {
			t.Fatal(err)
		}
		defer tel.shutdown(t.Context()) //nolint:errcheck // nothing is sent
		db, err := store.Open(t.TempDir(), store.Options{Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		c.Store.Path = t.TempDir()
		who, err := openAccess(c, log)
		if err != nil {
			t.Fatal(err)
		}
		server, err := newServer(c, db, who, nil, tel, log)
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]int{"/metrics": test.want, "/debug/pprof/": http.StatusNotFound, "/debug/pprof/heap": http.StatusNotFound, "/healthz": http.StatusOK} {
			answer := httptest.NewRecorder()
			server.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil))
			if answer.Code != want {
				t.Errorf("%s on %s, admin %q: %d, want %d", path, test.listen, test.admin, answer.Code, want)
			}
			if path == "/healthz" && answer.Body.String() != "ok\n" {
				t.Errorf("/healthz tells %q", answer.Body)
			}
		}
	}
}

func TestTakenPortNamesItsKey(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = listen(t.Context(), "admin.listen", taken.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "--set admin.listen=") {
		t.Errorf("got error %v, want one that names the key", err)
	}
}

// What is configured reaches the server.
func TestAPIOptions(t *testing.T) {
	c := config.Default()
	c.Export.Workers = 7
	c.Presets = map[string][]string{"claims": {"Claim", "Coverage"}}
	c.HTTP.CORS.Origins, c.HTTP.TrustedProxies = []string{"https://app.example.org"}, []string{"10.0.0.7/8", "fd00::1"}
	tel, err := newTelemetry(t.Context(), c.Telemetry, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer tel.shutdown(t.Context()) //nolint:errcheck // nothing is sent
	o := apiOptions(c, nil, tel, slog.New(slog.DiscardHandler))
	if o.Workers != 7 || len(o.Presets["claims"]) != 2 || o.Presets["claims"][0].String() != "Claim" {
		t.Errorf("workers %d, presets %v", o.Workers, o.Presets)
	}
	if got := fmt.Sprint(o.CORS, o.TrustedProxies); got != "[https://app.example.org] [10.0.0.0/8 fd00::1/128]" {
		t.Errorf("CORS and proxies: %s", got)
	}
}

func TestTopicPatternMatchesWholeNames(t *testing.T) {
	p, err := config.WholeName(`^fhir\..*|hl7`)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"fhir.a": true, "hl7": true, "my.fhir.a": false, "hl7-test": false, "fhir": false} {
		if p.MatchString(name) != want {
			t.Errorf("%s: got %v, want %v", name, !want, want)
		}
	}
}

func TestKafkaSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("canary-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		m, err := kafkaSASL(config.SASL{Mechanism: name, Username: "u", PasswordFile: file})
		if err != nil || m.Name() != name {
			t.Errorf("%s: got %v, error %v", name, m, err)
		}
	}
	if m, err := kafkaSASL(config.SASL{}); m != nil || err != nil {
		t.Errorf("no mechanism: got %v, error %v", m, err)
	}
	_, err := kafkaSASL(config.SASL{Mechanism: "PLAIN", Username: "u", PasswordFile: file + "x"})
	if err == nil || !strings.Contains(err.Error(), "kafka.sasl.password_file") {
		t.Errorf("missing file: got error %v", err)
	}
	if _, err := kafkaTLS(config.ClientTLS{Enabled: true, CAFile: file}); err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("no certificate: got error %v", err)
	}
}
