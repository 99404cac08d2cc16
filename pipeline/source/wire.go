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
	"github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/segmentio/kafka-go/protocol/metadata"
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

// fetchVersion is the last version of Fetch that names topics and has no
// tagged fields; every broker since Kafka 2.3 speaks it.
const fetchVersion = 11

// A rawFetch is a Fetch whose answer keeps the record batches as they came.
type rawFetch struct {
	fetch.Request
	node   int32
	client string
	limit  int
}

func (f *rawFetch) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: f.node}, nil
}

func (f *rawFetch) Required(map[protocol.ApiKey]int16) bool { return true }

func (f *rawFetch) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if err := protocol.WriteRequest(rw, fetchVersion, correlation, f.client, &f.Request); err != nil {
		return nil, err
	}
	body, err := readAnswer(rw, f.limit)
	if err != nil {
		return nil, err
	}
	return parseFetch(body)
}

// A fetchAnswer owns the buffer that its partitions' data points into. The
// buffer is made for this answer and never used for another: records alias it
// for as long as somebody needs them.
type fetchAnswer struct {
	throttle   time.Duration
	partitions []fetchedPartition
}

func (*fetchAnswer) ApiKey() protocol.ApiKey { return protocol.Fetch }

type fetchedPartition struct {
	topic   string
	id      int32
	code    kafka.Error
	high    int64 // high watermark
	end     int64 // last stable offset
	start   int64 // log start offset
	aborted []Aborted
	data    []byte
}

func parseFetch(body []byte) (*fetchAnswer, error) {
	c := cursor{b: body}
	a := &fetchAnswer{throttle: time.Duration(c.int32()) * time.Millisecond}
	code := kafka.Error(c.int16())
	c.int32() // session
	for range c.count(6) {
		topic := c.string()
		for range c.count(38) {
			a.partitions = append(a.partitions, parseFetched(&c, topic))
		}
	}
	if c.bad {
		return nil, errMalformed
	}
	if code != 0 {
		return nil, code
	}
	return a, nil
}

var errMalformed = fmt.Errorf("malformed response: %w", io.ErrUnexpectedEOF)

func parseFetched(c *cursor, topic string) fetchedPartition {
	p := fetchedPartition{topic: topic, id: c.int32(), code: kafka.Error(c.int16())}
	p.high, p.end, p.start = c.int64(), c.int64(), c.int64()
	if n := c.count(16); n > 0 {
		p.aborted = make([]Aborted, n)
		for i := range p.aborted {
			p.aborted[i] = Aborted{ProducerID: c.int64(), FirstOffset: c.int64()}
		}
	}
	c.int32() // preferred read replica: we name no rack
	p.data = c.take(max(0, int(c.int32())))
	return p
}

// metadataVersion is the version of Metadata in which topics have ids.
const metadataVersion = 12

// A rawMetadata asks for topics and their ids. kafka-go's own Metadata stops
// before ids and is answered from a cache. Whether a broker has ids is asked
// with every request: during an upgrade it depends on the broker.
type rawMetadata struct {
	topics  []string // nil: all
	client  string
	version int16 // of kafka-go's Metadata, for older brokers
}

func (*rawMetadata) ApiKey() protocol.ApiKey { return protocol.Metadata }

func (m *rawMetadata) Required(versions map[protocol.ApiKey]int16) bool {
	m.version = versions[protocol.Metadata]
	return true
}

func (m *rawMetadata) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	ok, err := m.hasIDs(rw)
	if err != nil {
		return nil, err
	}
	if !ok {
		return m.exchangeOld(rw)
	}
	if _, err := rw.Write(m.request()); err != nil {
		return nil, err
	}
	body, err := readAnswer(rw, maxMetadata)
	if err != nil {
		return nil, err
	}
	return parseMetadata(body)
}

// maxMetadata holds some hundred thousand partitions.
const maxMetadata = 64 << 20

func (m *rawMetadata) hasIDs(rw io.ReadWriter) (bool, error) {
	res, err := protocol.RoundTrip(rw, 0, correlation, m.client, &apiversions.Request{})
	if err != nil {
		return false, err
	}
	for _, k := range res.(*apiversions.Response).ApiKeys {
		if protocol.ApiKey(k.ApiKey) == protocol.Metadata {
			return k.MinVersion <= metadataVersion && metadataVersion <= k.MaxVersion, nil
		}
	}
	return false, nil
}

