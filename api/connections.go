package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// connections bounds how many are open, in all and from one address: each costs
// memory, and a descriptor that the store may need for a file. One too many is closed
// before anything of it is read.
//
// Decision, November 2026: it is counted where net/http tells of states, not in a
// listener: what wraps a connection ends sendfile, and a listener that waits, as
// netutil.LimitListener does, lets whoever holds all connections keep out everybody
// else, probes included.
type connections struct {
	max, each int // 0: no bound
	exempt    proxies
	log       *slog.Logger

	mu      sync.Mutex
	open    map[net.Conn]netip.Addr
	from    map[netip.Addr]int
	refused map[string]int64 // by limit
	warned  time.Time
}

func newConnections(o Options) (*connections, error) {
	c := &connections{
		max: o.MaxConnections, each: o.MaxPerAddress, exempt: o.TrustedProxies, log: o.Logger,
		open: map[net.Conn]netip.Addr{}, from: map[netip.Addr]int{}, refused: map[string]int64{limitAll: 0, limitEach: 0},
	}
	meter := o.MeterProvider.Meter("tidemark/api")
	_, err1 := meter.Int64ObservableGauge("api.connections", metric.WithUnit("{connection}"),
		metric.WithDescription("Open connections of clients"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			o.Observe(int64(len(c.open)))
			return nil
		}))
	_, err2 := meter.Int64ObservableCounter("api.connections.refused", metric.WithUnit("{connection}"),
		metric.WithDescription("Connections that were closed because too many were open, by limit"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			for limit, n := range c.refused {
				o.Observe(n, metric.WithAttributes(attribute.String("limit", limit)))
			}
			return nil
		}))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("make the instruments of connections: %w", err)
	}
	return c, nil
}

// follow is http.Server's ConnState.
func (c *connections) follow(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if limit := c.enter(conn); limit != "" {
			c.refuse(limit)
			_ = conn.Close() // its first read fails, and it is StateClosed
		}
	case http.StateClosed, http.StateHijacked:
		c.leave(conn)
	}
}

// The limits, as their keys.
const (
	limitAll  = "limits.connections"
	limitEach = "limits.connections_per_address"
)

// enter counts a connection in, or names the limit that it would pass.
func (c *connections) enter(conn net.Conn) (limit string) {
	from := neighbourhood(conn.RemoteAddr().String())
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.max > 0 && len(c.open) >= c.max:
		return limitAll
	case c.each > 0 && c.from[from] >= c.each && !c.exempt.trust(from):
		return limitEach
	}
	c.open[conn] = from
	c.from[from]++
	return ""
}

func (c *connections) leave(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, counted := c.open[conn]
	if !counted {
		return
	}
	delete(c.open, conn)
	if c.from[from]--; c.from[from] == 0 {
		delete(c.from, from)
	}
}

// refuse counts who is kept out, and says so at most once a minute.
func (c *connections) refuse(limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[limit]++
	if time.Since(c.warned) < time.Minute {
		return
	}
	c.warned = time.Now()
	c.log.Warn("connections are closed, since too many are open: raise the limit if they are of honest clients, or name the proxy in http.trusted_proxies", "key", limit)
}

// neighbourhood is the address that one client has to itself: of IPv6 the first half,
// since whoever has one address there has all of them.
func neighbourhood(remote string) netip.Addr {
	a, _ := address(remote)
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}
