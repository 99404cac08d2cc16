package api_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"tidemark/api"
)

// dialFrom opens a connection from one of this machine's own addresses.
func dialFrom(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Skipf("no connection from %s here: %v", from, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// answers tells whether a connection gets an answer, and does not end it.
func answers(t *testing.T, conn net.Conn) bool {
	t.Helper()
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return false
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1024)
	n, _ := conn.Read(b)
	return strings.HasPrefix(string(b[:n]), "HTTP/1.1 200 OK")
}

// Connections are bounded in all and from one address, trusted proxies only in all;
// one that has ended makes room.
func TestConnections(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	base, stop := running(t, api.Options{
		MaxConnections: 6, MaxPerAddress: 2, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")},
		MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
	})
	to := strings.TrimPrefix(base, "http://")
	var open []net.Conn
	try := func(from string, want bool) {
		t.Helper()
		conn := dialFrom(t, from, to)
		if got := answers(t, conn); got != want {
			t.Errorf("connection %d from %s: served %t, want %t", len(open)+1, from, got, want)
		}
		if want {
			open = append(open, conn)
		} else {
			conn.Close()
		}
	}
	try("127.0.0.2", true)
	try("127.0.0.2", true)
	try("127.0.0.2", false)
	try("127.0.0.1", true)
	try("127.0.0.3", true)
	try("127.0.0.3", true)
	try("127.0.0.3", true)
	try("127.0.0.3", false)
	try("127.0.0.1", false)
	if got := gauge(t, reader, "api.connections"); got != 6 {
		t.Errorf("%d connections are told, want 6", got)
	}
	if got := gauge(t, reader, "api.connections.refused"); got != 3 {
		t.Errorf("%d refused connections are told, want 3", got)
	}
	open[0].Close()
	for deadline := time.Now().Add(time.Minute); gauge(t, reader, "api.connections") != 5; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a connection that has ended is counted still")
		}
	}
	try("127.0.0.2", true)
	for _, c := range open {
		c.Close()
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// gauge reads a number that the server tells of itself.
func gauge(t *testing.T, reader sdkmetric.Reader, name string) int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.WithoutCancel(t.Context()), &all); err != nil {
		t.Fatal(err)
	}
	for _, s := range all.ScopeMetrics {
		for _, m := range s.Metrics {
			if m.Name != name {
				continue
			}
			switch d := m.Data.(type) {
			case metricdata.Gauge[int64]:
				return d.DataPoints[0].Value
			case metricdata.Sum[int64]:
				sum := int64(0)
				for _, p := range d.DataPoints {
					sum += p.Value
				}
				return sum
			}
		}
	}
	t.Fatalf("no %s", name)
	return 0
}
