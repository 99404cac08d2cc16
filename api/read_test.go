package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"tidemark/store"
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
