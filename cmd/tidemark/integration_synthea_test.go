//go:build integration

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/hospital"
)

// The way of real data through a real Kafka: what goes in comes out, resource
// by resource and byte for byte, and an increment is exactly what has changed.
func TestIntegrationSynthea(t *testing.T) {
	input := inputResources(t)
	brokers := brokers(t)
	topic := createTopic(t, brokers)
	r := newRig(t, brokers, topic, []kgo.Opt{kgo.MetadataMinAge(50 * time.Millisecond)})

	half := len(input.keys) / 2
	begin := time.Now()
	r.send(slices.Values(input.records(topic, input.keys[:half]))) // is there before the server
	r.start()
	t.Logf("%d resources, half of them read %v after they were written", len(input.keys), time.Since(begin).Round(time.Millisecond))
	acked := r.send(slices.Values(input.records(topic, input.keys[half:]))) // comes while it runs
	full := r.delivery(time.Time{}, acked)
	full.equals(t, "the whole export", input.bodies, nil)
	t.Logf("exported %v after the first was written", time.Since(begin).Round(time.Millisecond))

	changed, gone, records := changes(topic, input)
	acked = r.send(slices.Values(records))
	increment := r.delivery(full.time, acked)
	increment.equals(t, "the increment", changed, gone)
	t.Logf("the increment of %d records: %d changed, %d deleted", len(records), len(changed), len(gone))

	now := maps.Clone(input.bodies)
	maps.Copy(now, changed)
	records = nil
	for key := range gone {
		delete(now, key)
		records = append(records, record(topic, key, nil))
	}
	records = append(records, resources{bodies: now}.records(topic, slices.Collect(maps.Keys(now)))...)
	acked = r.send(slices.Values(records)) // everything again as it is
	r.delivery(increment.time, acked).equals(t, "the increment after a snapshot of the source", nil, nil)
	r.delivery(time.Time{}, acked).equals(t, "the whole export at the end", now, nil)
	if err := r.stop(); err != nil {
		t.Errorf("SIGTERM: the server ended with %v", err)
	}
	if got, code := ends(t, "check", r.store()); code != 0 {
		t.Errorf("check: exit %d: %s", code, got)
	}
}

// Resources are what a topic shall hold, by Type/id.
type resources struct {
	keys   []string // in order
	bodies map[string][]byte
}

// inputResources reads the Synthea set, or makes one of the like where there is
// none.
func inputResources(t *testing.T) resources {
	t.Helper()
	dir := cmp.Or(os.Getenv("TIDEMARK_SYNTHEA"), "../../../shared/data/synthea")
	t.Setenv("TIDEMARK_SYNTHEA", "")
	os.Unsetenv("TIDEMARK_SYNTHEA") // the server would take it for a setting of its own
	paths, err := filepath.Glob(filepath.Join(dir, "*.ndjson.gz"))
	if err != nil {
		t.Fatal(err)
	}
	in := resources{bodies: map[string][]byte{}}
	for _, path := range paths {
		in.read(t, path)
	}
	if len(paths) == 0 {
		t.Logf("no *.ndjson.gz in %s (TIDEMARK_SYNTHEA): our own generator's resources instead", dir)
		in.generate()
	}
	return in
}

func (in *resources) read(t *testing.T, path string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	text, err := gzip.NewReader(file)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var name struct{ ResourceType, ID string }
		if err := json.Unmarshal(lines.Bytes(), &name); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		in.add(name.ResourceType+"/"+name.ID, bytes.Clone(lines.Bytes()))
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// generate makes resources of sources that write no versions, as Synthea's.
func (in *resources) generate() {
	for rec := range hospital.New(hospital.Options{Seed: 3, Patients: 150, Bare: 1, Past: &hospital.Habits{}}).History {
		in.add(string(rec.Key), rec.Value)
	}
}

func (in *resources) add(key string, body []byte) {
	if _, ok := in.bodies[key]; !ok {
		in.keys = append(in.keys, key)
	}
	in.bodies[key] = body
}

func (in resources) records(topic string, keys []string) (records []*kgo.Record) {
	for _, key := range keys {
		records = append(records, record(topic, key, in.bodies[key]))
	}
	return records
}

// record is a record of a topic with four partitions.
func record(topic, key string, value []byte) *kgo.Record {
	h := fnv.New32a()
	h.Write([]byte(key))
	return &kgo.Record{Topic: topic, Key: []byte(key), Value: value, Partition: int32(h.Sum32() % 4)}
}

// changes makes records that change every 50th resource, some of them twice,
// and delete every 97th, by a null or by a header; a few are deleted and made
// anew, and many are only sent again, which is no change.
func changes(topic string, in resources) (changed map[string][]byte, gone map[string]bool, records []*kgo.Record) {
	changed, gone = map[string][]byte{}, map[string]bool{}
	for i, key := range in.keys {
		body := in.bodies[key]
		edit := func(what string) {
			changed[key] = fmt.Appendf(nil, `%s,"implicitRules":"urn:edit:%s"}`, body[:len(body)-1], what)
			records = append(records, record(topic, key, changed[key]))
		}
		remove := record(topic, key, nil)
		if i%2 == 1 {
			remove.Value, remove.Headers = body, []kgo.RecordHeader{{Key: "fhir-op", Value: []byte("delete")}}
		}
		if i%50 == 0 {
			edit("first")
		}
		if i%500 == 0 {
			edit("second")
		}
		switch {
		case i%97 == 0: // 4850 was changed before
			records = append(records, remove)
			delete(changed, key)
			gone[key] = true
		case i%1009 == 1:
			records = append(records, remove)
			edit("anew")
		case i%61 == 2 && changed[key] == nil:
			records = append(records, record(topic, key, body))
		}
	}
	return changed, gone, records
}

// send produces records and returns a time at which the broker had all.
func (r *rig) send(records func(func(*kgo.Record) bool)) time.Time {
	r.t.Helper()
	failed := make(chan error, 1)
	for rec := range records {
		r.producer.Produce(r.t.Context(), rec, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- err:
				default: // one is enough
				}
			}
		})
	}
	if err := r.producer.Flush(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	select {
	case err := <-failed:
		r.t.Fatal(err)
	default:
	}
	return time.Now()
}

