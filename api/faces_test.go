package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"tidemark/api"
	"tidemark/api/apitest"
	"tidemark/store"
	"tidemark/store/fhir"
)

// TestSeparateStatus: whoever asks for it learns the status of a job apart from
// that of the poll, while it is planned, when it has failed, and not else.
func TestSeparateStatus(t *testing.T) {
	db := apitest.New(instant(t, "2026-01-02T12:00:00.000Z"))
	at := instant(t, "2026-01-02T10:00:00.000Z")
	db.Put(key(t, "Patient/a"), at, apitest.Links{Patients: []string{"a"}})
	db.Put(key(t, "Observation/o"), at, apitest.Links{Patients: []string{"a"}, Refers: []fhir.Key{key(t, "Practitioner/dr")}})
	db.Put(key(t, "Practitioner/dr"), at, apitest.Links{})
	planning, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	db.OnRead = func() { once.Do(func() { close(planning) }); <-goOn }
	s, err := api.New(api.Options{PublicURL: public, Store: db, PollsPerMinute: 1_000_000}) // it is asked until it has failed
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	defer runs(t, s)()

	ask := func(method, url, prefer, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, server.URL+"/fhir"+strings.TrimPrefix(url, public), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "application/fhir+json")
		req.Header.Set("Prefer", "respond-async"+prefer)
		req.Header.Set("Content-Type", "application/fhir+json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	const ofA = `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/a"}}]}`
	told := ask("POST", "/Patient/$export", ", separate-export-status", ofA).Header.Get("Content-Location")
	plain := ask("POST", "/Patient/$export", "", ofA).Header.Get("Content-Location")
	<-planning
	expect := func(when, url string, status int, job string) {
		t.Helper()
		if resp := ask("GET", url, "", ""); resp.StatusCode != status || resp.Header.Get("X-Export-Status") != job {
			t.Errorf("%s: %d, X-Export-Status %q, want %d, %q", when, resp.StatusCode, resp.Header.Get("X-Export-Status"), status, job)
		}
	}
	expect("while it is planned", told, 200, "202 Accepted")
	expect("while it is planned, nobody asked", plain, 202, "")
	db.Break(fmt.Errorf("read of a disk: %w", store.ErrCorrupt))
	close(goOn)
	for ask("GET", plain, "", "").StatusCode == http.StatusAccepted || ask("GET", told, "", "").Header.Get("X-Export-Status") == "202 Accepted" {
	}
	expect("when it has failed", told, 200, "500 Internal Server Error")
	expect("when it has failed, nobody asked", plain, 500, "")
	if ask("DELETE", told, "", ""); t.Failed() {
		return
	}
	expect("when it is deleted", told, 404, "")
}

// TestMaximumFileSize: no file is larger than the client can take, whether it is
// sent as it is stored or written for the job.
func TestMaximumFileSize(t *testing.T) {
	m := newMachine(t)
	m.file = 100 << 20
	m.restart()
	noise := strings.Repeat("It was the best of times, it was the worst of times. ", 400)
	var all []store.Change
	for i := range 150 { // 3 MB
		all = append(all, resource(t, fmt.Sprintf("Observation/%d", i), 1, fmt.Sprint(i, noise)))
	}
	m.apply(all...)
	for _, query := range []string{"", "&_elements=text"} {
		for limit, least := range map[string]int{"": 1, "&_maximumFileSize=1048576": 3, "&_maximumFileSize=1000000000": 1} {
			_, _, status, text := m.kick("GET", "/", "?_type=Observation"+query+limit, "")
			var doc manifest
			m.must(json.Unmarshal([]byte(text), &doc))
			rows := 0
			for _, f := range doc.Output {
				if rows += f.Count; f.Extension.Bytes > 1<<20 && least > 1 {
					t.Errorf("%s%s: a file of %d bytes", query, limit, f.Extension.Bytes)
				}
				_, body := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
				f.prove(t, body)
			}
			if status != 200 || rows != 150 || len(doc.Output) < least || least == 1 && len(doc.Output) != 1 {
				t.Errorf("%s%s: %d, %d files, %d rows", query, limit, status, len(doc.Output), rows)
			}
		}
	}
}
