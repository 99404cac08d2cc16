package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/pipeline/decode"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A trapChain is a store that is fed with records, and a client that asks for one increment after
// the other.
type trapChain struct {
	t       *testing.T
	db      *store.DB
	take    func(decode.Record) ([]store.Change, []store.Note, error)
	fetched map[string]int64
	since   fhir.Instant
	jobs    int
}

func newTrapChain(t *testing.T, format string, o decode.Options) *trapChain {
	t.Helper()
	db, err := store.Open("store", store.Options{FS: vfs.NewMem(), MergeOff: true, Cache: 1 << 20, Allowance: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &trapChain{t: t, db: db, fetched: map[string]int64{}, since: fhir.None}
	d, err := decode.New(format, o)
	if err != nil {
		t.Fatal(err)
	}
	c.take = func(rec decode.Record) ([]store.Change, []store.Note, error) {
		changes, err := d.Decode(rec)
		return changes, nil, err
	}
	if joined, is := d.(decode.Joined); is {
		j := New(joined, db, db.Now, db.ReachedBeside)
		c.take = func(rec decode.Record) ([]store.Change, []store.Note, error) {
			taken, err := j.Take(rec)
			j.Applied()
			db.Wait(j.Waits())
			return taken.Changes, taken.Notes, err
		}
	}
	return c
}

// A told is a record as its topic, its key and its value; "" is null.
type told struct{ topic, key, value string }

// reads takes records in, each with its offset, and returns the reasons of those that are
// refused.
func (c *trapChain) reads(records ...told) (refused []string) {
	c.t.Helper()
	for _, r := range records {
		id, offset := store.Partition{Topic: r.topic}, c.fetched[r.topic]
		rec := decode.Record{Topic: r.topic, Offset: offset, Timestamp: c.db.Now(), Key: []byte(r.key), Value: []byte(r.value)}
		if r.key == "" {
			rec.Key = nil
		}
		if r.value == "" {
			rec.Value = nil
		}
		b := store.Batch{Partition: id, Next: offset + 1, LeaderEpoch: -1, Asked: c.db.Now(), End: offset + 1}
		var err error
		if b.Changes, b.Notes, err = c.take(rec); err != nil {
			var wrong *decode.Error
			if !errors.As(err, &wrong) {
				c.t.Fatal(err)
			}
			refused = append(refused, wrong.Reason)
			b.Changes = []store.Change{decode.DeadLetter(rec, wrong.Reason)}
		}
		c.fetched[r.topic] = offset
		found := store.Discovery{Complete: true}
		for topic, next := range c.fetched {
			found.Partitions = append(found.Partitions, store.Discovered{Partition: store.Partition{Topic: topic}, End: next})
		}
		if err := c.db.Discover(found); err != nil {
			c.t.Fatal(err)
		}
		if err := c.db.Apply(context.Background(), b); err != nil {
			c.t.Fatal(err)
		}
		if err := c.db.Flush(); err != nil {
			c.t.Fatal(err)
		}
		c.fetched[r.topic]++
		time.Sleep(time.Second)
	}
	return refused
}

// increment is what has come since the last: +Type/id body and -Type/id.
func (c *trapChain) increment() string {
	c.t.Helper()
	time.Sleep(time.Minute)
	for topic, next := range c.fetched { // an idle answer moves the watermark
		b := store.Batch{Partition: store.Partition{Topic: topic}, Next: next, LeaderEpoch: -1, Asked: c.db.Now(), End: next}
		if err := c.db.Apply(context.Background(), b); err != nil {
			c.t.Fatal(err)
		}
	}
	c.jobs++
	s, err := c.db.Pin(context.Background(), fmt.Sprint("job-", c.jobs), time.Now().Add(time.Hour), func(*store.Snapshot) ([]byte, error) { return nil, nil })
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			c.t.Error(err)
		}
	}()
	upto, all := s.Watermark(), map[string]bool{}
	for _, kind := range []store.Kind{store.Live, store.Deleted} {
		for _, sec := range s.Sections(kind) {
			ext, err := s.Extents(sec, c.since, upto)
			if err != nil {
				c.t.Fatal(err)
			}
			_, err = s.Lines(context.Background(), c.since, upto, ext, func(line []byte) error {
				var r struct {
					ResourceType, ID, Gender string
					Entry                    []struct{ Request struct{ URL string } }
				}
				if err := json.Unmarshal(line, &r); err != nil {
					return err
				}
				text := strings.TrimSpace("+" + r.ResourceType + "/" + r.ID + " " + r.Gender)
				if kind == store.Deleted {
					text = "-" + r.Entry[0].Request.URL
				}
				if all[text] {
					c.t.Errorf("%s stands twice", text)
				}
				all[text] = true
				return nil
			}, func() {})
			if err != nil {
				c.t.Fatal(err)
			}
		}
	}
	c.since = upto
	return strings.Join(slices.Sorted(maps.Keys(all)), ", ")
}

