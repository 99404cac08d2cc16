package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/dustin/go-humanize"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"tidemark/cmd/tidemark/internal/config"
)

// A writer puts records with one key into a topic. It finds the partition as
// Java's producers do, so that a key has one whoever writes it.
type writer struct {
	client    *kafka.Client
	brokers   []string
	topic     string
	key       []byte
	partition int
	limits    topicLimits
}

// writePatience bounds how long brokers that are away, or between leaders, are
// waited for.
const writePatience = 30 * time.Second

// newWriter asks the brokers about the topic, which must exist.
func newWriter(ctx context.Context, c config.Kafka, topic, key string) (*writer, error) {
	secure, err := kafkaTLS(c.TLS)
	if err != nil {
		return nil, err
	}
	login, err := kafkaSASL(c.SASL)
	if err != nil {
		return nil, err
	}
	w := &writer{
		brokers: c.Brokers, topic: topic, key: []byte(key),
		client: &kafka.Client{
			Addr: kafka.TCP(c.Brokers...), Timeout: writePatience,
			// Leaders that have changed are noticed by asking again, and of all
			// topics only this one is asked for.
			Transport: &kafka.Transport{ClientID: "tidemark", TLS: secure, SASL: login, MetadataTTL: time.Second, MetadataTopics: []string{topic}},
		},
	}
	ctx, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	if err := w.locate(ctx); err != nil {
		w.close()
		return nil, err
	}
	w.limits, err = w.describe(ctx)
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *writer) close() { w.client.Transport.(*kafka.Transport).CloseIdleConnections() }

// locate finds the key's partition.
func (w *writer) locate(ctx context.Context) error {
	meta, err := w.client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{w.topic}})
	if err != nil {
		return fmt.Errorf("ask %s (kafka.brokers) for the topic %s: %w; are they up, and kafka.tls and kafka.sasl as they want them?", strings.Join(w.brokers, ", "), w.topic, err)
	}
	var partitions []int
	for _, t := range meta.Topics {
		if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			break
		}
		if t.Error != nil {
			return fmt.Errorf("ask for the topic %s: %w", w.topic, t.Error)
		}
		for _, p := range t.Partitions {
			partitions = append(partitions, p.ID)
		}
	}
	if len(partitions) == 0 {
		return fmt.Errorf("there is no topic %s: create it, with cleanup.policy=compact", w.topic)
	}
	slices.Sort(partitions)
	w.partition = kafka.Murmur2Balancer{}.Balance(kafka.Message{Key: w.key}, partitions...)
	return nil
}

// topicLimits is what a topic takes and keeps.
type topicLimits struct {
	bytes   int64 // largest batch, as it is stored; 0: not known
	codec   kafka.Compression
	forgets bool // it deletes what is old
	keeps   bool // it does not; neither: that is not told
}

// describe asks for the topic's configuration. Whoever may not read it learns
// its limits from the broker's answer to what is written.
func (w *writer) describe(ctx context.Context) (topicLimits, error) {
	limits := topicLimits{codec: kafka.Gzip}
	answer, err := w.client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: w.topic,
		ConfigNames: []string{"max.message.bytes", "compression.type", "cleanup.policy", "retention.ms"},
	}}})
	if err != nil {
		return limits, fmt.Errorf("ask for the configuration of the topic %s: %w", w.topic, err)
	}
	value := map[string]string{}
	for _, r := range answer.Resources {
		for _, e := range r.ConfigEntries {
			value[e.ConfigName] = e.ConfigValue
		}
	}
	limits.bytes, _ = strconv.ParseInt(value["max.message.bytes"], 10, 64) // 0 where it is not told
	if value["compression.type"] == "uncompressed" {
		limits.codec = 0
	}
	policy, told := value["cleanup.policy"]
	limits.forgets = strings.Contains(policy, "delete") && value["retention.ms"] != "-1" // "compact,delete" deletes, too
	limits.keeps = told && !limits.forgets
	return limits, nil
}

// end is the offset that the partition's next record will have.
func (w *writer) end(ctx context.Context) (int64, error) {
	answer, err := w.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{w.topic: {kafka.LastOffsetOf(w.partition)}},
	})
	if err == nil {
		for _, p := range answer.Topics[w.topic] {
			if p.Error == nil {
				return p.LastOffset, nil
			}
			err = p.Error
		}
	}
	return 0, fmt.Errorf("ask where partition %d of the topic %s ends: %w", w.partition, w.topic, err)
}

// A payload is a value and headers under the writer's key; a nil value deletes.
type payload struct {
	value   []byte
	headers []kafka.Header
}

