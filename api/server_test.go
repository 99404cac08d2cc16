package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"tidemark/api"
	"tidemark/api/apitest"
	"tidemark/api/bulk"
	"tidemark/store/fhir"
)

func newStore(t testing.TB) *apitest.Store {
	db := apitest.New(instant(t, "2026-01-02T12:00:00.000Z"))
	db.Put(key(t, "Patient/1"), instant(t, "2026-01-01T08:00:00.000Z"), apitest.Links{})
	return db
}

func newServer(t testing.TB, o api.Options) *api.Server {
	if o.Store == nil {
		o.Store = newStore(t)
	}
	if o.PublicURL == "" {
		o.PublicURL = public
	}
	s, err := api.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// running serves on a port of the system's choice until the test ends.
func running(t *testing.T, o api.Options) (base string, stop func() error) {
	o.Listen = "127.0.0.1:0"
	s := newServer(t, o)
	addr, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = func() error { cancel(); return <-done }
	return "http://" + addr.String(), stop
}

// start kicks an export off and returns the path of its job.
func start(t *testing.T, client *http.Client, base, query string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, base+"/fhir/$export"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/fhir+json")
	req.Header.Set("Prefer", "respond-async")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatal(resp.Status)
	}
	path, ok := strings.CutPrefix(resp.Header.Get("Content-Location"), public)
	if !ok {
		t.Fatalf("Content-Location: %s", resp.Header.Get("Content-Location"))
	}
	return "/fhir" + path
}

func TestOptions(t *testing.T) {
	for _, bad := range []string{"", "/fhir", "fhir.example.org/fhir", "ftp://x/fhir", "http://u:p@x/fhir", "http://x/fhir?a=1", "http://x/fhir#a", "http://\x00/"} {
		if _, err := api.New(api.Options{Store: newStore(t), PublicURL: bad}); err == nil || !strings.Contains(err.Error(), "http.public_url") {
			t.Errorf("public_url %q: %v", bad, err)
		}
	}
	if _, err := api.New(api.Options{Store: newStore(t), PublicURL: "https://fhir.example.org/fhir/"}); err != nil {
		t.Error(err)
	}
}

