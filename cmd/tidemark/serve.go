package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"tidemark/api"
	"tidemark/api/audit"
	"tidemark/api/bulk"
	"tidemark/api/export"
	"tidemark/api/publish"
	"tidemark/api/smart"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
	"tidemark/store/fhir"
)

type serveCmd struct {
	configFlags `embed:""`

	PrintConfig bool `help:"Print the configuration that would hold, each value with its origin, and end."`
}

// Help is shown by --help.
func (*serveCmd) Help() string {
	return `Reads the configured topics, keeps their changes under store.path and serves them at http.public_url. Without a configuration:
a Kafka on 127.0.0.1:9092, the topic fhir-changes, http://127.0.0.1:8080/fhir, ./data.

  tidemark serve --config tidemark.yaml
  tidemark serve --set kafka.brokers=127.0.0.1:19092 --set http.listen=127.0.0.1:8081
  TIDEMARK_STORE_PATH=/var/lib/tidemark tidemark serve

A value comes from the defaults, then the file, then the environment (TIDEMARK_HTTP_LISTEN for http.listen), then --set; the
later wins. --print-config shows what would hold.

Ctrl-C or SIGTERM stops it: what was read is committed, downloads may finish. kill -9 loses nothing either.

Next, once /readyz answers 200:
  curl -s -D- -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' 'http://127.0.0.1:8080/fhir/$export'`
}

// Run serves until ctx ends.
func (c *serveCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if c.PrintConfig {
		return cfg.Print(out)
	}
	return serve(ctx, &cfg.Config, newLogger(cfg.Log, os.Stderr))
}

// How long each part may take to stop before the next one is told to.
const (
	intakeGrace    = 10 * time.Second // a fetch that is being answered, a batch that is being taken in
	flushGrace     = 20 * time.Second // the last commit, on a slow disk
	httpGrace      = 30 * time.Second // downloads; what is cut goes on after the restart, by Range
	adminGrace     = time.Second
	auditGrace     = 5 * time.Second // what audit.topic has not had yet
	telemetryGrace = 5 * time.Second // a collector that does not answer
)

// serve wires everything and waits for it. What was opened is closed in the
// reverse order, the store last but for the telemetry that watches it.
func serve(ctx context.Context, c *config.Config, log *slog.Logger) (err error) {
	limitMemory(c)
	tel, err := newTelemetry(ctx, c.Telemetry, log)
	if err != nil {
		return err
	}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), telemetryGrace)
		defer cancel()
		if err := tel.shutdown(last); err != nil {
			log.Warn("the last telemetry was not sent", "error", err)
		}
	}()
	db, err := store.Open(c.Store.Path, storeOptions(c, tel, log))
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, db.Close()); err == nil {
			log.Info("stopped: everything that was read is committed")
		}
	}()

	intake, err := newIntake(c, db, tel, log)
	if err != nil {
		return err
	}
	known, err := openAccess(c, log)
	if err != nil {
		return err
	}
	if err := writeWhere(c); err != nil {
		return err
	}
	trail, err := openTrail(c, tel, log) //nolint:contextcheck // what it logs belongs to no request
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, trail.Close()) }()
	server, err := newServer(c, db, known, trail, tel, log)
	if err != nil {
		return err
	}
	if _, err := server.Listen(); err != nil { // before anything is read: a port that is taken ends the start
		return fmt.Errorf("%w; another program may have the port: choose another with --set http.listen=127.0.0.1:PORT", err)
	}
	if err := known.clients.Watch(func(serials []uint64) (int, error) {
		return server.EndOf(context.WithoutCancel(ctx), serials)
	}); err != nil {
		return err
	}
	letters, err := newLetterTopic(c, db, tel.meters.Meter("tidemark"), log)
	if err != nil {
		return err
	}
	stages := []stage{
		{"intake", intake.Run, intakeGrace},
		{"store", db.Run, flushGrace},
		{"http", server.Run, httpGrace},
		{"quota", known.quota.Run, adminGrace},
	}
	if c.Admin.Listen != "" {
		listener, err := listen(ctx, "admin.listen", c.Admin.Listen)
		if err != nil {
			return err
		}
		run := func(ctx context.Context) error {
			return runAdmin(ctx, listener, adminHandler(tel.metrics, server.Handler()))
		}
		stages = append(stages, stage{"admin", run, adminGrace})
	}
	if control := listenControl(ctx, c.Store.Path, log); control != nil {
		stages = append(stages, stage{"control", func(ctx context.Context) error {
			return runControl(ctx, control, &opened{db, c, known.clients, trail, server.UseSecrets, intake, letters})
		}, adminGrace})
	}
	if letters != nil {
		stages = append(stages, stage{"dead letters", letters.run, adminGrace})
	}
	stages = append(stages, stage{"audit", func(ctx context.Context) error { return publishTrail(ctx, trail) }, 2 * auditGrace})
	announce(c, log)
	return runStages(ctx, log, stages...)
}

