package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestValidateFile: a file of records is shown as what it is, whichever way it was written.
func TestValidateFile(t *testing.T) {
	for _, c := range []struct {
		name, text string
		args       []string
		want       []string
		fails      bool
	}{
		{
			"values alone", `{"resourceType":"Patient","id":"p-1","meta":{"versionId":"3"}}` + "\n\n" + `{"resourceType":"Patient","id":"p-2"}` + "\n", nil,
			[]string{"2 records, read as format: resource: 2 resources, 0 deletions, 0 say nothing, 0 refused", "Patient/p-1", "version 3", "neither version nor instant"},
			false,
		},
		{
			"what kcat writes", `{"topic":"t","partition":2,"offset":7,"tstype":"create","ts":1767323045900,"headers":["fhir-op","delete"],"key":"Patient/p-1","payload":"x"}` + "\n", nil,
			[]string{"format: resource", "2/7", "deletion"},
			false,
		},
		{
			"rows of a table", `{"topic":"m","key":{"id":"p-1"},"value":{"after":{"id":"p-1","content":"{\"resourceType\":\"Patient\",\"id\":\"p-1\"}","lastUpdated":"2026-01-02T03:04:05Z","deleted":false},"source":{"table":"Patient"},"op":"c"}}` + "\n", nil,
			[]string{"format: debezium, preset: medplum", "updated 2026-01-02T03:04:05.000Z"},
			false,
		},
		{
			"another format than they have", `{"resourceType":"Bundle","type":"transaction","entry":[{"resource":{"resourceType":"Patient","id":"p-1"},"request":{"method":"PUT","url":"Patient/p-1"}}]}` + "\n",
			[]string{"--format", "hapi-message", "--bodies"},
			[]string{"refused", "They look like:\n  format: bundle   (1 of 1 records are changes)", "1 of 1 records are refused"},
			true,
		},
		{"resources", `{"resourceType":"Patient","id":"p-1"}` + "\n", []string{"--bodies"}, []string{`{"resourceType":"Patient","id":"p-1"}`}, false},
		{
			"more Bundles than resources", `{"resourceType":"Patient","id":"p-1"}` + "\n" + strings.Repeat(
				`{"resourceType":"Bundle","type":"transaction","entry":[{"resource":{"resourceType":"Patient","id":"p-2"},"request":{"method":"PUT","url":"Patient/p-2"}}]}`+"\n", 2), nil,
			[]string{"3 records, read as format: bundle: 2 resources", "the format is probably resource", "format: resource   (1 of 3 records are changes)"},
			true,
		},
		{
			"parts of HAPI's resources", `{"topic":"hapi.public.hfj_resource","key":{"res_id":1},"value":{"after":{"res_id":1,"res_type":"Patient","fhir_id":"p-1","res_ver":1},"source":{"table":"hfj_resource","lsn":1},"op":"c"}}` + "\n" +
				`{"topic":"hapi.public.hfj_res_ver","key":{"pid":2},"value":{"after":{"pid":2,"res_id":1,"res_ver":1,"res_type":"Patient","res_encoding":"JSON","res_text_vc":"{\"resourceType\":\"Patient\"}","res_updated":1767323045123456,"has_tags":false},"source":{"table":"hfj_res_ver","lsn":2},"op":"c"}}` + "\n", nil,
			[]string{"format: debezium, preset: hapi: 1 resources, 0 deletions, 1 wait for rows of other tables, 0 say nothing", "0/1  part", "0/2  resource  Patient/p-1  version 1"},
			false,
		},
		{
			"resources that have what records have", `{"resourceType":"Communication","id":"c-1","topic":{"text":"x"},"payload":[{"contentString":"y"}]}` + "\n" +
				`{"resourceType":"Library","id":"l-1","topic":[{"text":"x"}],"status":"active"}` + "\n", nil,
			[]string{"2 records, read as format: resource: 2 resources", "Communication/c-1", "Library/l-1"},
			false,
		},
		{
			"bytes, as deadletter export writes them, behind a mark of UTF-8", "\xef\xbb\xbf" + `{"keyBase64":"UGF0aWVudC9wLTE=","valueBase64":"eyJyZXNvdXJjZVR5cGUiOiJQYXRpZW50IiwiaWQiOiJwLTEifQ=="}` + "\n", nil,
			[]string{"format: resource: 1 resources", "Patient/p-1"},
			false,
		},
		{
			"what is no record", `{"topic":["t"],"key":"Patient/p-1","value":{}}` + "\n", nil,
			[]string{"records.ndjson:1: is not a record: topic is text"},
			true,
		},
		{
			"an outbox whose keys and values are resources'", `{"topic":"outbox.event.Patient","key":"Patient/p-1","headers":{"eventType":"delete"},"value":{"resourceType":"Patient","id":"p-1"}}` + "\n", nil,
			[]string{"format: outbox: 0 resources, 1 deletions"},
			false,
		},
		{
			"events whose attributes are headers", `{"key":"Patient/p-1","headers":{"ce_specversion":"1.0","ce_type":"x.deleted"},"value":{"resourceType":"Patient","id":"p-1"}}` + "\n" +
				`{"headers":{"ce_specversion":"1.0","ce_type":"x.deleted","ce_subject":"Patient/p-2"},"value":null}` + "\n", nil,
			[]string{"format: cloudevents: 0 resources, 2 deletions"},
			false,
		},
		{
			"Bundles that have ids", `{"resourceType":"Bundle","id":"b","type":"collection","entry":[{"resource":{"resourceType":"Patient","id":"p-1"}}]}` + "\n", nil,
			[]string{"format: bundle: 1 resources", "Patient/p-1"},
			false,
		},
		{
			"of a topic that is configured", `{"topic":"ehr.public.docs","key":{"nr":"p-1"},"value":{"nr":"p-1","doc":{"resourceType":"Patient","id":"p-1"}}}` + "\n",
			[]string{"--set", "topics=[{name: ehr.public.docs, format: debezium, tables: [{id: nr, body: doc}]}]"},
			[]string{"format: debezium: 1 resources", "Patient/p-1", "They look like:\n  format: debezium   (1 of 1 records are changes)"},
			false,
		},
		{
			"of a topic that is configured, whose format is named as well", `{"topic":"ehr.public.docs","key":{"nr":"p-1"},"value":{"nr":"p-1","doc":{"resourceType":"Patient","id":"p-1"}}}` + "\n",
			[]string{"--format", "debezium", "--set", "topics=[{name: ehr.public.docs, format: debezium, tables: [{id: nr, body: doc}]}]"},
			[]string{"format: debezium: 1 resources", "Patient/p-1"},
			false,
		},
		{
			"rows of a table that nobody knows", `{"key":{"nr":"p-1"},"value":{"before":null,"after":{"nr":"p-1","doc":"{}"},"source":{"table":"docs"},"op":"c"}}` + "\n", nil,
			[]string{"rows from Debezium, of tables that no preset knows: describe them in topics of a configuration", "--config FILE"},
			true,
		},
		{
			"rows of a table that nobody knows, with their schema", `{"schema":{},"payload":{"before":null,"after":{"nr":"p-1","doc":"{}"},"source":{"table":"docs"},"op":"c"}}` + "\n", nil,
			[]string{"rows from Debezium, of tables that no preset knows"},
			true,
		},
		{
			"rows of a table that nobody knows, by their format", `{"key":{"nr":"p-1"},"value":{"after":{"nr":"p-1"},"source":{"table":"docs"},"op":"c"}}` + "\n",
			[]string{"--format", "debezium"},
			[]string{"give --preset (aidbox, hapi", "else describe them in topics of a configuration", "--config FILE"},
			true,
		},
		{"a preset of another format", `{"resourceType":"Patient","id":"p-1"}` + "\n", []string{"--format", "bundle", "--preset", "lfh"}, []string{"--preset: is for the formats debezium and avro"}, true},
		{"Avro, and no registry", `{"key":"p-1","valueBase64":"AAAAAAFmeyJy"}` + "\n", nil, []string{"say where the registry is (schema_registry.url)"}, true},
		{
			"events without their resources", `{"messageType":["urn:message:Firely.Server.Contracts.Messages.V1:ResourcesChangedLightEvent"],"message":{"changes":[{"reference":{"resourceType":"Patient","resourceId":"p-1","version":"2"},"changeType":"update"}]}}` + "\n", nil,
			[]string{"bundle        value is no Bundle", "firely        change 0: only the id of a resource that has changed, without the resource", "none is understood in any format"},
			true,
		},
		{
			"heartbeats alone", `{"resourceType":"Bundle","type":"history","entry":[{"resource":{"resourceType":"SubscriptionStatus","type":"heartbeat"}}]}` + "\n", nil,
			[]string{"notification  it says nothing, as heartbeats do", "none is understood in any format"},
			true,
		},
		{"nothing of FHIR", `{"a":1}` + "\n", nil, []string{"none is understood in any format"}, true},
		{"no JSON", "a\n", nil, []string{"records.ndjson:1: is no JSON object"}, true},
		{"no format", `{"a":1}` + "\n", []string{"--format", "csv"}, []string{`--format: "csv" is none of avro, bundle`}, true},
		{"nothing", "\n", nil, []string{"there are no records in ", "a JSON object a line"}, true},
		{"a resource over several lines", "{\"resourceType\": \"Patient\",\n\"id\": \"p-1\"}\n", nil, []string{"records.ndjson:1: is no JSON object: each line is to be a whole one"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "records.ndjson")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err := run(context.Background(), append([]string{"validate", "--file", file}, c.args...), &out)
			if (err != nil) != c.fails {
				t.Errorf("%v", err)
			}
			said := out.String() + fmt.Sprint(err)
			for _, want := range c.want {
				if !strings.Contains(said, want) {
					t.Errorf("%q is not in:\n%s", want, said)
				}
			}
			if strings.Contains(said, `"resourceType"`) && !strings.Contains(strings.Join(c.args, " "), "--bodies") {
				t.Errorf("resources are shown that nobody asked for:\n%s", said)
			}
		})
	}
}

