package source

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"

	"tidemark/store"
)

// Fetch names topics by their ids where it can: asked by name, a broker answers
// for whatever topic bears that name now, though it be another one than the
// one we have begun to read.
const (
	fetchByID   = 13 // brokers since Kafka 3.1
	fetchByName = 11 // brokers since Kafka 2.3; the last without tagged fields
)

type topicID [16]byte

// A rawFetch is a Fetch whose answer keeps the record batches as they came.
type rawFetch struct {
	fetch.Request
	ids    map[string]topicID        // of all topics; nil: by name
	epochs map[store.Partition]int32 // of what was read last, -1 if unknown; only by id
	node   int32
	client string
	limit  int
}

func (f *rawFetch) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: f.node}, nil
}

func (f *rawFetch) Required(map[protocol.ApiKey]int16) bool { return true }

func (f *rawFetch) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if err := f.write(rw); err != nil {
		return nil, err
	}
	body, err := readAnswer(rw, f.limit)
	if err != nil {
		return nil, err
	}
	if f.ids == nil {
		return parseFetch(body)
	}
	a, err := parseFetchByID(body)
	if err != nil {
		return nil, err
	}
	names := make(map[topicID]string, len(f.ids))
	for name, id := range f.ids {
		names[id] = name
	}
	for i := range a.partitions {
		a.partitions[i].topic = names[a.partitions[i].topicID]
	}
	return a, nil
}

func (f *rawFetch) write(w io.Writer) error {
	if f.ids == nil {
		return protocol.WriteRequest(w, fetchByName, correlation, f.client, &f.Request)
	}
	_, err := w.Write(f.byID())
	return err
}

// byID is the request as Fetch 13 writes it.
func (f *rawFetch) byID() []byte {
	b := flexible(protocol.Fetch, fetchByID, f.client)
	for _, n := range []int32{f.ReplicaID, f.MaxWaitTime, f.MinBytes, f.MaxBytes} {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
	}
	b = append(b, byte(f.IsolationLevel))
	b = binary.BigEndian.AppendUint32(b, uint32(f.SessionID))
	b = binary.BigEndian.AppendUint32(b, uint32(f.SessionEpoch))
	b = binary.AppendUvarint(b, uint64(len(f.Topics))+1)
	for _, t := range f.Topics {
		id := f.ids[t.Topic]
		b = append(b, id[:]...)
		b = binary.AppendUvarint(b, uint64(len(t.Partitions))+1)
		for _, p := range t.Partitions {
			b = binary.BigEndian.AppendUint32(b, uint32(p.Partition))
			b = binary.BigEndian.AppendUint32(b, uint32(p.CurrentLeaderEpoch))
			b = binary.BigEndian.AppendUint64(b, uint64(p.FetchOffset))
			b = binary.BigEndian.AppendUint32(b, uint32(f.epochs[store.Partition{Topic: t.Topic, ID: p.Partition}]))
			b = binary.BigEndian.AppendUint64(b, uint64(p.LogStartOffset))
			b = binary.BigEndian.AppendUint32(b, uint32(p.PartitionMaxBytes))
			b = append(b, 0)
		}
		b = append(b, 0)
	}
	return measured(append(b, 1, 1, 0)) // nothing forgotten, no rack, no tagged fields
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
	topicID topicID // zero if it was asked for by name
	id      int32
	code    kafka.Error
	high    int64 // high watermark
	end     int64 // last stable offset
	start   int64 // log start offset
	aborted []Aborted
	data    []byte
	fork    *divergence
}

// A divergence says that the leader's log does not continue what we have read:
// its newest epoch up to ours ends below our offset (KIP-595). It comes without
// record batches.
type divergence struct {
	epoch int32
	end   int64
}

func parseFetch(body []byte) (*fetchAnswer, error) {
	c := cursor{b: body}
	a := &fetchAnswer{throttle: time.Duration(c.int32()) * time.Millisecond}
	code := kafka.Error(c.int16())
	c.int32() // session
	for range c.count(6) {
		topic := c.string()
		for range c.count(38) {
			p := fetchedPartition{topic: topic}
			p.parse(&c)
			p.aborted = parseAborted(&c, c.count(16), false)
			c.int32() // preferred read replica: we name no rack
			p.data = c.take(max(0, int(c.int32())))
			a.partitions = append(a.partitions, p)
		}
	}
	return a.checked(&c, code)
}

func parseFetchByID(body []byte) (*fetchAnswer, error) {
	c := cursor{b: body}
	c.tags()
	a := &fetchAnswer{throttle: time.Duration(c.int32()) * time.Millisecond}
	code := kafka.Error(c.int16())
	c.int32() // session
	for range c.compactCount(18) {
		var id topicID
		copy(id[:], c.take(16))
		for range c.compactCount(37) {
			p := fetchedPartition{topicID: id}
			p.parse(&c)
			p.aborted = parseAborted(&c, c.compactCount(17), true)
			c.int32() // preferred read replica
			p.data = c.take(max(0, int(c.uvarint())-1))
			p.fork = parseDivergence(&c)
			a.partitions = append(a.partitions, p)
		}
		c.tags()
	}
	c.tags()
	return a.checked(&c, code)
}

// parse reads what all versions begin with.
func (p *fetchedPartition) parse(c *cursor) {
	p.id, p.code = c.int32(), kafka.Error(c.int16())
	p.high, p.end, p.start = c.int64(), c.int64(), c.int64()
}

// parseDivergence reads a partition's tagged fields, of which it is the first.
func parseDivergence(c *cursor) (fork *divergence) {
	c.eachTag(func(tag uint32, field cursor) {
		if tag != 0 {
			return
		}
		if d := (divergence{epoch: field.int32(), end: field.int64()}); d.epoch >= 0 { // -1 is none
			fork = &d
		}
		c.bad = c.bad || field.bad
	})
	return fork
}

func parseAborted(c *cursor, n int, tagged bool) []Aborted {
	if n == 0 {
		return nil
	}
	list := make([]Aborted, n)
	for i := range list {
		list[i] = Aborted{ProducerID: c.int64(), FirstOffset: c.int64()}
		if tagged {
			c.tags()
		}
	}
	return list
}

func (a *fetchAnswer) checked(c *cursor, code kafka.Error) (*fetchAnswer, error) {
	switch {
	case c.bad:
		return nil, errMalformed
	case code != 0:
		return nil, code
	}
	return a, nil
}

// offersFetchByID asks a broker whether it takes ids of topics.
func (w *wire) offersFetchByID(ctx context.Context, node int32) (bool, error) {
	res, err := w.send(ctx, 0, &rawVersions{node: node, client: w.transport.ClientID, key: protocol.Fetch, version: fetchByID})
	if err != nil {
		return false, fmt.Errorf("ask broker %d for its versions: %w", node, err)
	}
	return res.(*versionsAnswer).offered, nil
}
