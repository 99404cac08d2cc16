package source

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"tidemark/store"
)

// A Transaction is one that is open in a partition: what lies behind Start cannot be read
// until it ends.
type Transaction struct {
	Producer int64 // its id
	Epoch    int32 // of the producer
	Start    int64 // offset of its first record
	Last     time.Time
}

// Transactions asks the leader of a partition which transactions are open in it.
func (s *Source) Transactions(ctx context.Context, id store.Partition) ([]Transaction, error) {
	s.mu.Lock()
	leader := noLeader
	if p := s.partitions[id]; p != nil {
		leader = p.leader
	}
	s.mu.Unlock()
	if leader == noLeader {
		return nil, kafka.LeaderNotAvailable
	}
	res, err := s.wire.send(ctx, 0, &rawProducers{node: leader, client: s.wire.transport.ClientID, id: id})
	if err != nil {
		return nil, fmt.Errorf("ask broker %d for the producers of %s/%d: %w", leader, id.Topic, id.ID, err)
	}
	return res.(*producersAnswer).open, nil
}

// describeProducers is the key of a request that kafka-go does not know; brokers do since 2.8.
const describeProducers protocol.ApiKey = 61

// maxProducers holds some ten thousand producers.
const maxProducers = 1 << 20

// A rawProducers asks one broker for the producers of a partition.
type rawProducers struct {
	node   int32
	client string
	id     store.Partition
}

func (*rawProducers) ApiKey() protocol.ApiKey { return describeProducers }

func (r *rawProducers) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: r.node}, nil
}

func (*rawProducers) Required(map[protocol.ApiKey]int16) bool { return true }

func (r *rawProducers) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	ok, err := offers(rw, r.client, describeProducers, 0)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, kafka.UnsupportedVersion
	}
	if _, err := rw.Write(r.request()); err != nil {
		return nil, err
	}
	body, err := readAnswer(rw, maxProducers)
	if err != nil {
		return nil, err
	}
	return parseProducers(body)
}

func (r *rawProducers) request() []byte {
	b := flexible(describeProducers, 0, r.client)
	b = append(b, 2) // one topic
	b = binary.AppendUvarint(b, uint64(len(r.id.Topic))+1)
	b = append(b, r.id.Topic...)
	b = append(b, 2) // one partition
	b = binary.BigEndian.AppendUint32(b, uint32(r.id.ID))
	b = append(b, 0, 0) // tagged fields
	return measured(b)
}

type producersAnswer struct{ open []Transaction }

func (*producersAnswer) ApiKey() protocol.ApiKey { return describeProducers }

func parseProducers(body []byte) (*producersAnswer, error) {
	c := cursor{b: body}
	c.tags()
	c.int32() // throttle
	a, code := &producersAnswer{}, kafka.Error(0)
	for range c.compactCount(3) {
		c.compactString()
		for range c.compactCount(9) {
			c.int32() // partition
			if e := kafka.Error(c.int16()); e != 0 {
				code = e
			}
			c.compactString() // message
			for range c.compactCount(33) {
				t := Transaction{Producer: c.int64(), Epoch: c.int32()}
				c.int32() // last sequence number
				t.Last = time.UnixMilli(c.int64())
				c.int32() // epoch of the coordinator
				t.Start = c.int64()
				c.tags()
				if t.Start >= 0 {
					a.open = append(a.open, t)
				}
			}
			c.tags()
		}
		c.tags()
	}
	c.tags()
	switch {
	case c.bad:
		return nil, errMalformed
	case code != 0:
		return nil, code
	}
	return a, nil
}