// TestTraps: twelve ways in which streams of changes mislead those who read them, each from
// the record to what a client is told in the next increments.
func TestTraps(t *testing.T) {
	row := func(op, id, gender, updated string, lsn int) told {
		key, body := fmt.Sprintf(`{"id":%q}`, id), fmt.Sprintf(`{\"resourceType\":\"Patient\",\"id\":\"%s\",\"gender\":\"%s\"}`, id, gender)
		if gender == "unavailable" {
			body = "__debezium_unavailable_value"
		}
		after := fmt.Sprintf(`{"id":%q,"content":"%s","lastUpdated":"1999-12-31T20:00:%s.000Z","deleted":false}`, id, body, updated)
		if op == "d" {
			after = "null"
		}
		return told{"emr.public.Patient", key, fmt.Sprintf(`{"before":null,"after":%s,"source":{"table":"Patient","lsn":%d,"ts_ms":9466704%s000},"op":%q}`, after, lsn, updated, op)}
	}
	version := func(op, version, gender, updated string, lsn int) told {
		r := row(op, "p-1", gender, updated, lsn)
		r.topic, r.key = r.topic+"_History", fmt.Sprintf(`{"versionId":%q}`, version)
		r.value = strings.ReplaceAll(r.value, `"table":"Patient"`, `"table":"Patient_History"`)
		return r
	}
	tombstone := told{"emr.public.Patient", `{"id":"p-1"}`, ""}
	resource := func(version, gender string) told {
		return told{"fhir", "Patient/p-1", fmt.Sprintf(`{"resourceType":"Patient","id":"p-1","meta":{"versionId":%q},"gender":%q}`, version, gender)}
	}
	entry := func(method, url, body string) string {
		return fmt.Sprintf(`{"request":{"method":%q,"url":%q},"resource":%s}`, method, url, body)
	}
	bundle := func(entries ...string) told {
		return told{"fhir", "", `{"resourceType":"Bundle","type":"transaction","entry":[` + strings.Join(entries, ",") + `]}`}
	}
	anna, ben := entry("PUT", "Patient/p-1", `{"resourceType":"Patient","id":"p-1"}`), entry("PUT", "Patient/p-2", `{"resourceType":"Patient","id":"p-2"}`)
	first := row("c", "p-1", "male", "01", 10)
	type step struct {
		reads   []told
		want    string // in the next increment
		refused string // the beginning of the reason
	}
	for _, c := range []struct {
		name, format, preset string
		steps                []step
	}{
		{"1 tombstone after a deletion", "debezium", "medplum", []step{
			{[]told{first}, "+Patient/p-1 male", ""}, {[]told{row("d", "p-1", "", "02", 20), tombstone}, "-Patient/p-1", ""}, {[]told{tombstone}, "", ""},
		}},
		{"2 a snapshot tells old versions again", "debezium", "medplum", []step{
			{[]told{version("c", "a", "male", "01", 10), version("c", "b", "female", "02", 20)}, "+Patient/p-1 female", ""},
			{[]told{version("r", "a", "male", "01", 30), version("r", "b", "female", "02", 30)}, "", ""},
		}},
		{"3 a body that has not changed is left out", "debezium", "medplum", []step{
			{[]told{first}, "+Patient/p-1 male", ""}, {[]told{row("u", "p-1", "unavailable", "02", 20)}, "", ""}, {[]told{row("u", "p-1", "female", "03", 30)}, "+Patient/p-1 female", ""},
		}},
		{"4 a key that changes", "debezium", "medplum", []step{
			{[]told{first}, "+Patient/p-1 male", ""}, {[]told{row("d", "p-1", "", "02", 20), row("c", "p-2", "male", "02", 20)}, "+Patient/p-2 male, -Patient/p-1", ""},
		}},
		{"5 a table that is emptied", "debezium", "medplum", []step{
			{[]told{first}, "+Patient/p-1 male", ""},
			{[]told{{"emr.public.Patient", "", `{"before":null,"after":null,"source":{"table":"Patient","lsn":20},"op":"t"}`}}, "", "the table was truncated"},
		}},
		{"6 a body that comes before its id", "debezium", "hapi", []step{
			{[]told{
				{"hapi.public.hfj_res_ver", "", `{"op":"c","after":{"pid":1,"res_id":1,"res_ver":1,"res_type":"Patient","res_encoding":"JSON","has_tags":false,"res_text_vc":"{\"resourceType\":\"Patient\",\"gender\":\"male\"}","res_updated":946670401000000},"source":{"table":"hfj_res_ver","lsn":10}}`},
				{"hapi.public.hfj_resource", "", `{"op":"c","after":{"res_id":1,"res_type":"Patient","fhir_id":"p-1","res_ver":1,"res_updated":946670401000000},"source":{"table":"hfj_resource","lsn":11}}`},
			}, "+Patient/p-1 male", ""},
		}},
		{"7 a version twice", "resource", "", []step{{[]told{resource("1", "male")}, "+Patient/p-1 male", ""}, {[]told{resource("1", "male")}, "", ""}}},
		{"8 an update that is older", "resource", "", []step{{[]told{resource("3", "male")}, "+Patient/p-1 male", ""}, {[]told{resource("2", "female")}, "", ""}}},
		{"9 deleted and made again", "resource", "", []step{
			{[]told{resource("1", "male")}, "+Patient/p-1 male", ""}, {[]told{{"fhir", "Patient/p-1", ""}}, "-Patient/p-1", ""}, {[]told{resource("3", "female")}, "+Patient/p-1 female", ""},
		}},
		{"10 the deletion of what nobody knows", "resource", "", []step{{[]told{{"fhir", "Patient/p-9", ""}}, "", ""}}},
		{"11 a message of several changes", "bundle", "", []step{
			{[]told{bundle(anna, ben)}, "+Patient/p-1, +Patient/p-2", ""},
			{[]told{bundle(entry("DELETE", "Patient/p-1", "null"), entry("PUT", "Patient/p-2", "null"))}, "", "entry 1"},
			{[]told{bundle(entry("DELETE", "Patient/p-1", "null"), entry("DELETE", "Patient/p-2", "null"))}, "-Patient/p-1, -Patient/p-2", ""},
		}},
		{"12 a resource that is only a part", "resource", "", []step{
			{[]told{resource("1", "male")}, "+Patient/p-1 male", ""},
			{[]told{{"fhir", "Patient/p-1", `{"resourceType":"Patient","id":"p-1","meta":{"versionId":"2","tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}]}}`}}, "", "resource is only a part"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				chain := newTrapChain(t, c.format, decode.Options{Preset: c.preset})
				for i, s := range c.steps {
					refused := strings.Join(chain.reads(s.reads...), "; ")
					if !strings.HasPrefix(refused, s.refused) || s.refused == "" && refused != "" {
						t.Errorf("step %d: refused: %q, want %q", i+1, refused, s.refused)
					}
					if got := chain.increment(); got != s.want {
						t.Errorf("step %d: an increment of %q, want %q", i+1, got, s.want)
					}
				}
			})
		})
	}
}
