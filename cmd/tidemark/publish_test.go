package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/cmd/tidemark/internal/bulkclient"
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
