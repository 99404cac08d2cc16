package backfill

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A Writer puts records into a topic: idempotently, acknowledged by all replicas in sync,
// a key always into the partition where Java's producers put it.
//
// It is franz-go and not kafka-go, which reads everywhere else: kafka-go's writer is not
// idempotent, so what it sends again after a lost answer may come behind what was later.
type Writer struct {
	topic  string
	limit  int64 // max.message.bytes of the topic, 0 if it is not known
	client *kgo.Client
	// large sends what is larger than a batch of the others, one record at a time: a limit
	// of the brokers is one of compressed batches, the client's is not.
	large *kgo.Client
	batch int
}

const (
	// buffered bounds what waits for brokers, bytes.
	buffered = 64 << 20
	// batchBytes is what brokers take in a batch unless they are told otherwise.
	batchBytes = 1_000_012
	// largeBytes is below what brokers take in a request (socket.request.max.bytes).
	largeBytes = 96 << 20
	// overhead is more than a record needs beside its key and value.
	overhead = 1 << 10
)

// NewWriter makes a writer of options that reach the brokers. limit is the topic's
// max.message.bytes, 0 if it is not known.
func NewWriter(topic string, limit int64, reach ...kgo.Opt) (*Writer, error) {
	w := &Writer{topic: topic, limit: limit, batch: batchBytes}
	if limit > overhead && limit < batchBytes {
		w.batch = int(limit)
	}
	common := append([]kgo.Opt{
		kgo.DefaultProduceTopic(topic), kgo.RequiredAcks(kgo.AllISRAcks()), kgo.AllowIdempotentProduceCancellation(),
		kgo.ProducerBatchCompression(kgo.ZstdCompression(), kgo.SnappyCompression(), kgo.NoCompression()),
	}, reach...)
	var err error
	w.client, err = kgo.NewClient(append(common, kgo.ProducerBatchMaxBytes(int32(w.batch)), kgo.MaxBufferedBytes(buffered), kgo.ProducerLinger(10*time.Millisecond))...)
	if err != nil {
		return nil, err
	}
	w.large, err = kgo.NewClient(append(common, kgo.ProducerBatchMaxBytes(largeBytes), kgo.ProducerLinger(0))...)
	if err != nil {
		w.client.Close()
		return nil, err
	}
	return w, nil
}

// TopicID is the brokers' number of the topic: one that is made anew under its name has
// another. Brokers before 2.8 have none.
func (w *Writer) TopicID(ctx context.Context) (string, error) {
	req := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = new(w.topic)
	req.Topics = append(req.Topics, topic)
	answer, err := req.RequestWith(ctx, w.client)
	if err == nil && len(answer.Topics) == 1 {
		err = kerr.ErrorForCode(answer.Topics[0].ErrorCode)
	}
	if err != nil || len(answer.Topics) != 1 {
		return "", fmt.Errorf("ask for the topic %s: %w", w.topic, err)
	}
	return hex.EncodeToString(answer.Topics[0].TopicID[:]), nil
}

// Close gives connections back. What was not flushed is lost.
func (w *Writer) Close() {
	w.client.Close()
	w.large.Close()
}

// Put implements Sink. It waits while too much is under way.
func (w *Writer) Put(ctx context.Context, rec *kgo.Record, done func(error)) {
	size := len(rec.Key) + len(rec.Value) + overhead
	if size < w.batch {
		w.client.Produce(ctx, rec, func(_ *kgo.Record, err error) { done(w.explain(err, size)) })
		return
	}
	// What came before under the same key stays before.
	if err := w.client.Flush(ctx); err != nil {
		done(err)
		return
	}
	done(w.explain(w.large.ProduceSync(ctx, rec).FirstErr(), size))
}

// Flush implements Sink.
func (w *Writer) Flush(ctx context.Context) error { return w.client.Flush(ctx) }

// explain says what to do about an error. It names no record: keys may be patients'.
func (w *Writer) explain(err error, size int) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, kerr.MessageTooLarge):
		limit := "less"
		if w.limit > 0 {
			limit = humanize.Comma(w.limit)
		}
		return fmt.Errorf("a record of %s bytes is more than the topic %s takes (%s, compressed): raise its max.message.bytes to %d, which is enough for it, and run this again: it goes on there",
			humanize.Comma(int64(size)), w.topic, limit, size+size/4)
	}
	return fmt.Errorf("write to the topic %s: %w; run this again when the brokers are there, and it goes on", w.topic, err)
}
