package join

import (
	"fmt"
	"strings"
	"testing"

	"tidemark/pipeline/decode"
	"tidemark/store/fhir"
)

// TestMovedDatabase: in the log of a database that was moved places are small again. What is told
// of a resource that has tags, or gets its first, is placed there from then on, and not behind
// what the old log told of it: else what comes next would seem older.
func TestMovedDatabase(t *testing.T) {
	k := newKept(t)
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
	lsn := 1_000_000
	take := func(table, op, row string) {
		t.Helper()
		lsn, k.now = lsn+10, k.now+10
		after := "{" + row + "}"
		if op == "d" {
			after = "null"
		}
		rec := record("hapi.public."+table, []byte("{"+row+"}"), fmt.Appendf(nil,
			`{"op":%q,"before":null,"after":%s,"source":{"table":%q,"lsn":%d,"ts_ms":%d}}`, op, after, table, lsn, k.now))
		rec.Timestamp = k.now
		taken, err := j.Take(rec)
		if err != nil {
			t.Fatal(err)
		}
		k.apply(taken)
		j.Applied()
	}
	version := func(n, v int, tagged bool, source string) string {
		return fmt.Sprintf(`"pid":%d,"res_id":%d,"res_ver":%d,"res_type":"Patient","has_tags":%t,"res_encoding":"JSON","res_text_vc":"{}","source_uri":%q`, n, n, v, tagged, source)
	}
	tag := func(n int) string { return fmt.Sprintf(`"pid":%d,"res_id":%d,"tag_id":2`, n, n) }
	is := func(key string, want ...string) {
		t.Helper()
		got := k.shown()["Patient/"+key]
		for _, part := range want {
			if text, not := strings.CutPrefix(part, "not "); strings.Contains(got, text) == not {
				t.Errorf("%s: %s, want %s", key, got, part)
			}
		}
	}

	take("hfj_tag_def", "c", `"tag_id":2,"tag_type":2,"tag_system":"urn:s","tag_code":"R"`)
	names := []string{1: "anna", 2: "bert", 3: "carl", 4: "dora"} // the first two have a tag
	for n, name := range names[1:] {
		n, tagged := n+1, n < 2
		take("hfj_resource", "c", fmt.Sprintf(`"res_id":%d,"res_type":"Patient","fhir_id":%q`, n, name))
		if tagged {
			take("hfj_res_tag", "c", tag(n))
		}
		take("hfj_res_ver", "c", version(n, 1, tagged, "old"))
		is(name, "old")
	}

	lsn, k.now = 1000, k.now+1_000_000
	take("hfj_res_tag", "d", tag(1))
	is("anna", "old", "not R")
	take("hfj_res_ver", "u", version(2, 1, true, "new"))
	is("bert", "new", "R")
	take("hfj_res_tag", "c", tag(3))
	is("carl", "old", "R")
	take("hfj_res_tag", "c", tag(4))
	take("hfj_res_ver", "u", version(4, 1, true, "new"))
	is("dora", "new", "R")
	for n, name := range names[1:] {
		take("hfj_resource", "d", fmt.Sprintf(`"res_id":%d`, n+1))
		is(name, "deleted")
	}
}

// TestLostPurge: what was made again waits for the end of what was purged; if that was lost, a
// snapshot tells it.
func TestLostPurge(t *testing.T) {
	k := newKept(t)
	j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
	take := func(op, table, row string, lsn int) {
		t.Helper()
		taken, err := j.Take(record("hapi.public."+table, nil, fmt.Appendf(nil, `{"op":%q,"after":{%s},"source":{"table":%q,"lsn":%d,"ts_ms":%d}}`, op, row, table, lsn, lsn)))
		if err != nil {
			t.Fatal(err)
		}
		k.apply(taken)
		j.Applied()
	}
	rows := func(op string, n, lsn int) {
		take(op, "hfj_resource", fmt.Sprintf(`"res_id":%d,"res_type":"Patient","fhir_id":"anna","res_published":%d`, n, 1_700_000_000_000_000+n*1_000_000), lsn)
		take(op, "hfj_res_ver", fmt.Sprintf(`"pid":%d,"res_id":%d,"res_ver":1,"res_type":"Patient","has_tags":false,"res_encoding":"JSON","res_text_vc":"{\"n\":%d}"`, n, n, n), lsn+1)
	}
	is := func(when, want string) {
		t.Helper()
		if got := k.shown()["Patient/anna"]; !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	rows("c", 1, 10)
	is("before", `"n":1`)
	rows("c", 2, 60)
	is("made again", `"n":1`)
	rows("r", 2, 100)
	is("behind a snapshot", `"n":2`)
}
