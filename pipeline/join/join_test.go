package join

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/pipeline/decode"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// hapiData is what a real server wrote.
const hapiData = "../../testdata/hapi"

// recorded are the messages of debezium.ndjson.gz, by topic, each in its order.
func recorded(t testing.TB) map[string][]decode.Record {
	t.Helper()
	f, err := os.Open(filepath.Join(hapiData, "debezium.ndjson.gz"))
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
	topics := map[string][]decode.Record{}
	for lines.Scan() {
		var m struct {
			Topic      string
			Key, Value json.RawMessage
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		topics[m.Topic] = append(topics[m.Topic], record(m.Topic, m.Key, m.Value))
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return topics
}

func record(topic string, key, value []byte) decode.Record {
	if string(value) == "null" {
		value = nil
	}
	return decode.Record{Topic: topic, Timestamp: fhir.None, Key: key, Value: value}
}

// snapshot are rows of a table as a connector that starts reads them.
func snapshot(t testing.TB, topics map[string][]decode.Record, table, file string, lsn int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(hapiData, file))
	if err != nil {
		t.Fatal(err)
	}
	var rows []json.RawMessage
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		topic := "hapi.public." + table
		value := fmt.Appendf(nil, `{"before":null,"after":%s,"source":{"table":"%s","lsn":%d,"snapshot":"true"},"op":"r"}`, row, table, lsn)
		topics[topic] = append(topics[topic], record(topic, nil, value))
	}
}

// kept is a store that judges as the real one does, by version, instant and position.
type kept struct {
	t       testing.TB
	notes   map[string][]byte
	now     fhir.Instant
	rows    map[fhir.Key]store.Change
	history []store.Change // all that was the newest once
}

func newKept(t testing.TB) *kept {
	return &kept{t: t, notes: map[string][]byte{}, now: 1000, rows: map[fhir.Key]store.Change{}}
}

func (k *kept) Remembered(name string) ([]byte, error) { return k.notes[name], nil }

