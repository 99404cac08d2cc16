package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/manifest"
	"tidemark/store/fhir"
)

// publishedIs follows what the server publishes from its root on, until that is
// what an export of the types has; through how many pages does not matter but
// that there are some.
func publishedIs(t *testing.T, r *rig, types ...string) {
	want := r.linesOf(t, "$export")
	var scan fhir.Scanner
	maps.DeleteFunc(want, func(line string, _ bool) bool {
		res, err := scan.Scan([]byte(line))
		return err != nil || !slices.Contains(types, res.Key.Type.String())
	})
	var pages int
	var has map[string]string
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if pages, has = r.published(t); pages > 0 && maps.Equal(want, lines(has)) {
			t.Logf("%d resources behind a root and %d pages", len(has), pages)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a root and %d pages make %d resources, an export has %d", pages, len(has), len(want))
		}
	}
}

func lines(has map[string]string) map[string]bool {
	set := map[string]bool{}
	for _, line := range has {
		set[line] = true
	}
	return set
}

// published takes the root and all pages behind it.
func (r *rig) published(t *testing.T) (pages int, has map[string]string) {
	t.Helper()
	has = map[string]string{}
	for next := r.client.Base + "/$bulk-publish"; !strings.HasPrefix(next, "#"); {
		status, body, _ := strings.Cut(r.get(strings.TrimPrefix(next, strings.TrimSuffix(r.client.Base, "/fhir"))), " ")
		var m struct {
			Output, Deleted []bulkclient.File
			Link            []struct{ URL string }
		}
		if err := json.Unmarshal([]byte(body), &m); err != nil || status != "200" || len(m.Link) != 1 {
			t.Fatalf("%v: %s %s", err, status, body)
		}
		r.take(t, m.Output, m.Deleted, has)
		if len(m.Output)+len(m.Deleted) > 0 {
			pages++
		}
		next = m.Link[0].URL
	}
	return pages - 1, has
}

func (r *rig) take(t *testing.T, output, deleted []bulkclient.File, has map[string]string) {
	t.Helper()
	for _, f := range output {
		err := r.lines(t.Context(), f, func(line []byte) error {
			var s fhir.Scanner
			res, err := s.Scan(line)
			has[res.Key.String()] = string(line)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range deleted {
		err := r.lines(t.Context(), f, func(line []byte) error {
			keys, err := bulkclient.Deletions(line)
			for _, key := range keys {
				delete(has, key)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestPublishUnderPolicy: what the program publishes under a policy is what an export has
// under it, through kills; verify finds it whole; and a start under a policy that withholds
// more ends it.
func TestPublishUnderPolicy(t *testing.T) {
	t.Parallel() // it mostly waits
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "fhir-changes"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	r := newRig(t, cluster.ListenAddrs()[0], "fhir-changes", nil,
		"--set", "publish.types=Observation,Encounter,Patient", "--set", "publish.every=1s",
		"--set", "withhold.filters=Observation?category=vital-signs", "--set", "withhold.elements=Patient.name")
	r.write(r.hospital.History)
	r.start()
	whole := func() {
		t.Helper()
		r.until("there is a root", func() bool { return strings.HasPrefix(r.get("/fhir/$bulk-publish"), "200 ") })
		r.live(100)
		r.until("an export holds everything that was acknowledged", func() bool { return r.reaches(t).After(r.ledger.LastAcked()) })
		publishedIs(t, r, "Observation", "Encounter", "Patient")
	}
	for range 2 {
		whole()
		r.kill()
		r.live(50)
		r.start()
	}
	root := r.get("/fhir/$bulk-publish")
	r.verifyPublished(t, root)
	r.kill()
	r.args = append(r.args, "--set", "withhold.security=R")
	r.start()
	_, page, _ := strings.Cut(root, `/fhir/publish/`)
	page, _, _ = strings.Cut(page, `"`)
	if got := r.get("/fhir/publish/" + page); !strings.HasPrefix(got, "410 ") {
		t.Errorf("with more withheld a page that holds it is %.300s", got)
	}
	whole()
}

// reaches is up to when an export goes that is made now.
func (r *rig) reaches(t *testing.T) time.Time {
	t.Helper()
	job, err := r.client.Start(t.Context(), "$export", url.Values{"_type": {"Practitioner"}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := job.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m.TransactionTime
}

// verifyPublished has verify read a root and its files, which lack what is withheld.
func (r *rig) verifyPublished(t *testing.T, root string) {
	t.Helper()
	text := []byte(strings.TrimPrefix(root, "200 "))
	m, err := manifest.Read(text)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	page := filepath.Join(dir, "manifest.json")
	if err := os.WriteFile(page, text, 0o600); err != nil {
		t.Fatal(err)
	}
	files := slices.Concat(m.Output, m.Error)
	for _, f := range files {
		body := r.body(t, f.URL)
		if bytes.Contains(body, []byte("vital-signs")) || bytes.Contains(body, []byte(`"family"`)) {
			t.Errorf("%s holds what is withheld", f.Name())
		}
		if err := os.WriteFile(filepath.Join(dir, f.Name()), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := fmt.Sprintf("%d files proved by CRC-32", len(files))
	if got, code := command(t, "verify", "--ask", page); code != 0 || !strings.Contains(got, want) {
		t.Errorf("exit %d, want %q in:\n%s", code, want, got)
	}
}
