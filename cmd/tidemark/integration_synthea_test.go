//go:build integration

package main

import (
	"cmp"
	"compress/gzip"
	"context"
	"fmt"
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
		if err := readSynthea(&in, path); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	if len(paths) == 0 {
		t.Logf("no *.ndjson.gz in %s (TIDEMARK_SYNTHEA): our own generator's resources instead", dir)
		in.generate(hospital.Options{Seed: 3, Patients: 150})
	}
	return in
}

func readSynthea(in *resources, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := gzip.NewReader(file)
	if err != nil {
		return err
	}
	return in.read(text)
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
	d := newDelivery(since)
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
		if err := r.lines(ctx, f, d.remove); err != nil {
			return err
		}
	}
	return nil
}
