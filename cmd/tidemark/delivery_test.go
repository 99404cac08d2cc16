//go:build integration || conformance || chain

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/hospital"
)

// Resources are what a topic shall hold, by Type/id.
type resources struct {
	keys   []string // in order
	bodies map[string][]byte
}

// read adds NDJSON.
func (in *resources) read(text io.Reader) error {
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		key, err := keyOf(lines.Bytes())
		if err != nil {
			return err
		}
		in.add(key, bytes.Clone(lines.Bytes()))
	}
	return lines.Err()
}

// generate adds what a hospital has whose sources write no versions, as
// Synthea's.
func (in *resources) generate(o hospital.Options) {
	o.Bare, o.Past = 1, &hospital.Habits{}
	for rec := range hospital.New(o).History {
		in.add(string(rec.Key), rec.Value)
	}
}

// keyOf is the Type/id of a resource.
func keyOf(body []byte) (string, error) {
	var name struct{ ResourceType, ID string }
	if err := json.Unmarshal(body, &name); err != nil {
		return "", err
	}
	return name.ResourceType + "/" + name.ID, nil
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

func newDelivery(since time.Time) *delivery {
	return &delivery{since: since, output: map[string][]byte{}, deleted: map[string]bool{}}
}

// enter takes a line of an output file.
func (d *delivery) enter(kind string, line []byte) error {
	key, err := keyOf(line)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(key, kind+"/") {
		d.faults = append(d.faults, fmt.Errorf("%s is in a file of %s", key, kind))
	}
	if d.output[key] != nil {
		d.faults = append(d.faults, fmt.Errorf("%s comes twice", key))
	}
	d.output[key] = bytes.Clone(line)
	return nil
}

// remove takes a line of a file of deletions.
func (d *delivery) remove(line []byte) error {
	keys, err := bulkclient.Deletions(line)
	for _, key := range keys {
		if d.deleted[key] {
			d.faults = append(d.faults, fmt.Errorf("%s is deleted twice", key))
		}
		d.deleted[key] = true
	}
	return err
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
