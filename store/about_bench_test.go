package store

import (
	"fmt"
	"testing"

	"tidemark/store/fhir"
)

// BenchmarkCommitProvenance is what the store takes to commit Provenance of which each is
// about three resources: those that are there, that are awaited, that all are the same
// and awaited, and the resources that come when theirs is there.
func BenchmarkCommitProvenance(b *testing.B) {
	for _, kind := range []string{"there", "awaited", "awaited by all", "coming"} {
		b.Run(kind, func(b *testing.B) {
			const perBatch = 10_000
			db, err := Open(b.TempDir(), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			f := newFeed(b, db)
			n := 0
			provenance := func() (list []Change) {
				for i := range perBatch {
					var about []fhir.Key
					for j := range 3 {
						about = append(about, fhir.Key{Type: observationType, ID: fmt.Sprintf("o-%d-%d", n, 3*i+j)})
						if kind == "awaited by all" {
							about[j].ID = fmt.Sprint("o", j)
						}
					}
					list = append(list, provenanceOf(fmt.Sprintf("p-%d-%d", n, i), about...))
				}
				return list
			}
			observations := func() (list []Change) {
				for i := range 3 * perBatch {
					list = append(list, observationOf(fmt.Sprintf("o-%d-%d", n, i), fmt.Sprint(i/100), ""))
				}
				return list
			}
			for b.Loop() {
				b.StopTimer()
				n++
				list := provenance()
				switch kind {
				case "there":
					f.commit(observations()...)
				case "coming":
					f.commit(list...)
					list = observations()
				}
				b.StartTimer()
				f.commit(list...)
			}
			b.ReportMetric(float64(b.N*perBatch)/b.Elapsed().Seconds(), "Provenance/s")
		})
	}
}
