package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
)

// TestHAPI: what a HAPI server wrote, as Debezium captured it, is exported as HAPI shows it,
// and increments tell what changed. The server is killed while it has versions whose ids and
// tags have not come.
func TestHAPI(t *testing.T) {
	t.Parallel() // it mostly waits
	const tables = "hapi.public."
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1,
		tables+"hfj_resource", tables+"hfj_res_ver", tables+"hfj_res_tag", tables+"hfj_history_tag", tables+"hfj_tag_def", "hapi.transaction"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	r := newRig(t, cluster.ListenAddrs()[0], "unused", nil, "--set", `topics=[{pattern: "^hapi\\..*", format: debezium, preset: hapi}]`)
	produce := func(records []*kgo.Record) {
		t.Helper()
		if err := r.producer.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	records := hapiRecords(t)
	second := slices.IndexFunc(records, func(rec *kgo.Record) bool { return strings.Contains(string(rec.Value), `"BEGIN","id":"5793:`) })
	if second < 0 {
		t.Fatal("there is no third transaction")
	}
	var late, early []*kgo.Record
	for _, rec := range append(hapiDefinitions(t), records[:second]...) {
		if rec.Topic == tables+"hfj_resource" || rec.Topic == tables+"hfj_res_tag" {
			late = append(late, rec)
			continue
		}
		early = append(early, rec)
	}
	produce(early)
	r.launch() // it is not ready: what it has read waits
	read := regexp.MustCompile(`tidemark_pipeline_records_total\{[^}]*hfj_res_ver[^}]*\} 4\b`)
	r.until("the versions are read", func() bool {
		answer, err := http.Get(strings.TrimSuffix(r.client.Base, "/fhir") + "/metrics")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return err == nil && read.Match(text)
	})
	r.kill()
	produce(late)
	r.start()
	tagged := `"meta":{"versionId":"2","lastUpdated":"2026-11-22T21:01:05.814Z","source":"http://src.example/a#0OxorhlnuY2YwVUK",` +
		`"profile":["http://hl7.org/fhir/us/core/StructureDefinition/us-core-patient"],` +
		`"security":[{"system":"http://terminology.hl7.org/CodeSystem/v3-Confidentiality","code":"R","display":"restricted"}],"tag":[{"system":"urn:t","code":"one"}]}`
	var since time.Time
	r.until("the Patient is exported", func() bool {
		var output []string
		output, _, since = r.everything(time.Time{})
		return len(output) == 1 && strings.HasPrefix(output[0], `{"resourceType":"Patient","id":"kdec3-1",`+tagged+`,"active":true,"name":[{"family":"Müller"`)
	})
	produce(records[second:])
	want := []string{
		`Basic/kdec3-big {"versionId":"1","lastUpdated":"2026-11-22T21:01:08.258Z","source":"#4X7ejPwFbmBcShWe","tag":[{"system":"urn:t","code":"two"}]}`,
		`Observation/kdec3-o1 {"versionId":"1","lastUpdated":"2026-11-22T21:01:07.338Z","source":"#qbz42KYJmRkUGXJ6"}`,
		`Patient/c53d441c-8459-4786-87b7-1f5b442908b1 {"versionId":"1","lastUpdated":"2026-11-22T21:01:07.338Z","source":"#qbz42KYJmRkUGXJ6"}`,
	}
	var output, deleted []string
	r.until("the rest is exported", func() bool {
		output, deleted, _ = r.everything(since)
		return len(output) == len(want) && strings.Contains(strings.Join(output, ""), `"code":"two"`)
	})
	var got []string
	for _, line := range output {
		var is struct {
			ResourceType, ID string
			Meta             json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &is); err != nil {
			t.Fatal(err)
		}
		got = append(got, is.ResourceType+"/"+is.ID+" "+string(is.Meta))
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(deleted, []string{"Patient/kdec3-1"}) {
		t.Errorf("deleted are %v", deleted)
	}
}

// everything is what one export gives.
func (r *rig) everything(since time.Time) (output, deleted []string, at time.Time) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	params := url.Values{}
	if !since.IsZero() {
		params.Set("_since", since.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	job, err := r.client.Start(ctx, "$export", params)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := job.Wait(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range m.Output {
		if err := r.lines(ctx, f, func(line []byte) error { output = append(output, string(line)); return nil }); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, f := range m.Deleted {
		err := r.lines(ctx, f, func(line []byte) error {
			keys, err := bulkclient.Deletions(line)
			deleted = append(deleted, keys...)
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	if err := job.Delete(ctx); err != nil {
		r.t.Fatal(err)
	}
	return output, deleted, m.TransactionTime
}

// hapiRecords are the messages that were recorded.
func hapiRecords(t *testing.T) (records []*kgo.Record) {
	t.Helper()
	f, err := os.Open("../../testdata/hapi/debezium.ndjson.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		var m struct {
			Topic      string
			Key, Value json.RawMessage
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		records = append(records, &kgo.Record{Topic: m.Topic, Key: m.Key, Value: m.Value})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return records
}

// hapiDefinitions are the definitions of tags as a snapshot of their table tells them.
func hapiDefinitions(t *testing.T) (records []*kgo.Record) {
	t.Helper()
	text, err := os.ReadFile("../../testdata/hapi/hfj_tag_def.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []json.RawMessage
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		records = append(records, &kgo.Record{
			Topic: "hapi.public.hfj_tag_def", Value: []byte(`{"after":` + string(row) + `,"source":{"table":"hfj_tag_def","lsn":1,"snapshot":"true"},"op":"r"}`),
		})
	}
	return records
}