func (k *kept) EachRemembered(prefix string, fn func(string, []byte) error) error {
	for _, name := range slices.Sorted(maps.Keys(k.notes)) {
		if what := k.notes[name]; strings.HasPrefix(name, prefix) {
			if err := fn(name, what); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *kept) apply(taken Taken) {
	for _, n := range taken.Notes {
		if k.notes[n.Name] = n.Value; n.Value == nil {
			delete(k.notes, n.Name)
		}
	}
	for _, ch := range taken.Changes {
		old, had := k.rows[ch.Key]
		if ch.Revise != nil {
			if !had || old.Delete {
				continue
			}
			now, changed := ch.Revise(old.Body)
			if !changed {
				continue
			}
			now.Version, now.LastUpdated, now.Position = old.Version, old.LastUpdated, ch.Position
			ch = now
		}
		if ch.Dead != nil {
			k.history = append(k.history, ch)
			continue
		}
		order, _ := store.InLog(ch.Position, ch.Time, old.Position, old.Timestamp)
		newer := ch.Version > old.Version || ch.Version == store.NoVersion && order >= 0 || ch.Version == old.Version && order > 0
		if had && (!newer || bytes.Equal(ch.Body, old.Body) && ch.Version == old.Version) {
			continue
		}
		k.rows[ch.Key] = ch
		k.history = append(k.history, ch)
	}
}

// shown is what there is, by key.
func (k *kept) shown() map[string]string {
	all := map[string]string{}
	for key, ch := range k.rows {
		if all[key.String()] = string(ch.Body); ch.Delete {
			all[key.String()] = fmt.Sprintf("deleted %d", ch.Version)
		}
		if len(ch.Body) > 1000 {
			all[key.String()] = fmt.Sprintf("%s… %d", ch.Body[:400], len(ch.Body))
		}
	}
	return all
}

func decoder(t testing.TB, o decode.Options) decode.Joined {
	t.Helper()
	o.Preset = "hapi"
	d, err := decode.New("debezium", o)
	if err != nil {
		t.Fatal(err)
	}
	return d.(decode.Joined)
}

// run takes all topics' records in some order, in which each topic's is kept, with some
// at a time between two that the store has.
func run(t *testing.T, k *kept, topics map[string][]decode.Record, r *rand.Rand) {
	t.Helper()
	runFrom(t, k, topics, nil, r)
}

// runFrom is run behind the records that were taken.
func runFrom(t *testing.T, k *kept, topics, taken map[string][]decode.Record, r *rand.Rand) {
	t.Helper()
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
	left := map[string]int{}
	for topic := range topics {
		left[topic] = len(taken[topic])
	}
	for len(left) > 0 {
		names := slices.Sorted(maps.Keys(left))
		topic := names[r.IntN(len(names))]
		var all []Taken
		for range 1 + r.IntN(4) {
			at := left[topic]
			if at == len(topics[topic]) {
				delete(left, topic)
				break
			}
			rec := topics[topic][at]
			rec.Offset = int64(at)
			taken, err := j.Take(rec)
			if err != nil {
				t.Fatalf("%s at %d: %v", topic, at, err)
			}
			all, left[topic] = append(all, taken), at+1
		}
		for _, taken := range all {
			k.apply(taken)
		}
		j.Applied()
		if r.IntN(10) == 0 { // a crash: only what is noted is left
			j = New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
		}
	}
}

// TestHAPI: whatever order the topics are read in, what a HAPI server wrote is what it has;
// and as messages tell where transactions end, no version is told with fewer tags than it had.
func TestHAPI(t *testing.T) {
	want := map[string]string{
		"Patient/kdec3-1": "deleted 5",
		"Patient/c53d441c-8459-4786-87b7-1f5b442908b1": `{"resourceType":"Patient","id":"c53d441c-8459-4786-87b7-1f5b442908b1","meta":{"versionId":"1","lastUpdated":"2026-11-22T21:01:07.338Z","source":"#qbz42KYJmRkUGXJ6"},"active":true}`,
		"Observation/kdec3-o1":                         `{"resourceType":"Observation","id":"kdec3-o1","meta":{"versionId":"1","lastUpdated":"2026-11-22T21:01:07.338Z","source":"#qbz42KYJmRkUGXJ6"},"status":"final","code":{"text":"x"},"subject":{"reference":"Patient/c53d441c-8459-4786-87b7-1f5b442908b1"}}`,
	}
	const tags = `"profile":["http://hl7.org/fhir/us/core/StructureDefinition/us-core-patient"],` +
		`"security":[{"system":"http://terminology.hl7.org/CodeSystem/v3-Confidentiality","code":"R","display":"restricted"}],` +
		`"tag":[{"system":"urn:t","code":"one"}]`
	const bigMeta = `{"resourceType":"Basic","id":"kdec3-big","meta":{"versionId":"1","lastUpdated":"2026-11-22T21:01:08.258Z","source":"#4X7ejPwFbmBcShWe","tag":[{"system":"urn:t","code":"two"}]}`
	for seed := range uint64(storetest.Rounds(24)) {
		topics := recorded(t)
		snapshot(t, topics, "hfj_tag_def", "hfj_tag_def.json", 1)
		k := newKept(t)
		// A connector's first message is that a transaction begins.
		k.notes[toldEnds] = []byte("{}")
		run(t, k, topics, rand.New(rand.NewPCG(seed, 7)))
		got := k.shown()
		big := got["Basic/kdec3-big"]
		delete(got, "Basic/kdec3-big")
		if !strings.HasPrefix(big, bigMeta) {
			t.Fatalf("seed %d: the large one is %.300s", seed, big)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		for _, ch := range k.history {
			if ch.Key.ID == "kdec3-1" && !ch.Delete && !strings.Contains(string(ch.Body), tags) {
				t.Fatalf("seed %d: a version without all its tags: %s", seed, ch.Body)
			}
		}
		for name := range k.notes {
			if !strings.HasPrefix(name, ofResource) && !strings.HasPrefix(name, ofKey) && !strings.HasPrefix(name, ofTag) && !strings.HasPrefix(name, ofTagName) && name != toldEnds {
				t.Fatalf("seed %d: %s is noted still: %s", seed, name, k.notes[name])
			}
		}
	}
}

// TestNewestWaits: of the versions that wait only the newest is told, whichever came last: a
// connector that begins anew repeats what it wrote.
func TestNewestWaits(t *testing.T) {
	k := newKept(t)
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
	take := func(table, row string) {
		t.Helper()
		rec := record("hapi.public."+table, nil, fmt.Appendf(nil, `{"op":"c","after":%s,"source":{"table":%q,"lsn":%d}}`, row, table, k.now))
		k.now++
		taken, err := j.Take(rec)
		if err != nil {
			t.Fatal(err)
		}
		k.apply(taken)
		j.Applied()
	}
	for _, n := range []int{2, 1} {
		take("hfj_res_ver", fmt.Sprintf(`{"pid":%d,"res_id":1,"res_ver":%d,"res_type":"Patient","has_tags":false,"res_encoding":"JSON","res_text_vc":"{\"resourceType\":\"Patient\"}"}`, n, n))
	}
	take("hfj_resource", `{"res_id":1,"res_type":"Patient","fhir_id":"anna"}`)
	if len(k.history) != 1 || k.history[0].Version != 2 {
		t.Errorf("told %+v", k.history)
	}
	if _, waits := k.notes[name(waiting, 1)]; waits {
		t.Error("it waits still")
	}
}

// TestVersionsBeforeADeletion: of a resource that was deleted before it was known only that is
// told. Its earlier versions, which a snapshot that is taken again brings, do not live.
func TestVersionsBeforeADeletion(t *testing.T) {
	k := newKept(t)
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
	take := func(table, row string) {
		t.Helper()
		taken, err := j.Take(record("hapi.public."+table, nil, fmt.Appendf(nil, `{"op":"r","after":%s,"source":{"table":%q,"lsn":null}}`, row, table)))
		if err != nil {
			t.Fatal(err)
		}
		k.apply(taken)
		j.Applied()
		for _, ch := range taken.Changes {
			if !ch.Delete {
				t.Errorf("version %d is told as living", ch.Version)
			}
		}
	}
	versions := func() {
		t.Helper()
		take("hfj_res_ver", `{"pid":1,"res_id":1,"res_ver":1,"res_type":"Patient","has_tags":false,"res_encoding":"JSON","res_text_vc":"{\"resourceType\":\"Patient\"}"}`)
		take("hfj_res_ver", `{"pid":2,"res_id":1,"res_ver":2,"res_type":"Patient","res_encoding":"DEL"}`)
	}
	versions()
	take("hfj_resource", `{"res_id":1,"res_type":"Patient","fhir_id":"anna"}`)
	if len(k.history) != 1 {
		t.Errorf("told %+v", k.history)
	}
	versions()
}

// TestRepeatedBehindTags: a version had no tags when it was told, and has one, of a later
// transaction, when a connector that was killed tells it again, to its first row. None of that is
// a change; what is told first behind the tag is one.
func TestRepeatedBehindTags(t *testing.T) {
	k := newKept(t)
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
	take := func(lsn int, table, row string) {
		t.Helper()
		taken, err := j.Take(record("hapi.public."+table, nil, fmt.Appendf(nil, `{"op":"u","after":%s,"source":{"table":%q,"lsn":%d}}`, row, table, lsn)))
		if err != nil {
			t.Fatal(err)
		}
		k.apply(taken)
		j.Applied()
	}
	version := func(lsn, number int, source string) {
		t.Helper()
		take(lsn, "hfj_res_ver", fmt.Sprintf(`{"pid":%d,"res_id":1,"res_ver":%d,"res_type":"Patient","has_tags":false,"res_encoding":"JSON","res_text_vc":"{}","source_uri":%q}`, number, number, source))
	}
	take(10, "hfj_resource", `{"res_id":1,"res_type":"Patient","fhir_id":"anna"}`)
	version(20, 1, "")
	version(30, 1, "urn:a")
	take(50, "hfj_tag_def", `{"tag_id":2,"tag_type":2,"tag_system":"urn:s","tag_code":"R"}`)
	take(60, "hfj_res_tag", `{"pid":7,"res_id":1,"tag_id":2}`)
	told := len(k.history)
	version(20, 1, "")
	version(30, 1, "urn:a")
	if len(k.history) != told {
		t.Errorf("told again: %s", k.history[told].Body)
	}
	version(40, 1, "urn:b")
	const want = `{"resourceType":"Patient","id":"anna","meta":{"versionId":"1","source":"urn:b","security":[{"system":"urn:s","code":"R"}]}}`
	if got := k.shown()["Patient/anna"]; got != want {
		t.Errorf("it is %s and not %s", got, want)
	}
}

// TestWrongVersions: what is wrong with a version is said of its own record and at once,
// though it would have to wait, and leaves nothing behind.
func TestWrongVersions(t *testing.T) {
	k := newKept(t)
	j := New(decoder(t, decode.Options{DropTypes: []string{"Binary"}}), k, func() fhir.Instant { return k.now }, nil)
	version := func(typ, body string) (Taken, error) {
		return j.Take(record("hapi.public.hfj_res_ver", nil, fmt.Appendf(nil,
			`{"op":"c","after":{"pid":1,"res_id":1,"res_ver":1,"res_type":%q,"has_tags":false,"res_encoding":"JSON","res_text_vc":%q},"source":{"table":"hfj_res_ver"}}`, typ, body)))
	}
	for _, body := range []string{
		`{"meta":{"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}]}}`,
		`{"name":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`, `{"name":[}`,
	} {
		taken, err := version("Patient", body)
		if !refused(err) || taken.Changes != nil || len(j.fresh) != 0 || j.Waits() != fhir.None {
			t.Errorf("%.60s: %+v, %v", body, taken, err)
		}
	}
	if taken, err := version("Binary", `{"data":"x"}`); err != nil || taken.Changes != nil {
		t.Errorf("of a dropped type: %+v, %v", taken, err)
	}
}

// TestRefusedRowsCount: a version that nobody understands is one of its transaction's rows, so
// what has tags and comes with it need not wait.
func TestRefusedRowsCount(t *testing.T) {
	for _, bad := range []string{`"has_tags":false,"res_encoding":"JSONC","res_text":7`, `"has_tags":false,"res_encoding":"JSON","res_text_vc":"{\"name\":[}"`, `"has_tags":false,"res_encoding":"JSON","res_text_vc":"{\"id\":1}"`} {
		k := newKept(t)
		k.notes[toldEnds] = []byte("{}")
		j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
		refusals := 0
		take := func(table, row string) {
			t.Helper()
			value := fmt.Appendf(nil, `{"op":"c","after":{%s},"source":{"table":%q,"lsn":%d},"transaction":{"id":"9:%d"}}`, row, table, k.now, k.now)
			if table == "" {
				value = []byte(row)
			}
			k.now++
			taken, err := j.Take(record("hapi."+table, nil, value))
			if refused(err) {
				refusals++
			} else if err != nil {
				t.Fatal(err)
			}
			k.apply(taken)
			j.Applied()
		}
		take("hfj_tag_def", `"tag_id":1,"tag_type":2,"tag_system":"s","tag_code":"R"`)
		take("hfj_resource", `"res_id":1,"res_type":"Patient","fhir_id":"anna"`)
		take("hfj_res_tag", `"pid":5,"res_id":1,"tag_id":1`)
		take("hfj_res_ver", `"pid":6,"res_id":1,"res_ver":1,"res_type":"Patient","has_tags":true,"res_encoding":"JSON","res_text_vc":"{\"resourceType\":\"Patient\"}"`)
		take("hfj_res_ver", `"pid":7,"res_id":2,"res_ver":1,"res_type":"Patient",`+bad)
		take("", `{"status":"END","id":"9:1","ts_ms":1,"data_collections":[{"data_collection":"public.hfj_res_tag","event_count":1},{"data_collection":"public.hfj_res_ver","event_count":2}]}`)
		if refusals > 1 || len(k.history) == 0 || !strings.Contains(string(k.history[0].Body), `"code":"R"`) {
			t.Errorf("%s: %d refused, told %+v", bad, refusals, k.history)
		}
	}
}

// TestWaits: the watermark stays below what waits: below its own time if that is near, and if
// it was written long ago, as in a snapshot, below when it came.
func TestWaits(t *testing.T) {
	const now = 1_767_323_045_000
	k := newKept(t)
	k.now = now
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
	for n, c := range []struct{ updated, want fhir.Instant }{{now, now}, {now - 500, now - 500}, {now - 100_000_000, now - 500}, {now + 1000, now - 500}} {
		_, err := j.Take(record("hapi.hfj_res_ver", nil, fmt.Appendf(nil,
			`{"op":"c","after":{"pid":%d,"res_id":%d,"res_ver":1,"res_type":"Patient","res_encoding":"DEL","res_updated":%d},"source":{"table":"hfj_res_ver"}}`, n+1, n+1, c.updated*1000)))
		if got := j.Waits(); err != nil || got != c.want {
			t.Errorf("with one of %v the watermark waits for %v, want %v; %v", c.updated, got, c.want, err)
		}
	}
	if got := j.Waiting(); len(got) != 1 || got[0] != (Wait{For: waitsForKey, Versions: 4, Since: now}) {
		t.Errorf("what waits: %+v", got)
	}
	_, err := j.Take(record("hapi.hfj_resource", nil, []byte(`{"op":"c","after":{"res_id":2,"res_type":"Patient","fhir_id":"anna"},"source":{"table":"hfj_resource"}}`)))
	if got := j.Waiting(); err != nil || len(got) != 1 || got[0].Versions != 3 {
		t.Errorf("once one was told: %+v, %v", got, err)
	}
	k.now += 5000 // of another second
	again := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
	if err := again.Load(); err != nil || again.Waits() != fhir.None {
		t.Errorf("nothing was applied, and it waits for %v, %v", again.Waits(), err)
	}
}

// TestTransactionsOfPartitions: ends that come from several partitions are in no order, so none
// of them is understood, and whoever reads says why.
func TestTransactionsOfPartitions(t *testing.T) {
	k := newKept(t)
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
	for _, status := range []string{"BEGIN", "END"} {
		rec := record("hapi.transaction", nil, fmt.Appendf(nil, `{"status":%q,"id":"5:10","ts_ms":5,"event_count":0,"data_collections":[]}`, status))
		rec.Partition = 3
		if taken, err := j.Take(rec); !errors.Is(err, errPartitions) || refused(err) || taken.Notes != nil {
			t.Errorf("%s: %v, %v", status, taken, err)
		}
		rec.Partition = 0
		if _, err := j.Take(rec); err != nil {
			t.Errorf("%s in the first partition: %v", status, err)
		}
	}
}

// TestOverdueLetters: what has waited for too long is told once, as a dead letter; it is one
// for as long as it waits, for whatever, and none once it is told, or a later version is.
func TestOverdueLetters(t *testing.T) {
	for _, later := range []bool{false, true} {
		k := newKept(t)
		j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
		var answered []Origin
		take := func(table, row string) {
			t.Helper()
			rec := record("hapi."+table, nil, fmt.Appendf(nil, `{"op":"c","after":{%s},"source":{"table":%q,"lsn":%d}}`, row, table, k.now))
			rec.Offset = int64(k.now)
			taken, err := j.Take(rec)
			if err != nil {
				t.Fatal(err)
			}
			answered = append(answered, taken.Answered...)
			k.apply(taken)
			j.Applied()
		}
		overdue := func() (letters int) {
			t.Helper()
			k.now += 2 * patience
			late, err := j.Overdue(store.Partition{Topic: "hapi.hfj_res_ver"}, k.now, decode.DeadLetter)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range late {
				letters += len(l.Changes)
				k.apply(l)
			}
			j.Applied()
			return letters
		}
		version := func(n int) {
			take("hfj_res_ver", fmt.Sprintf(`"pid":%d,"res_id":1,"res_ver":%d,"res_type":"Patient","has_tags":true,"res_encoding":"JSON","res_text_vc":"{\"resourceType\":\"Patient\"}"`, n, n))
		}
		version(1)
		if overdue() != 1 || overdue() != 0 || j.Waits() != fhir.None {
			t.Fatal("not told once, or the watermark waits for it still")
		}
		take("hfj_resource", `"res_id":1,"res_type":"Patient","fhir_id":"anna"`) // now it waits for its tag
		if len(answered) != 0 || overdue() != 0 {
			t.Fatalf("it waits, and %v are answered", answered)
		}
		if later {
			version(2)
			if len(answered) != 1 || j.Waits() == fhir.None {
				t.Errorf("a later version waits in its place, and %v are answered", answered)
			}
		}
		take("hfj_res_tag", `"pid":5,"res_id":1,"tag_id":1`)
		take("hfj_tag_def", `"tag_id":1,"tag_type":2,"tag_system":"s","tag_code":"R"`)
		if len(answered) != 1 || answered[0].Offset != 1000 || len(k.rows) != 1 || j.Waits() != fhir.None {
			t.Errorf("later %v: %v are answered, %d are told", later, answered, len(k.rows))
		}
	}
}

// BenchmarkJoin takes what a create writes: the number, a tag and the version with a body of
// 1.8 KB; then the version alone, of a resource without tags.
func BenchmarkJoin(b *testing.B) {
	text := strings.Repeat(`{\"text\":\"something that was said\"},`, 48) + `{}`
	version := func(n int, tagged bool) []byte {
		return fmt.Appendf(nil, `{"op":"c","after":{"pid":%d,"res_id":%d,"res_ver":1,"res_type":"Observation","res_encoding":"JSON","has_tags":%v,"res_updated":1767323045123456,
			"res_text_vc":"{\"resourceType\":\"Observation\",\"subject\":{\"reference\":\"Patient/p-1\"},\"note\":[%s]}"},"source":{"table":"hfj_res_ver","lsn":%d}}`, n, n, tagged, text, 10*n)
	}
	number := func(n int) []byte {
		return fmt.Appendf(nil, `{"op":"c","after":{"res_id":%d,"res_type":"Observation","fhir_id":"o-%d"},"source":{"table":"hfj_resource","lsn":%d}}`, n, n, 10*n-2)
	}
	tag := func(n int) []byte {
		return fmt.Appendf(nil, `{"op":"c","after":{"pid":%d,"res_id":%d,"tag_id":1},"source":{"table":"hfj_res_tag","lsn":%d}}`, n, n, 10*n-1)
	}
	for _, tagged := range []bool{true, false} {
		b.Run(fmt.Sprintf("tagged=%v", tagged), func(b *testing.B) {
			k := newKept(b)
			k.notes[name(ofTagName, 1)] = []byte(`{"kind":1,"code":"urn:p"}`)
			j := New(decoder(b, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
			b.SetBytes(int64(len(version(1, tagged))))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				values := [][]byte{number(n), version(n, tagged)}
				if tagged {
					values = [][]byte{number(n), tag(n), version(n, tagged)}
				}
				told := 0
				for _, v := range values {
					taken, err := j.Take(record("hapi.public.x", nil, v))
					if err != nil {
						b.Fatal(err)
					}
					told += len(taken.Changes)
					for _, note := range taken.Notes {
						k.notes[note.Name] = note.Value
					}
				}
				if j.Applied(); told == 0 {
					b.Fatal("nothing was told")
				}
			}
		})
	}
}
