// Package api is the HTTP face of a store: router, middleware, server, and the
// one place where errors become status codes and OperationOutcomes.
//
// api/bulk speaks Bulk Data Access, api/export knows jobs, api/outcome the
// words for what is wrong. None of them knows where changes come from.
package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/errgroup"

	"tidemark/api/access"
	"tidemark/api/audit"
	"tidemark/api/bulk"
	"tidemark/api/export"
	"tidemark/api/manual"
	"tidemark/api/publish"
	"tidemark/api/read"
	"tidemark/api/smart"
	"tidemark/api/withhold"
	"tidemark/store/fhir"
)

// Options of a server. Store and PublicURL are needed, the rest has defaults.
type Options struct {
	Store export.Store // export.Of(db)
	// Ready says whether exports can be served (default: always).
	Ready func() bool

	// Listen is the address to listen on (http.listen; default 127.0.0.1:8080).
	Listen string
	// PublicURL is the base that clients see (http.public_url): every URL that
	// leaves us starts with it. The routes themselves lie under /fhir.
	PublicURL string
	// OwnBases are those under which absolute references lead to resources of the
	// store (default: PublicURL).
	OwnBases []string
	// Hosts are further names under which requests may come, beside localhost,
	// the listener's and that of PublicURL; all others are refused.
	Hosts []string
	// Auth says who may read; the zero value asks for no tokens.
	Auth Auth
	// TLS serves https; nil: http.
	TLS *tls.Config
	// Withhold is what nobody is given (withhold). Jobs and published pages that hold more
	// end when the server is made.
	Withhold withhold.Policy
	// CORS are the origins whose pages may read answers (http.cors.origins; default: none).
	CORS []string
	// TrustedProxies are believed on whom they speak for (http.trusted_proxies; default: nobody).
	TrustedProxies []netip.Prefix
	// MaxConnections are open at once (limits.connections), and MaxPerAddress
	// of one address that is no trusted proxy (limits.connections_per_address); 0: no bound.
	MaxConnections, MaxPerAddress int

	Expires          time.Duration // export.expires, default 24 h
	RetryAfter       time.Duration // export.retry_after, default 1 s
	Checkpoint       time.Duration // of planning that a restart may cost a job, default 1 s; negative: none
	FileMaxBytes     int64         // export.file.max_bytes, uncompressed, default 256 MiB
	FileMaxResources int64         // export.file.max_resources, 0: no limit
	MaxJobs          int           // limits.jobs_kept, default 1000
	MaxWorking       int           // limits.jobs that are worked on, default 100
	JobsPerClient    int           // limits.jobs_per_client that are worked on, 0: no limit
	PollsPerMinute   int           // limits.polls_per_minute, per job, default 120
	Workers          int           // export.workers, default half of the processors and at least 2
	Inline           int64         // export.inline_attachments, bytes of content, default 0: none
	MaxBody          int64         // limits.body, default 1 MiB
	Presets          bulk.Presets  // presets
	// Audit is where all that is given out and refused is on record; nil: nowhere.
	Audit *audit.Trail
	// Quota is what a client may have in a day; nil: as much as it likes.
	Quota *access.Quota
	// Deletions is how long they are known (retention.deleted); it is told to
	// clients if it is not 0.
	Deletions time.Duration

	// Publish is what $bulk-publish offers; without types there is none. Limits,
	// Withhold, Bases, Logger and Meter are the server's.
	Publish publish.Options

	// Metrics is served at /metrics; nil: nowhere.
	Metrics http.Handler
	// Version of this program, as /metadata shows it.
	Version string
	// Grace is how long a shutdown waits for requests under way (default 10 s);
	// a download that it cuts goes on after the restart, by Range.
	Grace time.Duration

	Logger         *slog.Logger
	MeterProvider  metric.MeterProvider
	TracerProvider trace.TracerProvider
}

