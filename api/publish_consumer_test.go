package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"testing"
)

// A consumer follows what is published as the guide's text says and no more
// cleverly (Bulk Data 4.0, "Bulk Publish"): a page at a time, all of output, then
// all of deleted; the last page again until it leads on; back to the root and an
// empty data set after #closed, or where a page is gone.
type consumer struct {
	t    testing.TB
	name string
	base string // of the server, in place of public_url

	has  map[string]string // by Type/id: version
	page string            // where it waits: a URL; "" before the first root
	tag  string            // of that page

	lets func(body []byte) bool // whether an answer may be given; nil: all

	resets, pages, unchanged int
	seen                     map[string]bool // URLs of files
}

type publishedManifest struct {
	ManifestType, TransactionTime, OutputFormat, UpdateCadence string
	RequiresAccessToken                                        *bool
	Output, Deleted, Outcome                                   []publishedFile
	Link                                                       []struct{ Relation, URL string }
}

type publishedFile struct {
	Type, URL string
	Count     int
	FileSize  int64

	CountSeverity []struct {
		Code  string
		Count int
	}
	Extension []struct{ URL, ValueString string }
}

func (c *consumer) get(url, tag string) (int, http.Header, []byte) {
	c.t.Helper()
	rest, ours := strings.CutPrefix(url, public)
	if !ours {
		c.t.Errorf("the URL %s does not begin with public_url", url)
	}
	req, err := http.NewRequest(http.MethodGet, c.base+"/fhir"+rest, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if tag != "" {
		req.Header.Set("If-None-Match", tag)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.lets != nil && !c.lets(body) {
		c.t.Errorf("%s: %s holds what is withheld: %s", c.name, url, body)
	}
	return resp.StatusCode, resp.Header, body
}

// poll goes as far as there is something new; false if the server has no root.
func (c *consumer) poll() bool {
	c.t.Helper()
	for {
		root := c.page == ""
		url := c.page
		if root {
			url = public + "/$bulk-publish"
		}
		status, head, body := c.get(url, c.tag)
		switch {
		case status == http.StatusNotModified && c.tag != "":
			c.unchanged++
			return true
		case status == http.StatusServiceUnavailable && root:
			return false
		case (status == http.StatusGone || status == http.StatusNotFound) && !root:
			c.reset()
			continue
		case status != http.StatusOK:
			c.t.Fatalf("%s: %s: %d %s", c.name, url, status, body)
		}
		m := c.read(body)
		if root {
			c.has = map[string]string{}
			if !c.apply(m, false) {
				c.reset()
				continue
			}
		}
		switch next := m.Link[0].URL; next {
		case "#closed":
			c.reset()
		case "#pending":
			if root {
				c.t.Errorf("%s: the root is #pending", c.name)
			}
			c.tag = head.Get("ETag")
			return true
		default:
			if !c.follow(next, root) {
				c.reset()
			}
		}
	}
}

// follow goes to a page that was found and takes what it has. Its link is looked
// at by the next request for it.
func (c *consumer) follow(url string, fromRoot bool) bool {
	c.t.Helper()
	status, _, body := c.get(url, "")
	if status == http.StatusGone || status == http.StatusNotFound {
		return false
	}
	if status != http.StatusOK {
		c.t.Fatalf("%s: %s: %d %s", c.name, url, status, body)
	}
	m := c.read(body)
	stub := strings.HasSuffix(url, "/stub")
	if files := len(m.Output) + len(m.Deleted) + len(m.Outcome); fromRoot && !stub || stub != (files == 0) {
		c.t.Errorf("%s: a stub has files, or a page has none: %s", c.name, body)
	}
	c.page, c.tag = url, ""
	c.pages++
	return c.apply(m, true)
}

func (c *consumer) reset() {
	c.page, c.tag = "", ""
	c.resets++
}

func (c *consumer) read(body []byte) (m publishedManifest) {
	c.t.Helper()
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		c.t.Fatalf("%s: %v: %s", c.name, err, body)
	}
	if len(m.Link) != 1 || m.Link[0].Relation != "next" || m.RequiresAccessToken == nil || *m.RequiresAccessToken {
		c.t.Fatalf("%s: %s", c.name, body)
	}
	return m
}

// apply takes the files of a page, false if one is gone. Pages behind the root
// bring nothing that was there already: each change comes once.
func (c *consumer) apply(m publishedManifest, increment bool) bool {
	c.t.Helper()
	here := map[string]bool{}
	for _, f := range m.Output {
		lines, ok := c.file(f)
		if !ok {
			return false
		}
		for _, line := range lines {
			var r struct {
				ResourceType, ID string
				Meta             struct{ VersionID string }
			}
			if err := json.Unmarshal(line, &r); err != nil || r.ResourceType != f.Type {
				c.t.Fatalf("%s: %v: a line of a file of %s: %s", c.name, err, f.Type, line)
			}
			ref := r.ResourceType + "/" + r.ID
			if here[ref] {
				c.t.Errorf("%s: %s stands twice in one page", c.name, ref)
			}
			here[ref] = true
			if increment && c.has[ref] == r.Meta.VersionID {
				c.t.Errorf("%s: version %s of %s came twice", c.name, r.Meta.VersionID, ref)
			}
			c.has[ref] = r.Meta.VersionID
		}
	}
	for _, f := range m.Deleted {
		lines, ok := c.file(f)
		if !ok {
			return false
		}
		for _, line := range lines {
			var b struct {
				ResourceType, Type string
				Entry              []struct{ Request struct{ Method, URL string } }
			}
			if err := json.Unmarshal(line, &b); err != nil || b.Type != "transaction" || len(b.Entry) != 1 || b.Entry[0].Request.Method != http.MethodDelete {
				c.t.Fatalf("%s: %v: a line of deleted: %s", c.name, err, line)
			}
			ref := b.Entry[0].Request.URL
			if here[ref] {
				c.t.Errorf("%s: %s lives and is deleted in one page", c.name, ref)
			}
			delete(c.has, ref)
		}
	}
	for _, f := range m.Outcome {
		if _, ok := c.file(f); !ok {
			return false
		}
	}
	return true
}

func (c *consumer) file(f publishedFile) ([][]byte, bool) {
	c.t.Helper()
	status, _, body := c.get(f.URL, "")
	if status == http.StatusGone || status == http.StatusNotFound {
		return nil, false
	}
	lines := bytes.SplitAfter(body, []byte("\n"))
	lines = lines[:len(lines)-1]
	if status != http.StatusOK || len(lines) != f.Count || int64(len(body)) != f.FileSize || f.Count == 0 {
		c.t.Fatalf("%s: %s: %d, %d lines in %d bytes, the manifest says %d in %d", c.name, f.URL, status, len(lines), len(body), f.Count, f.FileSize)
	}
	for _, x := range f.Extension {
		if sum := fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)); strings.HasSuffix(x.URL, "/tidemark-crc32") && x.ValueString != sum {
			c.t.Errorf("%s: %s: CRC-32 %s, the manifest says %s", c.name, f.URL, sum, x.ValueString)
		}
	}
	if c.seen != nil {
		c.seen[f.URL] = true
	}
	return lines, true
}

func (c *consumer) String() string {
	return fmt.Sprintf("%s: %d resources, %d pages, %d resets, %d times nothing new", c.name, len(c.has), c.pages, c.resets, c.unchanged)
}
