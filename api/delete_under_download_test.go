package api_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
)

func TestDeleteUnderDownload(t *testing.T) {
	m := newMachine(t)
	noise := strings.Repeat("It was the best of times, it was the worst of times. ", 400)
	var all []store.Change
	for i := range 20 {
		all = append(all, resource(t, fmt.Sprintf("Observation/%d", i), 1, fmt.Sprint(i, noise)))
	}
	m.apply(all...)
	m.apply(resource(t, "Observation/7", 2, "short"))
	jobs := export.New(export.Of(m.db), export.Options{})
	id, err := jobs.Start(t.Context(), export.Request{Since: fhir.None, Upto: fhir.None})
	m.must(err)
	d, err := jobs.Open(t.Context(), id, 1)
	m.must(err)
	m.must(jobs.Delete(t.Context(), id))
	var b bytes.Buffer
	if err := d.Write(&b, true, 0, d.Size(true)); err != nil {
		t.Errorf("a download under way when its job was deleted: %v", err)
	}
	m.gunzip(b.Bytes())
	m.must(d.Close())
}