// A delivery is an export as a client has it in the end.
type delivery struct {
	since, time time.Time
	output      map[string][]byte
	deleted     map[string]bool
	faults      []error
}

// delivery exports everything, or what has changed since a time, as soon as
// the server answers for all that was there at another.
func (r *rig) delivery(since, acked time.Time) *delivery {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*patience)
	defer cancel()
	params := url.Values{}
	if !since.IsZero() {
		params.Set("_since", since.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	d := &delivery{since: since, output: map[string][]byte{}, deleted: map[string]bool{}}
	r.until("an export holds everything that was acknowledged", func() bool {
		job, err := r.client.Start(ctx, "$export", params)
		if err != nil {
			r.t.Fatal(err)
		}
		m, err := job.Wait(ctx)
		if err != nil {
			r.t.Fatal(err)
		}
		covers := m.TransactionTime.After(acked)
		if covers {
			d.time = m.TransactionTime
			if err := d.download(ctx, r, m); err != nil {
				r.t.Fatal(err)
			}
		}
		if err := job.Delete(ctx); err != nil {
			r.t.Fatal(err)
		}
		return covers
	})
	return d
}

func (d *delivery) download(ctx context.Context, r *rig, m *bulkclient.Manifest) error {
	if len(m.Error) > 0 {
		d.faults = append(d.faults, fmt.Errorf("the manifest lists %d files of errors", len(m.Error)))
	}
	for _, f := range m.Output {
		if err := r.lines(ctx, f, func(line []byte) error { return d.enter(f.Type, line) }); err != nil {
			return err
		}
	}
	for _, f := range m.Deleted {
		err := r.lines(ctx, f, func(line []byte) error {
			keys, err := bulkclient.Deletions(line)
			for _, key := range keys {
				if d.deleted[key] {
					d.faults = append(d.faults, fmt.Errorf("%s is deleted twice", key))
				}
				d.deleted[key] = true
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *delivery) enter(kind string, line []byte) error {
	var name struct{ ResourceType, ID string }
	if err := json.Unmarshal(line, &name); err != nil {
		return err
	}
	key := name.ResourceType + "/" + name.ID
	if name.ResourceType != kind {
		d.faults = append(d.faults, fmt.Errorf("%s is in a file of %s", key, kind))
	}
	if d.output[key] != nil {
		d.faults = append(d.faults, fmt.Errorf("%s comes twice", key))
	}
	d.output[key] = bytes.Clone(line)
	return nil
}

// equals fails the test unless the export holds exactly these resources and
// deletions.
func (d *delivery) equals(t *testing.T, what string, want map[string][]byte, gone map[string]bool) {
	t.Helper()
	faults := d.faults
	for key, body := range want {
		if line := d.output[key]; line == nil {
			faults = append(faults, fmt.Errorf("%s is missing", key))
		} else if err := d.same(line, body); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", key, err))
		}
	}
	for key := range d.output {
		if want[key] == nil {
			faults = append(faults, fmt.Errorf("%s is there", key))
		}
	}
	for key := range gone {
		if !d.deleted[key] {
			faults = append(faults, fmt.Errorf("%s is not deleted", key))
		}
	}
	for key := range d.deleted {
		if !gone[key] {
			faults = append(faults, fmt.Errorf("%s is deleted", key))
		}
	}
	if len(faults) > 0 {
		t.Errorf("%s: %d of %d resources and %d deletions are wrong:\n%v", what, len(faults), len(want), len(gone),
			errors.Join(faults[:min(10, len(faults))]...))
	}
}

// same compares a line with the body that was sent: they differ by the injected
// meta.versionId and meta.lastUpdated, and by no other byte. What was injected
// is a time of this export.
func (d *delivery) same(line, body []byte) error {
	var resource struct {
		Meta struct {
			VersionID, LastUpdated string
		}
	}
	if err := json.Unmarshal(line, &resource); err != nil {
		return err
	}
	at, err := time.Parse("2006-01-02T15:04:05.000Z", resource.Meta.LastUpdated)
	if err != nil {
		return err
	}
	if !at.After(d.since) || at.After(d.time) {
		return fmt.Errorf("lastUpdated %s lies outside (%v, %v]", resource.Meta.LastUpdated, d.since, d.time)
	}
	injected := fmt.Sprintf(`"versionId":"%s","lastUpdated":"%s"`, resource.Meta.VersionID, resource.Meta.LastUpdated)
	for _, inserted := range []string{`,"meta":{` + injected + `}`, injected + `,`} {
		if bytes.Equal(bytes.Replace(line, []byte(inserted), nil, 1), body) {
			return nil
		}
	}
	return errors.New("differs by more than the injected meta")
}
