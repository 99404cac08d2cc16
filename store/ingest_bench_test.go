package store

import (
	"bytes"
	"fmt"
	"testing"

	"tidemark/store/fhir"
)

// BenchmarkCommit is the store's share of ingest: judged, sealed, compressed,
// synced. Each change is 1.5 KB; MB/s are of NDJSON.
func BenchmarkCommit(b *testing.B) {
	for _, kind := range []string{"creates", "updates"} {
		b.Run(kind, func(b *testing.B) {
			const perBatch = 2000
			db, err := Open(b.TempDir(), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			f := newFeed(b, db)
			n := 0
			batch := func(wrap int) []Change {
				list := make([]Change, perBatch)
				for i := range list {
					list[i] = benchChange(n%wrap, n, db.Now())
					n++
				}
				return list
			}
			wrap := 1 << 60
			if kind == "updates" {
				wrap = 50_000
				for n < wrap {
					f.commit(batch(wrap)...)
				}
			}
			b.SetBytes(perBatch * 1500)
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				list := batch(wrap)
				b.StartTimer()
				f.commit(list...)
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N*perBatch)/b.Elapsed().Seconds(), "changes/s")
		})
	}
}

func benchChange(id, n int, at fhir.Instant) Change {
	key := fhir.Key{Type: observationType, ID: fmt.Sprintf("%08x-1111-4111-8111-%012x", uint32(id*2654435761), id)}
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"resourceType":"Observation","id":"%s","meta":{"versionId":"%d","lastUpdated":"%s"},"status":"final","subject":{"reference":"Patient/%d"}`, key.ID, n, at, id%500)
	for i := 0; b.Len() < 1480; i++ {
		fmt.Fprintf(&b, `,"component%d":{"code":"8302-%d","value":%d.%d,"unit":"cm"}`, i, (id*7+i)%97, (n*31+i*17)%300, n%10)
	}
	b.WriteString("}")
	return Change{Key: key, Body: b.Bytes(), Version: int64(n), LastUpdated: at, Time: fhir.None, Timestamp: at, Patients: []string{fmt.Sprint(id % 500)}}
}

var observationType, _ = fhir.ParseType("Observation")