// request is Metadata 12: flexible, never creating a topic.
func (m *rawMetadata) request() []byte {
	b := make([]byte, 4, 256)
	b = binary.BigEndian.AppendUint16(b, uint16(protocol.Metadata))
	b = binary.BigEndian.AppendUint16(b, metadataVersion)
	b = binary.BigEndian.AppendUint32(b, correlation)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.client)))
	b = append(b, m.client...)
	b = append(b, 0) // tagged fields of the header
	if m.topics == nil {
		b = append(b, 0)
	} else {
		b = binary.AppendUvarint(b, uint64(len(m.topics))+1)
	}
	for _, name := range m.topics {
		b = append(b, make([]byte, 16)...) // topic id: none, by name
		b = binary.AppendUvarint(b, uint64(len(name))+1)
		b = append(b, name...)
		b = append(b, 0)
	}
	b = append(b, 0, 0, 0) // no auto-creation, no authorised operations, tagged fields
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// A topicMeta is what the cluster says of one topic.
type topicMeta struct {
	name       string
	id         [16]byte // zero if the broker has none
	code       kafka.Error
	internal   bool
	partitions []partitionMeta
}

type partitionMeta struct {
	id     int32
	leader int32 // or noLeader
	epoch  int32 // of the leader, -1 if unknown
}

const noLeader int32 = -1

type metadataAnswer struct{ topics []topicMeta }

func (*metadataAnswer) ApiKey() protocol.ApiKey { return protocol.Metadata }

func parseMetadata(body []byte) (*metadataAnswer, error) {
	c := cursor{b: body}
	c.tags()
	c.int32() // throttle
	for range c.compactCount(11) {
		c.int32() // node
		c.compactString()
		c.int32() // port
		c.compactString()
		c.tags()
	}
	c.compactString() // cluster
	c.int32()         // controller
	a := &metadataAnswer{}
	for range c.compactCount(25) {
		a.topics = append(a.topics, parseTopicMeta(&c))
	}
	c.tags()
	if c.bad {
		return nil, errMalformed
	}
	return a, nil
}

func parseTopicMeta(c *cursor) topicMeta {
	t := topicMeta{code: kafka.Error(c.int16()), name: c.compactString()}
	copy(t.id[:], c.take(16))
	t.internal = c.bool()
	for range c.compactCount(18) {
		c.int16() // a partition without leader says so in leader too
		p := partitionMeta{id: c.int32(), leader: c.int32(), epoch: c.int32()}
		for range 3 { // replicas, in sync, offline
			for range c.compactCount(4) {
				c.int32()
			}
		}
		c.tags()
		t.partitions = append(t.partitions, p)
	}
	c.int32() // authorised operations
	c.tags()
	return t
}

func (m *rawMetadata) exchangeOld(rw io.ReadWriter) (protocol.Message, error) {
	res, err := protocol.RoundTrip(rw, m.version, correlation, m.client, &metadata.Request{TopicNames: m.topics})
	if err != nil {
		return nil, err
	}
	a := &metadataAnswer{}
	for _, t := range res.(*metadata.Response).Topics {
		topic := topicMeta{name: t.Name, code: kafka.Error(t.ErrorCode), internal: t.IsInternal}
		for _, p := range t.Partitions {
			epoch := p.LeaderEpoch
			if m.version < 7 { // the first that tells it
				epoch = -1
			}
			topic.partitions = append(topic.partitions, partitionMeta{p.PartitionIndex, p.LeaderID, epoch})
		}
		a.topics = append(a.topics, topic)
	}
	return a, nil
}

func (w *wire) metadata(ctx context.Context, topics []string) ([]topicMeta, error) {
	res, err := w.send(ctx, 0, &rawMetadata{topics: topics, client: w.transport.ClientID})
	if err != nil {
		return nil, fmt.Errorf("ask for metadata: %w", err)
	}
	return res.(*metadataAnswer).topics, nil
}