func (o Options) withDefaults() Options {
	o.Listen = cmp.Or(o.Listen, "127.0.0.1:8080")
	o.RetryAfter = cmp.Or(o.RetryAfter, time.Second)
	o.MaxBody = cmp.Or(o.MaxBody, 1<<20)
	o.Grace = cmp.Or(o.Grace, 10*time.Second)
	o.PublicURL = strings.TrimRight(o.PublicURL, "/")
	if o.OwnBases == nil {
		o.OwnBases = []string{o.PublicURL}
	}
	if o.Quota == nil {
		o.Quota = &access.Quota{}
	}
	o.Auth = o.Auth.withDefaults()
	if o.Ready == nil {
		o.Ready = func() bool { return true }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MeterProvider == nil {
		o.MeterProvider = metricnoop.NewMeterProvider()
	}
	if o.TracerProvider == nil {
		o.TracerProvider = tracenoop.NewTracerProvider()
	}
	return o
}

// A Server answers HTTP for one store.
type Server struct {
	o         Options
	jobs      *export.Jobs
	pages     *publish.Pages
	hosts     hosts
	gate      *access.Gate
	mounted   []Mount
	strangers strangers
	secrets   atomic.Pointer[[]smart.Secret]
	large     chan struct{} // requests with large bodies that are read
	proxies   proxies
	conns     *connections
	seen      *observer
	handler   http.Handler
	listener  net.Listener // set by Listen
}

// New makes a server. It finds the jobs that outlived a restart, and starts
// nothing.
func New(o Options) (*Server, error) {
	o = o.withDefaults()
	public, err := publicURL(o.PublicURL)
	if err != nil {
		return nil, err
	}
	if err := o.Withhold.Fault(); err != nil {
		return nil, fmt.Errorf("withhold: %w", err)
	}
	if err := o.Presets.Validate(); err != nil {
		return nil, fmt.Errorf("presets: %w", err)
	}
	s := &Server{
		o: o,
		jobs: export.New(o.Store, export.Options{
			Expires:        o.Expires,
			Limits:         export.Limits{Bytes: o.FileMaxBytes, Resources: o.FileMaxResources},
			MaxJobs:        o.MaxJobs,
			MaxWorking:     o.MaxWorking,
			JobsPerOwner:   o.JobsPerClient,
			PollsPerMinute: o.PollsPerMinute,
			Workers:        o.Workers,
			Bases:          o.OwnBases,
			Base:           o.PublicURL,
			Inline:         o.Inline,
			Checkpoint:     o.Checkpoint,
			Withhold:       o.Withhold,
			Logger:         o.Logger,
		}),
		large:   make(chan struct{}, largeBodies),
		hosts:   newHosts(o.Listen, public, o.Hosts),
		proxies: o.TrustedProxies,
	}
	s.strangers.more = make(chan struct{}, 1)
	if s.pages, err = publish.New(o.Store, o.publishing()); err != nil {
		return nil, err
	}
	s.UseSecrets(o.Auth.Secrets)
	s.gate = s.newGate()
	if s.seen, err = newObserver(o, s.faultOf); err != nil {
		return nil, err
	}
	if s.conns, err = newConnections(o); err != nil {
		return nil, err
	}
	if s.seen.limits, err = s.newLimitMeter(); err != nil {
		return nil, err
	}
	if err := s.countJobs(); err != nil {
		return nil, err
	}
	self, err := manual.New(s.facts())
	if err != nil {
		return nil, err
	}
	s.handler = s.routes(&bulk.Handlers{Jobs: s.jobs, Base: o.PublicURL, Bases: o.OwnBases, MaxBody: o.MaxBody, Now: o.Store.Now, Presets: o.Presets, Quota: o.Quota, Sign: s.signer(), Still: s.gate.Still},
		s.reading(), &bulk.Publishing{Pages: s.pages, Base: o.PublicURL, Token: s.gate.Needed && !s.pages.Public()}, self)
	return s, nil
}

// reading answers for single resources.
func (s *Server) reading() *read.Handlers {
	h := read.New(s.o.Store, s.o.PublicURL, s.o.OwnBases)
	h.Withhold = s.o.Withhold
	return h
}

// facts are what the server tells of itself.
func (s *Server) facts() manual.Facts {
	jobs := s.jobs.Options()
	return manual.Facts{
		Base: s.o.PublicURL, Version: s.o.Version, Started: time.Now(),
		FileMaxBytes: jobs.Limits.Bytes, FileMaxResources: jobs.Limits.Resources,
		Expires: jobs.Expires, RetryAfter: s.o.RetryAfter, Deletions: s.o.Deletions,
		MaxJobs: jobs.MaxJobs, MaxWorking: jobs.MaxWorking, JobsPerClient: jobs.JobsPerOwner, Quota: s.o.Quota, PollsPerMinute: jobs.PollsPerMinute, MaxBody: s.o.MaxBody,
		Presets:   s.o.Presets,
		Published: s.o.Publish.Types,
		Tokens:    s.gate.Needed,
		TokenURL:  s.tokenURL(),
		Signed:    s.signedFor(),
		Watermark: s.watermark,
	}
}

// watermark is up to when an export would go that is started now.
func (s *Server) watermark() (fhir.Instant, error) {
	present, err := s.o.Store.Present()
	if err != nil {
		return fhir.None, err
	}
	return present.Watermark(), present.Close()
}

// publicURL checks the base of all URLs that we emit.
func publicURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("http.public_url: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("http.public_url: %q is not an absolute URL such as https://fhir.example.org/fhir", u.Redacted())
	}
	return u, nil
}

