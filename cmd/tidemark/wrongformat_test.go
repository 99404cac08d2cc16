package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
)

// A topic of resources that is read as Bundles is held after stop_after records, and nothing
// is promised: the log names topic, reason and the format that it is in. Read in that after
// a restart, everything is exported, and no dead letter is left.
func TestWrongFormat(t *testing.T) {
	const resources = 10_000
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "fhir-changes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	r := newRig(t, cluster.ListenAddrs()[0], "fhir-changes", nil, quick...)
	for i := range resources {
		id := fmt.Sprintf("p%d", i)
		r.producer.Produce(t.Context(), &kgo.Record{
			Topic: "fhir-changes", Partition: int32(i % 3), Key: []byte("Patient/" + id), Value: fmt.Appendf(nil, `{"resourceType":"Patient","id":"%s"}`, id),
		}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := r.producer.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}

	for n := range 2 { // a restart does not help
		r.launch("--set", "topics=[{name: fhir-changes, format: bundle}]")
		r.until("the topic is held", func() bool {
			log, err := os.ReadFile(r.log)
			return err == nil && strings.Count(string(log), `"msg":"topic is held"`) > n
		})
		contains(t, says(t, "topic", "list", "--store", r.store()), `topic fhir-changes: 100 records in a row cannot be decoded as format "bundle"`,
			"value is a resource and no Bundle", "they look like format: resource (20 of the last 20)", "100 dead letters", "exports reach to none")
		contains(t, r.said(), "topic is held", "they look like format: resource")
		if got := r.get("/readyz"); !strings.HasPrefix(got, "503") {
			t.Errorf("/readyz: %s", got)
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}

	written := time.Now()
	r.start()
	r.until("everything is exported", func() bool {
		m := r.whole()
		n := int64(0)
		for _, f := range m.Output {
			n += *f.Count
		}
		return n == resources && len(m.Error) == 0 && m.TransactionTime.After(written)
	})
	if got := says(t, "deadletter", "list", r.store()); got != "no dead letters\n" {
		t.Error(got)
	}
	if got := says(t, "topic", "list", "--store", r.store()); !regexp.MustCompile(`format resource, 0 dead letters`).MatchString(got) {
		t.Error(got)
	}
}

// whole exports everything, and downloads nothing of it.
func (r *rig) whole() *bulkclient.Manifest {
	r.t.Helper()
	job, err := r.client.Start(r.t.Context(), "$export", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := job.Wait(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := job.Delete(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return m
}
