package source

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

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
	ok, err := offers(rw, m.client, protocol.Metadata, metadataVersion)
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

// request is Metadata 12: flexible, never creating a topic.
func (m *rawMetadata) request() []byte {
	b := flexible(protocol.Metadata, metadataVersion, m.client)
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
	return measured(b)
}

// A topicMeta is what the cluster says of one topic.
type topicMeta struct {
	name       string
	id         topicID // zero if the broker has none
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