// countJobs shows how many jobs hold files.
func (s *Server) countJobs() error {
	_, err := s.o.MeterProvider.Meter("tidemark/api").Int64ObservableGauge("api.jobs",
		metric.WithUnit("{job}"), metric.WithDescription("Export jobs whose files are kept"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(s.jobs.Len()))
			return nil
		}))
	if err != nil {
		return fmt.Errorf("make the instrument of jobs: %w", err)
	}
	return nil
}

// Handler serves every route. Run serves it with the right limits.
func (s *Server) Handler() http.Handler { return s.handler }

// Listen opens the listener before Run does, so that a port that is taken is
// found early, and one that was chosen by the system (":0") is known.
func (s *Server) Listen() (net.Addr, error) {
	if s.listener == nil {
		l, err := net.Listen("tcp", s.o.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen on %s (http.listen): %w", s.o.Listen, err)
		}
		s.listener = l
	}
	return s.listener.Addr(), nil
}

// Run serves until ctx ends, then waits for what is under way.
func (s *Server) Run(ctx context.Context) error {
	if _, err := s.Listen(); err != nil {
		return err
	}
	server := s.server()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.jobs.Run(ctx) })
	g.Go(func() error { return s.pages.Run(ctx) })
	g.Go(func() error { return s.tellStrangers(ctx) })
	g.Go(func() error { return s.serve(server) })
	g.Go(func() error {
		<-ctx.Done()
		return s.shutdown(context.WithoutCancel(ctx), server)
	})
	defer s.tellOthers(ctx) // of the last second
	return g.Wait()
}

// A request's header is small and comes at once. There is no WriteTimeout: a
// download may take hours, and answers renew deadlines of their own (outermost,
// sender). Nor a ReadTimeout: it would end long downloads too; the one body
// that is read sets its own.
const (
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 64 << 10
)

func (s *Server) server() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // HTTP/2 halves the speed of downloads and more
	return &http.Server{
		Handler:           s.handler,
		Protocols:         protocols,
		TLSConfig:         s.o.TLS,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnState:         s.conns.follow,
		ErrorLog:          slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelWarn),
	}
}

func (s *Server) serve(server *http.Server) error {
	var err error
	if s.o.TLS != nil {
		err = server.ServeTLS(s.listener, "", "")
	} else {
		err = server.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve HTTP on %s: %w", s.o.Listen, err)
}

// shutdown is polite for Grace, then closes the connections.
func (s *Server) shutdown(ctx context.Context, server *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Grace)
	defer cancel()
	if err := server.Shutdown(ctx); err == nil {
		return nil
	}
	s.o.Logger.Warn("requests were still under way at shutdown and were cut; downloads can go on after the restart", "grace", s.o.Grace)
	if err := server.Close(); err != nil {
		return fmt.Errorf("close HTTP connections: %w", err)
	}
	return nil
}
