package api_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/api"
	"tidemark/api/apitest"
	"tidemark/store"
	"tidemark/store/fhir"
)

// TestRead: what is read is the resource as it came, at the watermark; what is
// deleted is not there.
func TestRead(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), group(t, "g", `,"name":"a < b & c","quantity":1.50`), obs(t, "o", "a", ""))
	read := func(path string, want int) []byte {
		t.Helper()
		resp, body := m.get(path)
		if resp.StatusCode != want {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
		return body
	}
	whole := read("/fhir/Group/g", http.StatusOK)
	if !bytes.Contains(whole, []byte(`"name":"a < b & c","quantity":1.50`)) {
		t.Errorf("%s", whole)
	}
	if found := read("/fhir/Group?name=a%20%3C", http.StatusOK); !bytes.Contains(found, whole) || !bytes.Contains(found, []byte(`"total":1`)) {
		t.Errorf("%s", found)
	}
	if found := read("/fhir/Group?name=b", http.StatusOK); !bytes.Contains(found, []byte(`"total":0`)) {
		t.Errorf("%s", found)
	}
	read("/fhir/Patient/a", http.StatusOK)
	read("/fhir/Observation/o", http.StatusNotFound)
	m.apply(deletion(t, "Patient/a"), group(t, "g", `,"name":"b"`))
	m.restart()
	m.apply()
	read("/fhir/Patient/a", http.StatusNotFound)
	if found := read("/fhir/Group?name=b", http.StatusOK); !bytes.Contains(found, read("/fhir/Group/g", http.StatusOK)) {
		t.Errorf("%s", found)
	}
}

// TestReadPages: a page of large Groups ends before it is too large, and all pages
// together have each Group once, in the order of the ids, whatever that of the
// rows is.
func TestReadPages(t *testing.T) {
	m := newMachine(t)
	of := func(id string, size int) store.Change {
		return group(t, id, fmt.Sprintf(`,"name":%q`, strings.Repeat("x", size)))
	}
	m.apply(of("c", 5<<20), of("a", 10), of("d", 10), of("b", 5<<20), of("e", 10), of("f", 9<<20))
	var pages []string
	for path := "/fhir/Group?_count=3"; path != ""; {
		resp, body := m.get(path)
		var set struct {
			Total int
			Link  []struct{ Relation, URL string }
			Entry []struct{ Resource struct{ ID string } }
		}
		m.must(json.Unmarshal(body, &set))
		if resp.StatusCode != http.StatusOK || set.Total != 6 {
			t.Errorf("%s: %s, total %d", path, resp.Status, set.Total)
		}
		ids := ""
		for _, e := range set.Entry {
			ids += e.Resource.ID
		}
		pages, path = append(pages, ids), ""
		for _, l := range set.Link {
			if l.Relation == "next" {
				path = "/fhir" + strings.TrimPrefix(l.URL, public)
			}
		}
	}
	if want := []string{"ab", "cde", "f"}; !slices.Equal(pages, want) {
		t.Errorf("%v, want %v", pages, want)
	}
}

// TestBinary: the content of a Binary from the real store, in ranges, as long as a
// resource refers to it at the watermark, also after a restart; nothing of it is in
// the log.
func TestBinary(t *testing.T) {
	m := newMachine(t)
	want := make([]byte, 3<<20)
	_, _ = rand.Read(want)
	binary := changed(t, fmt.Sprintf(`{"resourceType":"Binary","id":"b","contentType":"application/pdf","data":%q}`, base64.StdEncoding.EncodeToString(want)))
	document := func(body string, refs ...string) store.Change {
		ch := changed(t, `{"resourceType":"DocumentReference","id":"d","text":{"div":"`+body+`"}}`)
		ch.References = nil
		for _, ref := range refs {
			ch.References = append(ch.References, key(t, ref))
		}
		return ch
	}
	read := func(status int, header ...string) (*http.Response, []byte) {
		t.Helper()
		resp, body := m.get("/fhir/Binary/b", header...)
		if resp.StatusCode != status {
			t.Fatalf("%v: %s, want %d", header, resp.Status, status)
		}
		return resp, body
	}
	m.apply(binary)
	read(http.StatusNotFound)
	m.apply(document("refers", "Binary/b"))
	resp, got := read(http.StatusOK)
	if !bytes.Equal(got, want) || resp.Header.Get("Content-Type") != "application/pdf" || resp.ContentLength != int64(len(want)) {
		t.Errorf("%d bytes, %v", len(got), resp.Header)
	}
	tag := resp.Header.Get("ETag")
	m.restart()
	m.apply()
	part, rest := read(http.StatusPartialContent, "Range", "bytes=1000001-", "If-Range", tag)
	if !bytes.Equal(rest, want[1000001:]) || part.Header.Get("ETag") != tag {
		t.Errorf("the rest after a restart is another: %d bytes, %v", len(rest), part.Header)
	}
	read(http.StatusNotModified, "If-None-Match", tag)
	if _, whole := read(http.StatusOK, "Accept", "application/fhir+json"); !bytes.Contains(whole, []byte(base64.StdEncoding.EncodeToString(want[:99]))) {
		t.Errorf("the resource: %.200s", whole)
	}
	m.apply(document("refers no more"))
	read(http.StatusNotFound)
	m.apply(document("refers again", "Binary/b"))
	read(http.StatusOK)
	m.apply(deletion(t, "DocumentReference/d"))
	read(http.StatusNotFound)
	m.apply(document("refers again", "Binary/b"))
	read(http.StatusOK)
	m.apply(deletion(t, "Binary/b"))
	read(http.StatusNotFound)
	if log := m.log.String(); strings.Contains(log, "Binary/b") || strings.Contains(log, "pdf") {
		t.Errorf("the log tells what was read: %s", log)
	}
}

// changed is a change as a record with the resource brings it.
func changed(t *testing.T, body string) store.Change {
	t.Helper()
	var s fhir.Scanner
	r, err := s.Scan([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return store.Change{Key: r.Key, Body: r.Body, Meta: r.Meta, Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None, Patients: r.Patients, References: r.References}
}

// dated is a connection that counts how often its deadline moves.
type dated struct {
	*httptest.ResponseRecorder
	moved int
}

func (d *dated) SetWriteDeadline(time.Time) error { d.moved++; return nil }

// TestBinarySlow: a client that takes a large Binary slowly is given time as long as
// it takes some.
func TestBinarySlow(t *testing.T) {
	db := newStore(t)
	db.Put(key(t, "Binary/b"), 1, apitest.Links{More: `,"data":"` + strings.Repeat("AAAA", 1<<20) + `"`})
	db.Put(key(t, "DocumentReference/d"), 1, apitest.Links{Refers: []fhir.Key{key(t, "Binary/b")}})
	for _, accept := range []string{"*/*", "application/fhir+json"} {
		r := httptest.NewRequest(http.MethodGet, "http://localhost/fhir/Binary/b", nil)
		r.Header.Set("Accept", accept)
		d := &dated{ResponseRecorder: httptest.NewRecorder()}
		newServer(t, api.Options{Store: db}).Handler().ServeHTTP(d, r)
		if d.Code != http.StatusOK || d.Body.Len() < 3<<20 || d.moved < 4 {
			t.Errorf("%s: %d, %d bytes, the deadline moved %d times", accept, d.Code, d.Body.Len(), d.moved)
		}
	}
}
