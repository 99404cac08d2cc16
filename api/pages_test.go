package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/api"
	"tidemark/api/apitest"
)

// A clerk plans jobs only as far as he is told to.
type clerk struct {
	t      *testing.T
	db     *apitest.Store
	server *httptest.Server
	stop   func()

	reached chan struct{} // a type is
	goOn    chan struct{} // with it
	free    func()        // to the end
	read    atomic.Int64  // types whose bodies were read
}

func (c *clerk) serve() {
	c.reached, c.goOn = make(chan struct{}), make(chan struct{})
	reached, goOn, end := c.reached, c.goOn, make(chan struct{})
	c.db.OnLines = func() {
		c.read.Add(1)
		select {
		case reached <- struct{}{}:
		case <-end:
		}
		select {
		case <-goOn:
		case <-end:
		}
	}
	c.free = sync.OnceFunc(func() { close(end) })
	s, err := api.New(api.Options{PublicURL: public, Store: c.db, Checkpoint: -1, FileMaxResources: 1, PollsPerMinute: 10_000})
	if err != nil {
		c.t.Fatal(err)
	}
	c.server = httptest.NewServer(s.Handler())
	stop := runs(c.t, s)
	c.stop = func() { c.free(); stop(); c.server.Close() }
}

// next lets the type at hand be written and waits until the next one is reached.
func (c *clerk) next() { c.goOn <- struct{}{}; <-c.reached }

func (c *clerk) ask(method, url string) (*http.Response, string) {
	c.t.Helper()
	req, err := http.NewRequest(method, c.server.URL+"/fhir"+strings.TrimPrefix(url, public), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/fhir+json")
	req.Header.Set("Prefer", "respond-async")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		c.t.Fatal(err)
	}
	return resp, string(text)
}

// until waits for a page.
func (c *clerk) until(url string) {
	c.t.Helper()
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(time.Millisecond) {
		if resp, _ := c.ask("GET", url); resp.StatusCode == http.StatusOK {
			return
		}
	}
	c.t.Fatalf("%s does not come", url)
}

type paged struct {
	manifest
	Link []struct{ Relation, URL string }
}

// page asks for a page that must be there.
func (c *clerk) page(url string, status int) (text string, p paged) {
	c.t.Helper()
	resp, text := c.ask("GET", url)
	if resp.StatusCode != status || json.Unmarshal([]byte(text), &p) != nil {
		c.t.Fatalf("%s: %s %s", url, resp.Status, text)
	}
	if len(p.Link) > 0 && p.Link[0].Relation != "next" {
		c.t.Errorf("%s: link %+v", url, p.Link)
	}
	return text, p
}

// files are those of a page, each with its lines.
func (c *clerk) files(p paged) (all []string) {
	c.t.Helper()
	for _, list := range [][]listed{p.Output, p.Deleted, p.Error} {
		for _, f := range list {
			resp, text := c.ask("GET", f.URL)
			if resp.StatusCode != 200 {
				c.t.Errorf("%s: %s", f.URL, resp.Status)
			}
			f.prove(c.t, []byte(text))
			all = append(all, f.Type+" "+text)
		}
	}
	return all
}

// TestPages: a client that allows it gets what is done of a job while the rest is
// planned, in pages that never change, also by a process that was killed; what is
// done is not done again; and the pages together are the manifest of whoever asks
// for one.
func TestPages(t *testing.T) {
	db := apitest.New(instant(t, "2026-01-02T12:00:00.000Z"))
	at := instant(t, "2026-01-02T10:00:00.000Z")
	for _, kind := range []string{"Condition", "Device", "Encounter", "Observation"} {
		for i := range 3 {
			db.Put(key(t, fmt.Sprintf("%s/%d", kind, i)), at, apitest.Links{})
		}
	}
	db.Delete(key(t, "Encounter/2"), at+1, apitest.Links{})
	db.Dead(at + 2)
	c := &clerk{t: t, db: db}
	c.serve()
	defer func() { c.stop() }()

	const query = "/$export?_elements=id&_since=2026-01-02T09:00:00Z"
	kickOff := func(query string) string {
		t.Helper()
		resp, text := c.ask("GET", query)
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%s %s", resp.Status, text)
		}
		return resp.Header.Get("Content-Location")
	}
	job := kickOff(query + "&allowPartialManifests=true")
	<-c.reached
	waits := func(url string) {
		t.Helper()
		if resp, text := c.ask("GET", url); resp.StatusCode != http.StatusAccepted || text != "" || resp.Header.Get("Retry-After") == "" || resp.Header.Get("X-Progress") == "" {
			t.Errorf("%s: %s %q %v", url, resp.Status, text, resp.Header)
		}
	}
	missing := func(url string) {
		t.Helper()
		if resp, _ := c.ask("GET", url); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", url, resp.Status)
		}
	}
	waits(job)
	c.next()
	c.next()
	text1, first := c.page(job, 202)
	if len(first.Output) != 6 || len(first.Link) != 1 {
		t.Fatalf("the first page: %s", text1)
	}
	got := c.files(first)
	second := first.Link[0].URL
	waits(second)
	missing(job + "/page/1")
	missing(job + "/page/3")
	if again, _ := c.page(job, 202); again != text1 {
		t.Errorf("the first page changed: %s, was %s", again, text1)
	}

	c.next()
	text2, p2 := c.page(second, 200)
	if len(p2.Output) != 2 || len(p2.Link) != 1 {
		t.Errorf("the second page: %s", text2)
	}
	got = append(got, c.files(p2)...)

	// Killed amid Observation: the pages are there at once, and no type is read again
	// that was done.
	db = db.Restart()
	c.read.Store(0)
	c.stop()
	c.db = db
	c.serve()
	if again, _ := c.page(job, 202); again != text1 {
		t.Errorf("after a restart the first page is %s, was %s", again, text1)
	}
	c.files(first)
	<-c.reached
	c.free()
	third := p2.Link[0].URL
	c.until(job)
	text3, p3 := c.page(third, 200)
	if len(p3.Link) != 0 || len(p3.Deleted) != 1 || len(p3.Error) != 1 || len(p3.Output) == 0 || p3.TransactionTime != first.TransactionTime {
		t.Errorf("the last page: %s", text3)
	}
	if n := c.read.Load(); n != 1 {
		t.Errorf("after a restart %d types were read, want the one that was not done", n)
	}
	if text, _ := c.page(job, 200); text != text1 {
		t.Errorf("at the end the first page is %s, was %s", text, text1)
	}
	if text, _ := c.page(second, 200); text != text2 {
		t.Errorf("at the end the second page is %s, was %s", text, text2)
	}
	missing(job + "/page/4")
	got = append(got, c.files(p3)...)

	c.db.OnLines = nil
	whole := kickOff(query)
	c.until(whole)
	_, one := c.page(whole, 200)
	if want := c.files(one); len(one.Link) != 0 || strings.Join(got, "") != strings.Join(want, "") {
		t.Errorf("the pages have\n%s\nthe whole manifest\n%s", strings.Join(got, ""), strings.Join(want, ""))
	}

	c.ask("DELETE", job)
	for _, url := range []string{job, second, third, first.Output[0].URL, p3.Output[0].URL} {
		missing(url)
	}
}