// limitMemory tells the collector of garbage what the budget is, 512 MB for the
// process with the default cache; an operator's GOMEMLIMIT wins.
func limitMemory(c *config.Config) {
	const besidesCache = 352 << 20
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(besidesCache + int64(c.Store.Cache))
	}
}

func storeOptions(c *config.Config, tel *telemetry, log *slog.Logger) store.Options {
	return store.Options{
		CommitInterval: time.Duration(c.Commit.Interval),
		CommitSize:     int64(c.Commit.MaxSize),
		Allowance:      time.Duration(c.Watermark.Allowance),
		MaxClockStep:   time.Duration(c.Watermark.MaxClockStep),
		Cores:          c.Compaction.Cores,
		WriteRate:      int64(c.Compaction.WriteRate),
		Reserve:        int64(c.Store.Reserve),
		Spare:          int64(c.Store.MinFree) + int64(c.Store.MinFree)/4,
		Scrub:          time.Duration(c.Store.Scrub),
		SettleAfter:    time.Duration(c.Compaction.SettleAfter),
		LastState:      time.Duration(c.Retention.LastState),
		Deleted:        time.Duration(c.Retention.Deleted),
		DeadLetters:    time.Duration(c.Retention.DeadLetters),
		KeepMeta:       !c.Resources.InjectMeta,
		Cache:          int64(c.Store.Cache),
		Logger:         log,
		Meter:          tel.meters.Meter("tidemark/store"),
		Tracer:         tel.tracers.Tracer("tidemark/store"),
	}
}

func newServer(c *config.Config, db *store.DB, known *known, trail *audit.Trail, tel *telemetry, log *slog.Logger) (*api.Server, error) {
	o := apiOptions(c, db, tel, log)
	o.Auth = authOptions(c, db, known)
	o.Quota, o.Audit = known.quota, trail
	if c.HTTP.TLS.CertFile != "" {
		cert, err := loadCertificate(c.HTTP.TLS, log)
		if err != nil {
			return nil, err
		}
		o.TLS = cert.config()
	}
	server, err := api.New(o)
	if err != nil {
		return nil, fmt.Errorf("set up HTTP: %w", err)
	}
	return server, nil
}

// openTrail begins or goes on with what is on record of who was given what; nil if
// nothing is. Without telemetry it is counted nowhere.
func openTrail(c *config.Config, tel *telemetry, log *slog.Logger) (*audit.Trail, error) {
	if !c.Audit.Enabled {
		return nil, nil
	}
	o := audit.Options{Dir: c.AuditDir(), Required: c.Audit.Required, Keep: time.Duration(c.Audit.Keep), Observer: c.HTTP.PublicURL, Logger: log}
	if c.Audit.Topic != "" {
		o.Publisher = &auditTopic{kafka: c.Kafka, topic: c.Audit.Topic, server: c.HTTP.PublicURL}
	}
	if tel != nil {
		o.Meter = tel.meters.Meter("tidemark/api/audit")
	}
	return audit.Open(o)
}

// authOptions are who may read.
func authOptions(c *config.Config, db *store.DB, known *known) api.Auth {
	mode := c.AuthMode()
	a := api.Auth{
		Needed: mode != "none", Clients: known.clients, Secrets: known.secrets, Certificates: c.HTTP.TLS.ClientCAFile != "",
		Lifetime: time.Duration(c.Auth.TokenLifetime), Audiences: c.Auth.Audiences, Once: db.Once,
		Fetcher: &smart.Fetcher{Allow: c.JWKS.Allow, Plain: c.JWKS.AllowHTTPLoopback},
	}
	if c.Capability.Enabled {
		a.SignedURLs = time.Duration(c.Capability.TTL)
	}
	if e := c.Auth.External; mode == "external" {
		a.External = &smart.External{
			Issuer: e.Issuer, Audience: e.Audience, KeysURL: e.JWKSURL, ClientClaim: e.ClientClaim, ScopeClaim: e.ScopeClaim, TokenTypes: e.TokenTypes,
			Programs: e.Programs(), ScopeNames: e.Scopes(), Keys: a.Fetcher.Keys,
		}
	}
	return a
}