func (w *writer) records(r payload) kafka.RecordReader {
	return kafka.NewRecordReader(kafka.Record{Time: time.Now(), Key: kafka.NewBytes(w.key), Value: kafka.NewBytes(r.value), Headers: r.headers})
}

// size is that of the record's batch as a broker measures it.
func (w *writer) size(r payload) (int64, error) {
	var n byteCount
	set := protocol.RecordSet{Version: 2, Attributes: protocol.Attributes(w.limits.codec), Records: w.records(r)}
	if _, err := set.WriteTo(&n); err != nil {
		return 0, fmt.Errorf("encode the record: %w", err)
	}
	const length = 4 // stands before the batch and is none of it
	return int64(n) - length, nil
}

type byteCount int64

func (n *byteCount) Write(p []byte) (int, error) {
	*n += byteCount(len(p))
	return len(p), nil
}

// fits tells what to do about a record that is too large, before it is sent.
func (w *writer) fits(r payload) error {
	size, err := w.size(r)
	if err != nil || w.limits.bytes == 0 || size <= w.limits.bytes {
		return err
	}
	return w.tooLarge(size)
}

func (w *writer) tooLarge(size int64) error {
	limit := "less"
	if w.limits.bytes > 0 {
		limit = humanize.Comma(w.limits.bytes)
	}
	return fmt.Errorf(`the record has %s bytes, compressed as far as the topic lets it be, and the topic %s takes %s: raise its max.message.bytes, or make several of it
  kafka-configs.sh --bootstrap-server %s --alter --entity-type topics --entity-name %s --add-config max.message.bytes=%d`,
		humanize.Comma(size), w.topic, limit, w.brokers[0], w.topic, size+size/4)
}

// write puts a record into the topic and returns its offset once all replicas
// that are in sync have it. A record that is written twice, because an answer
// was lost, says the same twice.
func (w *writer) write(ctx context.Context, r payload) (int64, error) {
	offset, err := w.produce(ctx, func() kafka.RecordReader { return w.records(r) })
	if errors.Is(err, kafka.MessageSizeTooLarge) {
		if size, sizeErr := w.size(r); sizeErr == nil {
			return 0, w.tooLarge(size)
		}
	}
	return offset, err
}

// An entry is a record of its own key.
type entry struct {
	key, value []byte // nil is Kafka's null
	headers    []kafka.Header
}

// writeAll puts records into the topic, in their order: in one batch, and in smaller ones if
// that is too large. smaller makes less of one that is too large by itself.
func (w *writer) writeAll(ctx context.Context, list []entry, smaller func(entry) (entry, error)) error {
	_, err := w.produce(ctx, func() kafka.RecordReader { return readerOf(list) })
	if !errors.Is(err, kafka.MessageSizeTooLarge) {
		return err
	}
	if half := len(list) / 2; half > 0 {
		if err := w.writeAll(ctx, list[:half], smaller); err != nil {
			return err
		}
		return w.writeAll(ctx, list[half:], smaller)
	}
	e, err := smaller(list[0])
	if err != nil {
		return err
	}
	_, err = w.produce(ctx, func() kafka.RecordReader { return readerOf([]entry{e}) })
	return err
}

func readerOf(list []entry) kafka.RecordReader {
	records := make([]kafka.Record, len(list))
	for i, e := range list {
		records[i] = kafka.Record{Time: time.Now(), Key: kafka.NewBytes(e.key), Value: kafka.NewBytes(e.value), Headers: e.headers}
	}
	return kafka.NewRecordReader(records...)
}

// produce sends a batch, again as long as that may help.
func (w *writer) produce(ctx context.Context, records func() kafka.RecordReader) (int64, error) {
	offset, err := backoff.Retry(ctx, func() (int64, error) {
		answer, err := w.client.Produce(ctx, &kafka.ProduceRequest{
			Topic: w.topic, Partition: w.partition, RequiredAcks: kafka.RequireAll, Compression: w.limits.codec, Records: records(),
		})
		if err == nil {
			err = answer.Error
		}
		if code, is := errors.AsType[kafka.Error](err); is && !code.Temporary() {
			err = backoff.Permanent(err)
		}
		if err != nil {
			return 0, err
		}
		return answer.BaseOffset, nil
	}, backoff.WithMaxElapsedTime(writePatience))
	if err != nil {
		return 0, fmt.Errorf("write to partition %d of the topic %s: %w", w.partition, w.topic, err)
	}
	return offset, nil
}
