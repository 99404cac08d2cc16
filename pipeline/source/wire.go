package source

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
)

// anyBroker sends a request to whichever broker answers first.
const anyBroker int32 = -1

// A wire sends requests to the brokers of one cluster.
//
// kafka-go dials, authenticates and keeps the connections. What goes over them
// we write ourselves where its own messages fall short, as RawExchangers:
// nothing is registered globally, so its other users are not disturbed.
type wire struct {
	transport *kafka.Transport
	addr      net.Addr
	timeout   time.Duration
}

func newWire(cfg Config) *wire {
	return &wire{
		addr:    kafka.TCP(cfg.Brokers...),
		timeout: cfg.RequestTimeout,
		transport: &kafka.Transport{
			ClientID: cfg.ClientID,
			TLS:      cfg.TLS,
			SASL:     cfg.SASL,
			// The transport asks for the brokers by itself so often, but for
			// no topic: partitions and leaders we ask for ourselves.
			MetadataTTL:    cfg.Refresh,
			MetadataTopics: []string{},
		},
	}
}

func (w *wire) close() { w.transport.CloseIdleConnections() }

func (w *wire) send(ctx context.Context, wait time.Duration, req protocol.Message) (protocol.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout+wait)
	defer cancel()
	return w.transport.RoundTrip(ctx, w.addr, req)
}

// A call sends a message of kafka-go's to one broker, whatever kafka-go itself
// would do with it (answer from its cache, split it, route it).
type call struct {
	protocol.Message
	node    int32
	client  string
	version int16
}

func (c *call) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: c.node}, nil
}

// Required learns the version that kafka-go and the broker have in common.
func (c *call) Required(versions map[protocol.ApiKey]int16) bool {
	c.version = versions[c.ApiKey()]
	return true
}

func (c *call) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	return protocol.RoundTrip(rw, c.version, correlation, c.client, c.Message)
}

// correlation is the same for all requests: a connection carries one at a time.
const correlation = 1

func (w *wire) call(ctx context.Context, node int32, req protocol.Message) (protocol.Message, error) {
	return w.send(ctx, 0, &call{Message: req, node: node, client: w.transport.ClientID})
}

// readAnswer reads one whole response and returns what follows its header.
func readAnswer(r io.Reader, limit int) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return nil, err
	}
	n := int(int32(binary.BigEndian.Uint32(head[:])))
	if n > limit {
		return nil, &largeAnswer{n, limit}
	}
	if n < 4 {
		return nil, fmt.Errorf("response of %d bytes: not a Kafka broker?", n)
	}
	if _, err := io.ReadFull(r, head[4:]); err != nil {
		return nil, err
	}
	if id := binary.BigEndian.Uint32(head[4:]); id != correlation {
		return nil, fmt.Errorf("response has correlation id %d, want %d", id, correlation)
	}
	body := make([]byte, n-4)
	_, err := io.ReadFull(r, body)
	return body, err
}

// largeAnswer is a response beyond what we are ready to hold.
type largeAnswer struct{ size, limit int }

func (e *largeAnswer) Error() string {
	return fmt.Sprintf("response of %d bytes exceeds the limit of %d", e.size, e.limit)
}

var errMalformed = fmt.Errorf("malformed response: %w", io.ErrUnexpectedEOF)

// A rawVersions asks one broker whether it offers a version of a request:
// kafka-go tells only of versions that it knows itself.
type rawVersions struct {
	node    int32
	client  string
	key     protocol.ApiKey
	version int16
}

func (*rawVersions) ApiKey() protocol.ApiKey { return protocol.ApiVersions }

func (v *rawVersions) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: v.node}, nil
}

func (*rawVersions) Required(map[protocol.ApiKey]int16) bool { return true }

func (v *rawVersions) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	ok, err := offers(rw, v.client, v.key, v.version)
	return &versionsAnswer{ok}, err
}

type versionsAnswer struct{ offered bool }

func (*versionsAnswer) ApiKey() protocol.ApiKey { return protocol.ApiVersions }

// offers asks over an open connection.
func offers(rw io.ReadWriter, client string, key protocol.ApiKey, version int16) (bool, error) {
	res, err := protocol.RoundTrip(rw, 0, correlation, client, &apiversions.Request{})
	if err != nil {
		return false, err
	}
	for _, k := range res.(*apiversions.Response).ApiKeys {
		if protocol.ApiKey(k.ApiKey) == key {
			return k.MinVersion <= version && version <= k.MaxVersion, nil
		}
	}
	return false, nil
}

// flexible begins a request with tagged fields; measured ends it.
func flexible(key protocol.ApiKey, version int16, client string) []byte {
	b := make([]byte, 4, 1024)
	b = binary.BigEndian.AppendUint16(b, uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = binary.BigEndian.AppendUint32(b, correlation)
	b = binary.BigEndian.AppendUint16(b, uint16(len(client)))
	b = append(b, client...)
	return append(b, 0) // tagged fields of the header
}

func measured(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}