func apiOptions(c *config.Config, db *store.DB, tel *telemetry, log *slog.Logger) api.Options {
	return api.Options{
		Store:            export.Of(db),
		Ready:            func() bool { return db.Status().Ready },
		Listen:           c.HTTP.Listen,
		PublicURL:        c.HTTP.PublicURL,
		CORS:             c.HTTP.CORS.Origins,
		TrustedProxies:   c.HTTP.Proxies(),
		OwnBases:         ownBases(c),
		Expires:          time.Duration(c.Export.Expires),
		RetryAfter:       time.Duration(c.Export.RetryAfter),
		FileMaxBytes:     int64(c.Export.File.MaxBytes),
		FileMaxResources: int64(c.Export.File.MaxResources),
		MaxJobs:          c.Limits.JobsKept,
		MaxWorking:       c.Limits.Jobs,
		PollsPerMinute:   c.Limits.PollsPerMinute,
		JobsPerClient:    c.Limits.JobsPerClient,
		Workers:          c.Export.Workers,
		Inline:           int64(c.Export.InlineAttachments),
		MaxBody:          int64(c.Limits.Body),
		MaxConnections:   c.Limits.Connections,
		MaxPerAddress:    c.Limits.ConnectionsPerAddress,
		Deletions:        time.Duration(c.Retention.Deleted),
		Presets:          presets(c),
		Publish:          publishOptions(c),
		Withhold:         c.Withhold.Policy(),
		Metrics:          publicMetrics(c, tel),
		Version:          version,
		Grace:            httpGrace,
		Logger:           log,
		MeterProvider:    tel.meters,
		TracerProvider:   tel.tracers,
	}
}

// presets are the operator's lists of types, of which the configuration holds
// names that exist.
func presets(c *config.Config) bulk.Presets {
	own := bulk.Presets{}
	for name, types := range c.Presets {
		for _, t := range types {
			if typ, ok := fhir.ParseType(t); ok {
				own[name] = append(own[name], typ)
			}
		}
	}
	return own
}

func publishOptions(c *config.Config) publish.Options {
	p := publish.Options{
		Public: c.Publish.Public, Every: time.Duration(c.Publish.Every),
		SnapshotEvery: time.Duration(c.Publish.SnapshotEvery), Grace: time.Duration(c.Publish.Grace),
	}
	for _, name := range c.Publish.Types {
		t, _ := fhir.ParseType(name) // config has checked it
		p.Types = append(p.Types, t)
	}
	return p
}

// publicMetrics is /metrics on http.listen: there while only this machine can
// reach it and no address of its own is given.
func publicMetrics(c *config.Config, tel *telemetry) http.Handler {
	if c.Admin.Listen != "" || !c.HTTP.Loopback() {
		return nil
	}
	return tel.metrics
}

// announce says what an operator should know at every start.
func announce(c *config.Config, log *slog.Logger) {
	log.Info("serving", "version", version, "base", c.HTTP.PublicURL, "listen", c.HTTP.Listen, "store", c.Store.Path, "topics", len(c.Topics))
	if !c.Audit.Enabled {
		log.Warn("who is given what is not put on record", "key", "audit.enabled")
	}
	if c.AuthMode() == "none" && c.Auth.AllowOpenData {
		log.Warn("data is open: everyone who can reach the port can download all patients' data", "key", "auth.allow_open_data")
	}
	if c.AuthMode() == "builtin" && c.HTTP.TLS.CertFile == "" && !c.HTTP.Loopback() && !strings.HasPrefix(c.HTTP.PublicURL, "https://") {
		log.Warn("tokens and data travel without encryption: set http.tls, or https in http.public_url where a proxy does it", "key", "http.tls.cert_file")
	}
	if c.Admin.Listen == "" && !c.HTTP.Loopback() {
		log.Warn("/metrics is served nowhere: http.listen is no loopback address and admin.listen is empty")
	}
	if n := maxFiles(); n < 2*uint64(c.Limits.Connections)+storeFiles {
		log.Warn("this process may open too few files for the connections that are allowed: raise the limit (LimitNOFILE, ulimit -n), or lower limits.connections",
			"files", n, "connections", c.Limits.Connections)
	}
	if c.Kafka.SASL.Mechanism != "" && !c.Kafka.TLS.Enabled {
		log.Warn("the password for Kafka travels without encryption", "key", "kafka.tls.enabled")
	}
	if name := networkFileSystem(c.Store.Path); name != "" {
		log.Warn("the store is on a network file system: a local disk is needed to survive a crash", "kind", name, "key", "store.path")
	}
}
