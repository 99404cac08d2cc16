package api_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tidemark/store"
)

func document(t testing.TB, id, of, url string) store.Change {
	return scanned(t, `{"resourceType":"DocumentReference","id":%q,"subject":{"reference":"Patient/%s"},"content":[{"attachment":{"title":"t","url":%q}}]}`, id, of, url)
}

func library(t testing.TB, id, url string) store.Change {
	return scanned(t, `{"resourceType":"Library","id":%q,"content":[{"url":%q}]}`, id, url)
}

func binary(t testing.TB, id, data string) store.Change {
	return scanned(t, `{"resourceType":"Binary","id":%q,"contentType":"text/plain","data":%q}`, id, data)
}

// urlIn is the URL of a line's attachment as an export has it.
func urlIn(line string) string {
	_, rest, _ := strings.Cut(line, `"url":"`)
	url, _, _ := strings.Cut(rest, `"`)
	return url
}

// TestAttachments: what leads to a Binary here is absolute at every level, with
// filters, elements and blocks; what leads elsewhere is as it came, and named.
func TestAttachments(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "b"), group(t, "g", "", "Patient/a"), binary(t, "one", "YQ=="), binary(t, "lib", "Yg=="), binary(t, "nobodys", "Yw=="))
	m.apply(document(t, "here", "a", "Binary/one"), document(t, "gone", "a", "Binary/two"), document(t, "there", "a", "https://files.example/x?y"),
		document(t, "others", "b", "Binary/one"), library(t, "l", "Binary/lib"), obs(t, "o", "a", ""))
	levels := map[string]string{"/": "system", "/Patient/": "patient", "/Group/g/": "group"}
	for path, level := range levels {
		for _, query := range []string{
			"", "?_type=DocumentReference", "?_typeFilter=DocumentReference%3Fsubject%3DPatient/a", "?_elements=content", "?organizeOutputBy=DocumentReference",
			"?_type=DocumentReference,Patient&organizeOutputBy=Patient",
		} {
			status := m.begin(path, query)
			var urls []string
			for _, f := range m.manifestOf(status).Output {
				_, text := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
				for line := range strings.Lines(string(text)) {
					if strings.Contains(line, `"resourceType":"DocumentReference"`) && !strings.Contains(line, `"b"`) && !strings.Contains(line, "others") {
						urls = append(urls, urlIn(line))
					}
				}
			}
			slices.Sort(urls)
			if want := []string{"Binary/two", public + "/Binary/one", "https://files.example/x?y"}; !slices.Equal(urls, want) {
				t.Errorf("%s%s: URLs are %v, want %v", level, query, urls, want)
			}
			_, manifest := m.get(status)
			notes := m.errorsOf(string(manifest))
			for _, want := range []string{"DocumentReference: 1 resources refer to Binaries", "among them Binary/two:", "attachments of 1 resources lead to https://files.example:"} {
				if !strings.Contains(notes, want) {
					t.Errorf("%s%s: %q is not said in %s", level, query, want, notes)
				}
			}
			if strings.Contains(notes, "x?y") {
				t.Errorf("%s%s: more than the origin is told: %s", level, query, notes)
			}
		}
	}
}

