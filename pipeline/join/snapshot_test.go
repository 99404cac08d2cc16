package join

import (
	"fmt"
	"strings"
	"testing"

	"tidemark/pipeline/decode"
	"tidemark/store"
	"tidemark/store/fhir"
)

// TestLabelsOfSnapshots: what is new in a snapshot that is taken of a running server is told
// with all its labels, though it is of no transaction: once what was written before it has
// been read of the other topics, and also by a process that was started since. What is not new
// waits for nothing.
func TestLabelsOfSnapshots(t *testing.T) {
	versions := store.Partition{Topic: "hapi.hfj_res_ver"}
	for _, c := range []struct {
		what          string
		crash, caught bool
	}{{what: "while others are read"}, {what: "over a crash", crash: true}, {what: "when others have been read", caught: true}} {
		k, upto := newKept(t), fhir.None
		begin := func() *Join {
			j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, func(topic string) fhir.Instant {
				if topic != versions.Topic {
					t.Errorf("%s: it asks what is read beside %s", c.what, topic)
				}
				return upto
			})
			if err := j.Load(); err != nil {
				t.Fatal(err)
			}
			return j
		}
		j := begin()
		r := &labelled{t, k, j}
		for n := 1; n <= 3; n++ {
			r.take("c", "hfj_tag_def", fmt.Sprintf(`"tag_id":%d,"tag_type":2,"tag_system":"s","tag_code":"%d"`, n, n))
		}
		r.take("c", "hfj_resource", `"res_id":1,"res_type":"Patient","fhir_id":"anna"`)
		r.take("c", "hfj_res_tag", `"pid":1,"res_id":1,"tag_id":1`)
		r.version("c", 1)
		r.has(c.what, 1, 1)
		r.version("r", 1)
		if waits := j.Waits(); waits != fhir.None {
			t.Errorf("%s: what is known already has the watermark wait for %v", c.what, waits)
		}
		if c.caught {
			r.take("r", "hfj_res_tag", `"pid":2,"res_id":1,"tag_id":2`)
			k.now += lull
			upto = k.now + 1
			r.version("r", 2)
			r.has(c.what, 2, 2)
			continue
		}
		r.version("r", 2)
		if r.version("r", 2); j.Waits() == fhir.None {
			t.Errorf("%s: the watermark waits for nothing", c.what)
		}
		for n := 2; n <= 3; n++ {
			r.take("r", "hfj_res_tag", fmt.Sprintf(`"pid":%d,"res_id":1,"tag_id":%d`, n, n))
			r.overdue()
		}
		r.has(c.what, 1, 1)
		if c.crash {
			j = begin()
			r.j = j
		}
		upto = k.now
		r.overdue()
		r.has(c.what, 1, 1) // tags that were written before may come among the versions
		k.now += lull
		r.overdue()
		r.has(c.what, 2, 3)
		if waits := j.Waits(); waits != fhir.None || len(j.behind) != 0 {
			t.Errorf("%s: the watermark waits for %v, %d partitions are waited for", c.what, waits, len(j.behind))
		}
	}
}

// TestSnapshotAheadOfItsPlace: a connector that has lost its offsets takes a snapshot beside the slot
// that it has, and the log then tells behind the snapshot's place what is in it. Of a version it tells
// first how it was inserted: that is not told again, nor what followed; what is new is.
func TestSnapshotAheadOfItsPlace(t *testing.T) {
	for _, tagged := range []bool{false, true} {
		k := newKept(t)
		j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
		r := &labelled{t, k, j}
		var told []string
		version := func(op string, n, source int) {
			t.Helper()
			r.take(op, "hfj_res_ver", fmt.Sprintf(`"pid":%d,"res_id":1,"res_ver":%d,"res_type":"Patient","has_tags":%t,"res_encoding":"JSON","source_uri":"s%d","res_text_vc":"{\"resourceType\":\"Patient\"}"`, n, n, tagged, source))
			if now := k.shown()["Patient/anna"]; len(told) == 0 || told[len(told)-1] != now {
				told = append(told, now)
			}
		}
		r.take("r", "hfj_tag_def", `"tag_id":1,"tag_type":2,"tag_system":"s","tag_code":"1"`)
		r.take("r", "hfj_resource", `"res_id":1,"res_type":"Patient","fhir_id":"anna"`)
		if tagged {
			r.take("r", "hfj_res_tag", `"pid":1,"res_id":1,"tag_id":1`)
			k.now += lull
		}
		version("r", 2, 1)
		for range 2 { // the connector is killed, and repeats it
			version("c", 1, 0)
			version("u", 1, 1)
			version("c", 2, 0)
			version("u", 2, 1)
		}
		if len(told) != 1 || !strings.Contains(told[0], "s1") {
			t.Errorf("tagged: %t: of what the snapshot has it tells %q", tagged, told)
		}
		version("u", 2, 2)
		version("c", 3, 0)
		version("u", 3, 3)
		if len(told) != 4 || !strings.Contains(told[1], "s2") || !strings.Contains(told[2], "s0") || !strings.Contains(told[3], "s3") {
			t.Errorf("tagged: %t: behind that it tells %q", tagged, told)
		}
	}
}