// TestValidateTopic: of a topic the newest records of each partition are read, and nothing
// is stored.
func TestValidateTopic(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "empty"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	brokers := strings.Join(cluster.ListenAddrs(), ",")
	makeTopic(t, brokers, "changes", 2, map[string]string{"cleanup.policy": "compact"}) // whoever reads it was never away
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var least atomic.Int64 // offset that is asked for
	least.Store(math.MaxInt64)
	cluster.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		for _, topic := range req.(*kmsg.FetchRequest).Topics {
			for _, p := range topic.Partitions {
				least.Store(min(least.Load(), p.FetchOffset))
			}
		}
		return nil, nil, false
	})
	for i := range 30 {
		value := fmt.Sprintf(`{"resourceType":"Patient","id":"p-%d"}`, i)
		rec := &kgo.Record{Topic: "changes", Partition: int32(i % 2), Key: fmt.Appendf(nil, "Patient/p-%d", i), Value: []byte(value)}
		if err := client.ProduceSync(t.Context(), rec).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(t.TempDir())
	validate := func(topic string, more ...string) string {
		var out bytes.Buffer
		args := append([]string{"validate", "--set", "kafka.brokers=" + brokers, "--topic", topic, "--records", "3", "--wait", "5s"}, more...)
		err := run(t.Context(), args, &out)
		return out.String() + fmt.Sprint(err)
	}
	said := validate("changes")
	if !strings.Contains(said, "6 records, read as format: resource: 6 resources") || !strings.Contains(said, "Patient/p-29") || strings.Contains(said, "Patient/p-23") {
		t.Errorf("the newest three of two partitions:\n%s", said)
	}
	if got := least.Load(); got != 12 {
		t.Errorf("it was read from offset %d on", got)
	}
	if said := validate("changes", "--format", "notification"); !strings.Contains(said, "6 of 6 records are refused") {
		t.Errorf("another format:\n%s", said)
	}
	if said := validate("absent"); !strings.Contains(said, "the brokers have no topic absent") {
		t.Errorf("a topic that is not there:\n%s", said)
	}
	if said := validate("empty"); !strings.Contains(said, "there are no records") {
		t.Errorf("an empty topic:\n%s", said)
	}
	away := freePort(t)
	if said := validate("changes", "--set", "kafka.brokers="+away, "--wait", "1s"); !strings.Contains(said, "cannot be asked: ") || !strings.Contains(said, "refused") || !strings.Contains(said, "are they up") {
		t.Errorf("brokers that are away:\n%s", said)
	}
	if files, err := os.ReadDir("."); err != nil || len(files) > 0 {
		t.Errorf("something was stored: %v, %v", files, err)
	}
}
