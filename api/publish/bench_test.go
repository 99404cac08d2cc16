package publish_test

import (
	"fmt"
	"testing"

	"tidemark/api/apitest"
	"tidemark/api/publish"
	"tidemark/store/fhir"
)

// BenchmarkRoot is a request for the root while two weeks of pages are kept.
func BenchmarkRoot(b *testing.B) {
	db := apitest.New(0)
	p, err := publish.New(db, publish.Options{Types: []fhir.Type{typ(b, "Organization")}})
	if err != nil {
		b.Fatal(err)
	}
	for n := range 336 {
		db.Put(key(b, fmt.Sprintf("Organization/%d", n)), fhir.Instant(n), apitest.Links{})
		db.SetWatermark(fhir.Instant(n))
		if err := p.Publish(b.Context(), n%168 == 0); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := p.Root(); err != nil {
			b.Fatal(err)
		}
	}
}