// TestManyBehindSnapshots: what waits for other topics is told some at a time, and all of it.
func TestManyBehindSnapshots(t *testing.T) {
	k, upto := newKept(t), fhir.None
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, func(string) fhir.Instant { return upto })
	take := func(table, row string, offset int) {
		t.Helper()
		rec := record("hapi."+table, nil, fmt.Appendf(nil, `{"op":"r","after":{%s},"source":{"table":%q,"lsn":7}}`, row, table))
		rec.Offset, rec.Timestamp = int64(offset), k.now
		taken, err := j.Take(rec)
		if err != nil {
			t.Fatal(err)
		}
		k.apply(taken)
		j.Applied()
	}
	take("hfj_tag_def", `"tag_id":1,"tag_type":2,"tag_system":"s","tag_code":"R"`, 0)
	const all = 3*lateAtOnce - 1
	for n := 1; n <= all; n++ {
		take("hfj_resource", fmt.Sprintf(`"res_id":%d,"res_type":"Patient","fhir_id":"p%d"`, n, n), n)
		take("hfj_res_tag", fmt.Sprintf(`"pid":%d,"res_id":%d,"tag_id":1`, n, n), n)
		take("hfj_res_ver", fmt.Sprintf(`"pid":%d,"res_id":%d,"res_ver":1,"res_type":"Patient","has_tags":true,"res_encoding":"JSON","res_text_vc":"{\"resourceType\":\"Patient\"}"`, n, n), n)
	}
	k.now += lull
	upto = k.now
	for n := 1; len(k.rows) < all; n++ {
		late, err := j.Overdue(store.Partition{Topic: "hapi.hfj_res_ver"}, fhir.None, decode.DeadLetter)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range late {
			k.apply(l)
		}
		if j.Applied(); len(k.rows) != min(n*lateAtOnce, all) {
			t.Fatalf("%d are told after %d times", len(k.rows), n)
		}
	}
}

// TestLabelsBehindSnapshots: a version that is written behind a snapshot has the labels that the
// snapshot tells, all of them, though the others are read after it; and so it has where the
// version before is known, without waiting.
func TestLabelsBehindSnapshots(t *testing.T) {
	k := newKept(t)
	k.now = 1_000_000
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, func(string) fhir.Instant { return k.now - 1000 })
	r := &labelled{t, k, j}
	for n := 1; n <= 3; n++ {
		r.take("r", "hfj_tag_def", fmt.Sprintf(`"tag_id":%d,"tag_type":2,"tag_system":"s","tag_code":"%d"`, n, n))
	}
	r.take("r", "hfj_resource", `"res_id":1,"res_type":"Patient","fhir_id":"anna"`)
	r.version("c", 2)
	k.now += 10 * lull
	for n := 1; n <= 3; n++ {
		r.take("r", "hfj_res_tag", fmt.Sprintf(`"pid":%d,"res_id":1,"tag_id":%d`, n, n))
		k.now += lull / 2
		if r.overdue(); len(k.rows) > 0 {
			t.Fatalf("it is told with %d of its tags", n)
		}
	}
	if waits := j.Waits(); waits == fhir.None {
		t.Error("the watermark waits for nothing")
	}
	k.now += lull
	r.overdue()
	r.has("behind it", 2, 3)
	r.take("r", "hfj_res_tag", `"pid":9,"res_id":2,"tag_id":1`)
	r.version("c", 3)
	r.has("behind it", 3, 3)
}