// TestBinaryFiles: a Binary is a file of its own only at system level, and only if
// something refers to it and nothing that is a Patient's does.
func TestBinaryFiles(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), group(t, "g", "", "Patient/a"), binary(t, "one", "YQ=="), binary(t, "lib", "Yg=="), binary(t, "alone", "Yw=="), binary(t, "both", "ZA=="))
	m.apply(scanned(t, `{"resourceType":"Binary","id":"own","contentType":"a/b","securityContext":{"reference":"Patient/a"}}`), library(t, "x", "Binary/own"))
	m.apply(scanned(t, `{"resourceType":"Bundle","id":"b","entry":[{"resource":{"resourceType":"Media","content":{"url":"Binary/wrapped"}}}]}`), binary(t, "wrapped", "ZQ=="), library(t, "w", "Binary/wrapped"))
	m.apply(document(t, "d", "a", "Binary/one"), library(t, "l", "Binary/lib"), library(t, "k", "Binary/both"), document(t, "e", "a", "Binary/both"))
	binaries := func(path, query string) (ids []string) {
		for ref := range m.exportOf(path, query).rows {
			if id, is := strings.CutPrefix(ref, "Binary/"); is {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		return ids
	}
	for _, query := range []string{"", "?_type=Binary", "?_type=Binary,Patient", "?_type=Binary&_elements=data", "?_typeFilter=Binary%3F_id%3Dlib,one"} {
		if got := binaries("/", query); !slices.Equal(got, []string{"lib"}) {
			t.Errorf("system%s: Binaries %v, want lib alone", query, got)
		}
	}
	for _, path := range []string{"/Patient/", "/Group/g/"} {
		if got := binaries(path, ""); got != nil {
			t.Errorf("%s: Binaries %v", path, got)
		}
	}
	since := m.exportOf("/", "").at
	if got := binaries("/", "?_since="+since); got != nil {
		t.Errorf("nothing has changed: Binaries %v", got)
	}
	m.apply(library(t, "n", "Binary/alone")) // now it is known to be nobody's
	if got := binaries("/", "?_type=Binary&_since="+since); !slices.Equal(got, []string{"alone"}) {
		t.Errorf("Binaries that have become nobody's: %v", got)
	}
	m.apply(document(t, "f", "a", "Binary/lib"))
	if got := binaries("/", ""); !slices.Equal(got, []string{"alone"}) {
		t.Errorf("once a Patient's document refers to lib: %v", got)
	}
}

// TestInline: content that came over Kafka takes the place of its URL, up to a size.
func TestInline(t *testing.T) {
	m := newMachine(t)
	m.close()
	m.inline = 4
	m.open()
	m.apply(patient(t, "a"), binary(t, "one", "YWFhYQ=="), binary(t, "large", "YWFhYWFhYWFh"), document(t, "d", "a", "Binary/one"), document(t, "e", "a", "Binary/large"))
	rows := m.exportOf("/Patient/", "").rows
	if d := rows["DocumentReference/d"]; !strings.Contains(d, `{"attachment":{"contentType":"text/plain","data":"YWFhYQ==","title":"t"}}`) {
		t.Errorf("the content is not in its place: %s", d)
	}
	if got := urlIn(rows["DocumentReference/e"]); got != public+"/Binary/large" {
		t.Errorf("what is too large leads to %q", got)
	}
}

// TestAttachmentsChain: documents and Binaries come, change and go in any order. Who
// takes increments holds what a full export holds, at every level.
func TestAttachmentsChain(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel() // most of it is waiting for the watermark
			m := newMachine(t)
			if seed%2 == 1 {
				m.close()
				m.inline = 100
				m.open()
			}
			r := rand.New(rand.NewPCG(seed, 9))
			m.apply(patient(t, "0"), patient(t, "1"), group(t, "g", "", "Patient/0"))
			change := func() store.Change {
				ref := fmt.Sprintf("Binary/%d", r.IntN(8))
				switch r.IntN(7) {
				case 0:
					return deletion(t, fmt.Sprintf("DocumentReference/%d", r.IntN(10)))
				case 1:
					return deletion(t, ref)
				case 2, 3:
					return binary(t, ref[7:], fmt.Sprintf("YWF%c", 'A'+r.IntN(26)))
				case 4:
					return library(t, fmt.Sprint(r.IntN(4)), ref)
				}
				return document(t, fmt.Sprint(r.IntN(10)), fmt.Sprint(r.IntN(2)), ref)
			}
			chains := map[string]map[string]string{"/": {}, "/Patient/": {}, "/Group/g/": {}}
			since := map[string]string{}
			for round := range 12 {
				for range r.IntN(4) {
					var changes []store.Change
					for range 1 + r.IntN(6) {
						changes = append(changes, change())
					}
					m.apply(changes...)
				}
				m.passes(m.db.Now())
				for path, has := range chains {
					query := ""
					if since[path] != "" {
						query = "?_since=" + since[path]
					}
					news := m.exportOf(path, query)
					for _, ref := range news.gone {
						delete(has, ref)
					}
					maps.Copy(has, news.rows)
					since[path] = news.at
					full := m.exportOf(path, "").rows
					for ref, line := range full {
						if has[ref] == "" && strings.HasPrefix(ref, "Binary/") {
							continue // a Patient's document referred to it, and has ceased to (CONFORMANCE.md)
						}
						if has[ref] != line {
							t.Errorf("round %d, %s: the client holds\n%s of %s, a full export\n%s", round, path, has[ref], ref, line)
						}
					}
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// TestAttachmentsKilled: a job that is cut short ends with the bytes of one that is
// not, and counts once what leads elsewhere.
func TestAttachmentsKilled(t *testing.T) {
	m := newMachine(t)
	m.file = 64 << 10
	m.restart()
	for i := range 10 {
		changes := []store.Change{binary(t, fmt.Sprint(i), "YQ==")}
		for n := range 200 {
			changes = append(changes, document(t, fmt.Sprintf("%d-%d-%s", i, n, strings.Repeat("x", 50)), "a", fmt.Sprintf("Binary/%d", n%20)))
		}
		m.apply(changes...)
	}
	want := m.text(m.begin("/", "?_type=DocumentReference"))
	if !strings.Contains(want, "DocumentReference: 1000 resources refer to Binaries") || strings.Count(want, public+"/Binary/") != 1000 {
		t.Fatalf("%d resources lead here: %s", strings.Count(want, public+"/Binary/"), want[max(0, len(want)-500):])
	}
	r := rand.New(rand.NewPCG(3, 3))
	for range 6 {
		if got := m.text(m.interrupted(r, 15, "?_type=DocumentReference")); got != want {
			t.Fatalf("%d bytes, want %d: %s", len(got), len(want), got[max(0, len(got)-500):])
		}
	}
}
