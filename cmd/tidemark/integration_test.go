//go:build integration

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tidemark/cmd/tidemark/internal/hospital"
)

// brokers is a real Kafka; make integration starts one.
func brokers(t *testing.T) string {
	t.Helper()
	b := os.Getenv("KAFKA_BROKERS")
	if b == "" {
		t.Fatal("KAFKA_BROKERS is not set: run make integration")
	}
	return b
}

// createTopic makes a topic that no other run has used, until the test ends.
// It keeps its records: brokers count retention from a record's timestamp, and
// a history begins a year ago.
func createTopic(t *testing.T, brokers string) string {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic = fmt.Sprintf("fhir-%d", time.Now().UnixNano())
	topic.NumPartitions, topic.ReplicationFactor = 4, 1
	forever := "-1"
	topic.Configs = []kmsg.CreateTopicsRequestTopicConfig{{Name: "retention.ms", Value: &forever}}
	request := kmsg.NewPtrCreateTopicsRequest()
	request.Topics = append(request.Topics, topic)
	answer, err := request.RequestWith(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(answer.Topics[0].ErrorCode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deleteTopic(t, client, topic.Topic) })
	return topic.Topic
}

func deleteTopic(t *testing.T, client *kgo.Client, topic string) {
	t.Helper()
	request := kmsg.NewPtrDeleteTopicsRequest()
	named := kmsg.NewDeleteTopicsRequestTopic()
	named.Topic = &topic
	request.Topics, request.TopicNames = append(request.Topics, named), append(request.TopicNames, topic)
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the test's has ended
	defer cancel()
	if _, err := request.RequestWith(ctx, client); err != nil {
		t.Error(err)
	}
}

// What the kind of broker that people have says of sizes is what we compute.
func TestIntegrationRecordSize(t *testing.T) {
	recordSizes(t, brokers(t))
}

// The chain stays whole through aborted transactions, a restart of the broker
// and a kill of the server.
func TestIntegrationChain(t *testing.T) {
	brokers := brokers(t)
	r := newRig(t, brokers, createTopic(t, brokers), nil)
	r.write(r.hospital.History)
	r.ledger.Start(time.Now())
	r.start()
	r.catchUp()

	abort(t, r, brokers, 50)
	r.live(200)
	abort(t, r, brokers, 50)
	r.catchUp()

	restartBroker(t)
	r.live(200) // the producer waits for the broker
	r.catchUp()

	r.live(200)
	r.kill()
	r.live(100)
	r.start()
	r.catchUp()
	r.prove()
	if err := r.stop(); err != nil {
		t.Errorf("SIGTERM: the server ended with %v", err)
	}
	if got, code := ends(t, "check", r.store()); code != 0 {
		t.Errorf("check: exit %d: %s", code, got)
	}
}

// abort writes n changes in a transaction that is taken back. They come from
// another hospital: if one of them is ever delivered, nobody knows it.
func abort(t *testing.T, r *rig, brokers string, n int) {
	t.Helper()
	producer, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.TransactionalID(r.topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	if err := producer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	other := hospital.New(hospital.Options{Seed: 8, Patients: 5, Years: 1})
	for rec := range other.History {
		producer.Produce(t.Context(), r.record(rec), nil)
		if n--; n == 0 {
			break
		}
	}
	if err := producer.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := producer.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
}

func restartBroker(t *testing.T) {
	t.Helper()
	output, err := exec.Command("../../deploy/dev/kafka/kafka", "restart").CombinedOutput()
	if err != nil || !strings.Contains(string(output), "ready") {
		t.Fatalf("restart the broker: %v\n%s", err, output)
	}
}
