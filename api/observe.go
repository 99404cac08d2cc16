package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"tidemark/api/smart"
	"tidemark/store"
)

// A handler answers, or says why it cannot.
type handler func(w http.ResponseWriter, r *http.Request) error

// An observer sees requests through: log, metrics, traces, panics. Of a
// request it keeps the route, never the path or the query: these hold job ids,
// which open files, and parameters, which may say something about patients.
// Errors are written down as they are: the store keeps ids out of them.
type observer struct {
	log      *slog.Logger
	faultOf  func(error) fault
	otel     []otelhttp.Option
	tracer   trace.Tracer
	limits   *limitMeter
	bytes    metric.Int64Counter
	duration metric.Float64Histogram
}

func newObserver(o Options, faultOf func(error) fault) (*observer, error) {
	meter := o.MeterProvider.Meter("tidemark/api")
	bytes, err1 := meter.Int64Counter("api.download.size", metric.WithUnit("By"),
		metric.WithDescription("Bytes of output files sent, as they went over the wire"))
	duration, err2 := meter.Float64Histogram("api.download.duration", metric.WithUnit("s"),
		metric.WithDescription("Time of requests for output files, until the last byte was handed over"),
		metric.WithExplicitBucketBoundaries(0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 1800))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("make the instruments of downloads: %w", err)
	}
	return &observer{
		log: o.Logger, faultOf: faultOf, bytes: bytes, duration: duration,
		tracer: o.TracerProvider.Tracer("tidemark/api"),
		otel: []otelhttp.Option{
			otelhttp.WithMeterProvider(o.MeterProvider),
			otelhttp.WithTracerProvider(o.TracerProvider),
			otelhttp.WithPublicEndpointFn(func(*http.Request) bool { return true }),
		},
	}, nil
}

// wrap observes an ordinary route.
func (o *observer) wrap(route string, level slog.Level, h handler) http.Handler {
	inner := http.HandlerFunc(func(w http.ResponseWriter, masked *http.Request) {
		r := unmask(masked)
		began := time.Now()
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		o.guard(ww, r, route, func() bool { return ww.Status() != 0 }, h)
		o.logRequest(r, level, route, max(ww.Status(), http.StatusOK), int64(ww.BytesWritten()), began)
	})
	return mask(route, otelhttp.NewHandler(inner, route, o.otel...))
}

// wrapFile observes a route that sends files. Nothing here may stand between
// the handler and the connection except a sender, which keeps sendfile.
func (o *observer) wrapFile(route string, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		ctx, span := o.span(r.Context(), r, route)
		defer span.End()
		r = r.WithContext(ctx)
		to := newSender(w)
		o.guard(to, r, route, func() bool { return to.status != 0 }, h)
		o.logRequest(r, slog.LevelInfo, route, to.status, to.bytes, began)
		attrs := attribute.NewSet(attribute.String("encoding", encoding(w.Header())), attribute.Int("status", to.status))
		o.bytes.Add(ctx, to.bytes, metric.WithAttributeSet(attrs))
		o.duration.Record(ctx, time.Since(began).Seconds(), metric.WithAttributeSet(attrs))
		span.SetAttributes(attrs.ToSlice()...)
		span.SetAttributes(attribute.Int64("bytes", to.bytes))
	})
}

// span begins the span of a download. A client's trace is linked to it, as
// otelhttp does for public endpoints, and does not decide about ours.
func (o *observer) span(ctx context.Context, r *http.Request, route string) (context.Context, trace.Span) {
	client := trace.SpanContextFromContext(otel.GetTextMapPropagator().Extract(ctx, propagation.HeaderCarrier(r.Header)))
	opts := []trace.SpanStartOption{trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer)}
	if client.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: client}))
	}
	return o.tracer.Start(ctx, method(r.Method)+" "+route, opts...)
}

func encoding(h http.Header) string {
	if e := h.Get("Content-Encoding"); e != "" {
		return e
	}
	return "identity"
}

// guard runs a handler and answers for it if it fails before it answered.
// Once a header is out, an error can only end the connection: net/http does,
// because fewer bytes went out than Content-Length promised.
func (o *observer) guard(w http.ResponseWriter, r *http.Request, route string, answered func() bool, h handler) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		o.panicked(r, route, p)
		if answered() {
			panic(http.ErrAbortHandler) // ends the connection
		}
		fail(w, o.faultOf(errors.New("panic")))
	}()
	err := h(w, r)
	if err == nil {
		return
	}
	if answered() {
		o.log.LogAttrs(r.Context(), severity(err), "download broken off", slog.String("route", route), slog.Any("err", err))
		return
	}
	o.limits.saw(r.Context(), err)
	if why := smart.Why(err); why != "" {
		o.log.LogAttrs(r.Context(), slog.LevelDebug, "an access token was refused", slog.String("route", route), slog.String("why", why))
	}
	f := o.faultOf(err)
	switch {
	case errors.Is(err, store.ErrNoRoom):
		o.log.LogAttrs(r.Context(), slog.LevelWarn, "request put off", slog.String("route", route), slog.Any("err", err))
	case errors.Is(err, smart.ErrIssuer):
		o.log.LogAttrs(r.Context(), slog.LevelWarn, "access tokens cannot be checked", slog.String("route", route), slog.Any("err", err))
	case f.status >= http.StatusInternalServerError && f.status != http.StatusServiceUnavailable:
		o.log.LogAttrs(r.Context(), slog.LevelError, "request failed", slog.String("route", route), slog.Any("err", err))
	}
	fail(w, f)
}

// severity: clients come and go, but bytes that are not what was written are
// the operator's business.
func severity(err error) slog.Level {
	if errors.Is(err, store.ErrCorrupt) {
		return slog.LevelError
	}
	return slog.LevelInfo
}

// panicked logs where, and what only if it is the runtime's own text: any
// other value might carry data.
func (o *observer) panicked(r *http.Request, route string, p any) {
	what := fmt.Sprintf("%T", p)
	if err, ok := p.(runtime.Error); ok {
		what = err.Error()
	}
	o.log.LogAttrs(r.Context(), slog.LevelError, "panic in a handler",
		slog.String("route", route), slog.String("panic", what), slog.String("stack", string(debug.Stack())))
}

func (o *observer) logRequest(r *http.Request, level slog.Level, route string, status int, bytes int64, began time.Time) {
	o.log.LogAttrs(r.Context(), level, "request", slog.String("method", method(r.Method)), slog.String("route", route),
		slog.Int("status", status), slog.Int64("bytes", bytes), slog.Duration("duration", time.Since(began)))
}

// method keeps what a client made up out of the log.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

type realRequest struct{}

// mask shows the telemetry in next a request that holds nothing of the
// client's but method and trace context; unmask gives the handler the real one.
func mask(route string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := r.WithContext(context.WithValue(r.Context(), realRequest{}, r))
		m.Method = method(r.Method)
		m.URL = &url.URL{Path: route}
		m.Pattern = route
		m.Host = ""
		m.RemoteAddr = ""
		m.Header = http.Header{}
		for _, h := range []string{"Traceparent", "Tracestate"} {
			if v := r.Header.Values(h); len(v) > 0 {
				m.Header[h] = v
			}
		}
		next.ServeHTTP(w, m)
	})
}

func unmask(masked *http.Request) *http.Request {
	r := masked.Context().Value(realRequest{}).(*http.Request).WithContext(masked.Context())
	r.Body = masked.Body // counts what is read
	return r
}