// TestSnapshotThatStalls: a connector that says of a row of tags that it is not the last of them is
// waited for, though it stands still for longer than one that does not say it.
func TestSnapshotThatStalls(t *testing.T) {
	for _, c := range []struct {
		what  string
		marks []string // of the rows of tags, in their order
		late  int      // how many of them were written before the one that came last
		want  int64    // milliseconds
	}{
		{what: "it does not say", marks: []string{"incremental", "incremental"}, want: lull},
		{what: "more come", marks: []string{"first_in_data_collection", "true"}, want: stall},
		{what: "more come of the whole", marks: []string{"first"}, want: stall},
		{what: "that was the last", marks: []string{"true", "last_in_data_collection"}, want: lull},
		{what: "that was the last of all", marks: []string{"true", "last"}, want: lull},
		{what: "another partition is read behind the last", marks: []string{"last_in_data_collection", "true"}, late: 1, want: lull},
		{what: "another snapshot begins", marks: []string{"last_in_data_collection", "true"}, want: stall},
	} {
		k := newKept(t)
		k.now = 1_000_000
		j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, func(string) fhir.Instant { return k.now })
		r := &labelled{t, k, j}
		r.take("r", "hfj_resource", `"res_id":1,"res_type":"Patient","fhir_id":"anna"`)
		for n, mark := range c.marks {
			r.take("r", "hfj_tag_def", fmt.Sprintf(`"tag_id":%d,"tag_type":2,"tag_system":"s","tag_code":"%d"`, n+1, n+1))
			rec := record("hapi.hfj_res_tag", nil, fmt.Appendf(nil, `{"op":"r","after":{"pid":%d,"res_id":1,"tag_id":%d},"source":{"table":"hfj_res_tag","lsn":7,"snapshot":%q}}`, n+1, n+1, mark))
			rec.Offset, rec.Timestamp = int64(n), k.now+fhir.Instant(1-2*c.late)*fhir.Instant(n)
			taken, err := j.Take(rec)
			if err != nil {
				t.Fatal(err)
			}
			k.apply(taken)
			j.Applied()
		}
		came := k.now
		r.version("r", 1)
		k.now = came + fhir.Instant(c.want) - 1
		if r.overdue(); len(k.rows) > 0 {
			t.Errorf("%s: it is told before", c.what)
		}
		k.now++
		if r.overdue(); len(k.rows) == 0 {
			t.Errorf("%s: it waits longer than %d ms", c.what, c.want)
		}
	}
}

// labelled is Patient/anna, whose rows are told one after the other.
type labelled struct {
	t *testing.T
	k *kept
	j *Join
}

func (r *labelled) take(op, table, row string) {
	r.t.Helper()
	r.k.now++
	rec := record("hapi."+table, nil, fmt.Appendf(nil, `{"op":%q,"after":{%s},"source":{"table":%q,"lsn":%d}}`, op, row, table, r.k.now))
	rec.Offset, rec.Timestamp = int64(r.k.now), r.k.now
	taken, err := r.j.Take(rec)
	if err != nil {
		r.t.Fatal(err)
	}
	r.k.apply(taken)
	r.j.Applied()
}

func (r *labelled) version(op string, n int) {
	r.t.Helper()
	r.take(op, "hfj_res_ver", fmt.Sprintf(`"pid":%d,"res_id":1,"res_ver":%d,"res_type":"Patient","has_tags":true,"res_encoding":"JSON","res_text_vc":"{\"resourceType\":\"Patient\"}"`, n, n))
}

func (r *labelled) overdue() {
	r.t.Helper()
	late, err := r.j.Overdue(store.Partition{Topic: "hapi.hfj_res_ver"}, fhir.None, decode.DeadLetter)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range late {
		r.k.apply(l)
	}
	r.j.Applied()
}

func (r *labelled) has(when string, version, labels int) {
	r.t.Helper()
	ch := r.k.rows[fhir.Key{Type: patient(r.t), ID: "anna"}]
	if n := strings.Count(string(ch.Body), `"code"`); ch.Version != int64(version) || n != labels {
		r.t.Errorf("%s: version %d with %d labels, want %d with %d", when, ch.Version, n, version, labels)
	}
}

func patient(t *testing.T) fhir.Type {
	t.Helper()
	key, err := fhir.ParseKey("Patient/anna")
	if err != nil {
		t.Fatal(err)
	}
	return key.Type
}