func TestRunAndShutdown(t *testing.T) {
	base, stop := running(t, api.Options{})
	resp, err := http.Get(base + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
	if err := stop(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if _, err := http.Get(base + "/healthz"); err == nil {
		t.Error("still served after Run returned")
	}
}

func TestPortTaken(t *testing.T) {
	base, stop := running(t, api.Options{})
	s := newServer(t, api.Options{Listen: strings.TrimPrefix(base, "http://")})
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "http.listen") {
		t.Errorf("Run on a port that is taken: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Over TLS, too, we speak HTTP/1.1 only.
func TestTLS(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	base, stop := running(t, api.Options{TLS: &tls.Config{Certificates: cert.TLS.Certificates}})
	tr := cert.Client().Transport.(*http.Transport).Clone()
	tr.ForceAttemptHTTP2 = true
	client := &http.Client{Transport: tr}
	resp, err := client.Get(strings.Replace(base, "http:", "https:", 1) + "/fhir/metadata")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Proto != "HTTP/1.1" || resp.StatusCode != http.StatusOK {
		t.Errorf("%s %s", resp.Proto, resp.Status)
	}
	tr.CloseIdleConnections()
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestReady(t *testing.T) {
	ready := false
	h := newServer(t, api.Options{Ready: func() bool { return ready }}).Handler()
	for _, want := range []struct {
		status int
		body   string
	}{{503, "not ready\n"}, {200, "ready\n"}} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/readyz", nil))
		if w.Code != want.status || w.Body.String() != want.body {
			t.Errorf("readyz = %d %q", w.Code, w.Body)
		}
		ready = true
	}
}

// The writer that a download is given offers io.ReaderFrom, behind the whole
// router: without it every byte is copied through the process.
func TestFilesKeepReaderFrom(t *testing.T) {
	db := newStore(t)
	base, stop := running(t, api.Options{Store: db})
	job := start(t, http.DefaultClient, base, "")
	req, err := http.NewRequest(http.MethodGet, base+job+"/1.ndjson", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if len(db.Writers()) != 1 {
		t.Fatalf("%d writers", len(db.Writers()))
	}
	w := db.Writers()[0]
	if _, ok := w.(io.ReaderFrom); !ok {
		t.Errorf("%T offers no io.ReaderFrom", w)
	}
	u, ok := w.(interface{ Unwrap() http.ResponseWriter })
	if !ok {
		t.Fatalf("%T cannot be unwrapped", w)
	}
	// What lies below is net/http's own writer, which sends files by itself.
	if _, ok := u.Unwrap().(interface {
		io.ReaderFrom
		http.Hijacker
	}); !ok {
		t.Errorf("below lies a %T", u.Unwrap())
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestOwnPresets: what the operator has added is told, or refused at the start.
func TestOwnPresets(t *testing.T) {
	w := httptest.NewRecorder()
	own := bulk.Presets{"labs": types(t, []string{"Specimen"}), "claims": types(t, []string{"Claim", "Coverage"})}
	h := newServer(t, api.Options{Presets: own}).Handler()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/fhir/metadata", nil))
	if want := "includeAssociatedData also takes _claims (Claim, Coverage), _labs (Specimen)."; !strings.Contains(w.Body.String(), want) {
		t.Errorf("metadata lacks %q", want)
	}
	_, err := api.New(api.Options{Store: newStore(t), PublicURL: public, Presets: bulk.Presets{"ccds": own["labs"], "none": nil}})
	if err == nil || !strings.Contains(err.Error(), "_ccds") || !strings.Contains(err.Error(), "none") {
		t.Errorf("got %v, want both faults", err)
	}
}

func TestMetadata(t *testing.T) {
	w := httptest.NewRecorder()
	h := newServer(t, api.Options{Version: "1.2.3"}).Handler()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/fhir/metadata", nil))
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/fhir+json" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	type param struct{ Name, Type string }
	type operation struct{ Name, Definition string }
	var got struct {
		ResourceType, Status, Date, Kind, FHIRVersion string
		Instantiates, Format                          []string
		Implementation                                struct{ URL string }
		Software                                      struct{ Name, Version string }
		Rest                                          []struct {
			Mode     string
			Resource []struct {
				Type        string
				SearchParam []param
				Operation   []operation
			}
			Operation []operation
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.ResourceType != "CapabilityStatement" || got.Status != "active" || got.Kind != "instance" || got.FHIRVersion != "4.0.1" ||
		got.Software.Name != "Tidemark" || got.Software.Version != "1.2.3" || got.Implementation.URL != public ||
		!slices.Equal(got.Format, []string{"application/fhir+json"}) ||
		!slices.Equal(got.Instantiates, []string{"http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"}) {
		t.Errorf("%s", w.Body)
	}
	if _, _, err := fhir.ParseInstant(got.Date); err != nil {
		t.Errorf("date %s", got.Date)
	}
	rest := got.Rest[0]
	const guide = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"
	if len(got.Rest) != 1 || rest.Mode != "server" || !slices.Equal(rest.Operation, []operation{{"export", guide + "export"}, {"export-v4", guide + "export|4.0.0"}}) {
		t.Errorf("%+v", rest.Operation)
	}
	if len(rest.Resource) != len(fhir.AllTypes()) {
		t.Errorf("%d resources, want %d", len(rest.Resource), len(fhir.AllTypes()))
	}
	for _, r := range rest.Resource {
		// By either name, for the test suites look for one of them.
		want := map[string][]operation{
			"Patient": {{"export", guide + "patient-export"}, {"patient-export", guide + "patient-export"}, {"export-v4", guide + "patient-export|4.0.0"}},
			"Group": {
				{"export", guide + "group-export"},
				{"group-export", guide + "group-export"},
				{"davinci-data-export", "http://hl7.org/fhir/us/davinci-atr/OperationDefinition/davinci-data-export"},
				{"export-v4", guide + "group-export|4.0.0"},
			},
		}[r.Type]
		if !slices.Equal(r.Operation, want) {
			t.Errorf("%s advertises the operations %v", r.Type, r.Operation)
		}
		// What _typeFilter takes; clients take _lastUpdated as the sign that _since works.
		if !slices.Contains(r.SearchParam, param{"_lastUpdated", "date"}) || r.Type == "Observation" != slices.Contains(r.SearchParam, param{"value-quantity", "quantity"}) {
			t.Errorf("%s: %v", r.Type, r.SearchParam)
		}
	}
}

// What a client says and what it may open with appears in no log, metric or
// trace.
func TestTelemetryHoldsNoSecrets(t *testing.T) {
	var logs bytes.Buffer
	spans := tracetest.NewInMemoryExporter()
	reader := sdkmetric.NewManualReader()
	o := api.Options{
		Logger:         slog.New(slog.NewJSONHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)),
		MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
	}
	h := newServer(t, o).Handler()
	do := func(method, path string, header ...string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(method, "http://localhost"+path, nil)
		req.Header.Set("Accept", "application/fhir+json")
		req.Header.Set("Prefer", "respond-async")
		req.Header.Set("User-Agent", "canary-agent")
		req.Header.Set("X-Forwarded-For", "canary-address")
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w
	}
	kick := do("GET", "/fhir/$export?_type=Patient", "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	job := strings.TrimPrefix(kick.Header().Get("Content-Location"), public)
	for _, path := range []string{job, job + "/1.ndjson", job + "/99.ndjson"} {
		do("GET", "/fhir"+path)
	}
	do("GET", "/fhir/$export?_foo=canary-value&patient=Patient/canary-id")
	do("GET", "/fhir/Patient/canary-id/$export?canary=1")
	do("GET", "/fhir/Binary/canary-id")
	do("CANARY-METHOD", "/fhir/$export")
	do("DELETE", "/fhir"+job)

	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &metrics); err != nil {
		t.Fatal(err)
	}
	all, err := json.Marshal(metrics)
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, logs.Bytes()...)
	var names []string
	for _, s := range spans.GetSpans() {
		names = append(names, s.Name)
		all = append(all, s.Name...)
		for _, a := range s.Attributes {
			all = append(append(all, a.Key...), a.Value.String()...)
		}
	}
	for _, secret := range []string{"canary", "CANARY", strings.TrimPrefix(job, "/export/")} {
		if bytes.Contains(all, []byte(secret)) {
			t.Errorf("telemetry holds %q:\n%s", secret, all)
		}
	}
	if !slices.Contains(names, "GET /fhir/$export") || !slices.Contains(names, "GET /fhir/export/{job}") || !slices.Contains(names, "GET /fhir/export/{job}/{file}") {
		t.Errorf("spans %v", names)
	}
	if n := strings.Count(logs.String(), `"msg":"request"`); n != 9 {
		t.Errorf("%d requests logged, want 9:\n%s", n, &logs)
	}
	checkDownloads(t, metrics)
}

// checkDownloads looks for the two downloads that were tried.
func checkDownloads(t *testing.T, m metricdata.ResourceMetrics) {
	t.Helper()
	seen := map[string]int64{}
	for _, s := range m.ScopeMetrics {
		for _, metric := range s.Metrics {
			switch d := metric.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					status, _ := p.Attributes.Value(attribute.Key("status"))
					seen[metric.Name+" "+status.String()] = p.Value
				}
			case metricdata.Gauge[int64]:
				seen[metric.Name] = d.DataPoints[0].Value
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					seen[metric.Name] += int64(p.Count)
				}
			}
		}
	}
	if seen["api.download.size 200"] != 86 || seen["api.download.size 404"] == 0 || seen["api.download.duration"] != 2 || seen["http.server.request.duration"] != 7 {
		t.Errorf("metrics %v", seen)
	}
	if n, ok := seen["api.jobs"]; !ok || n != 0 {
		t.Errorf("api.jobs %d after the job was deleted", n)
	}
}

// broken panics where a client is answered.
type broken struct{ *apitest.Store }

func (broken) Now() fhir.Instant { panic(errors.New("canary of a patient")) }

func TestPanic(t *testing.T) {
	var logs bytes.Buffer
	h := newServer(t, api.Options{Store: broken{newStore(t)}, Logger: slog.New(slog.NewTextHandler(&logs, nil))}).Handler()
	req := httptest.NewRequest(http.MethodGet, "http://localhost/fhir/$export", nil)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Prefer", "respond-async")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	if w.Code != http.StatusInternalServerError {
		t.Errorf("status %d", w.Code)
	}
	showOutcome(t, w.Body.Bytes())
	if !strings.Contains(logs.String(), "panic in a handler") || strings.Contains(logs.String(), "canary") {
		t.Errorf("log: %s", &logs)
	}
}

// A store that fails in the middle of a file ends the connection: the client
// must not take what it has for the whole.
func TestBrokenDownload(t *testing.T) {
	db := newStore(t)
	var logs bytes.Buffer
	base, stop := running(t, api.Options{Store: db, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
	job := start(t, http.DefaultClient, base, "")
	db.CutShort(10)
	plain := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	resp, err := plain.Get(base + job + "/1.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(got) != 10 {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(logs.String(), "download broken off") || !strings.Contains(logs.String(), "level=ERROR") {
		t.Errorf("log: %s", &logs)
	}
}
