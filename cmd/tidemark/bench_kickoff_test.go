package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tidemark/api"
	"tidemark/api/audit"
	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
)

// BenchmarkKickOff is the time from sending a kick-off to having read the
// manifest, over HTTP, beside one synced write to the same disk, which no
// durable answer can do without. The store must not matter.
func BenchmarkKickOff(b *testing.B) {
	least := map[string]time.Duration{} // the median at the smallest size
	for _, n := range []int{10_000, 100_000, 1_000_000} {
		stored := sync.OnceValue(func() *kickOffStore { return newKickOffStore(b, n) })
		for _, kind := range []string{"full", "since"} {
			b.Run(fmt.Sprintf("%s/resources=%d", kind, n), func(b *testing.B) {
				s := stored()
				params := url.Values{}
				if kind == "since" {
					params.Set("_since", s.middle.String())
				}
				var took, synced []time.Duration
				for b.Loop() {
					for range 200 {
						took = append(took, s.kickOff(b, params))
						synced = append(synced, s.sync(b))
					}
				}
				p50 := quantile(took, 0.5)
				if least[kind] == 0 {
					least[kind] = p50
				}
				report(b, map[string]float64{
					"p50-ms": milliseconds(p50), "p99-ms": milliseconds(quantile(took, 0.99)),
					"x-sync": p50.Seconds() / quantile(synced, 0.5).Seconds(), "sync-p99-ms": milliseconds(quantile(synced, 0.99)),
					"x-smallest": p50.Seconds() / least[kind].Seconds(),
					"segments":   float64(s.db.Status().Segments),
				})
			})
		}
	}
}

// BenchmarkKickOffAudited is the same on a store of 10,000 resources, without a trail and
// with one that is required, and one synced write alone, by turns: a kick-off's line is
// synced before its answer leaves, its DELETE's before that is done.
func BenchmarkKickOffAudited(b *testing.B) {
	s := newKickOffStore(b, 10_000)
	trail, err := audit.Open(audit.Options{Dir: filepath.Join(b.TempDir(), "audit"), Required: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = trail.Close() })
	audited := &kickOffStore{db: s.db, count: s.count, base: s.base, file: s.file}
	audited.serve(b, trail)
	var without, with, synced []time.Duration
	for b.Loop() {
		for range 200 {
			without = append(without, s.kickOff(b, nil))
			with = append(with, audited.kickOff(b, nil))
			synced = append(synced, s.sync(b))
		}
	}
	report(b, map[string]float64{
		"p50-ms": milliseconds(quantile(with, 0.5)), "p99-ms": milliseconds(quantile(with, 0.99)),
		"without-p50-ms": milliseconds(quantile(without, 0.5)), "without-p99-ms": milliseconds(quantile(without, 0.99)),
		"sync-p50-ms": milliseconds(quantile(synced, 0.5)), "sync-p99-ms": milliseconds(quantile(synced, 0.99)),
		"x-without": quantile(with, 0.5).Seconds() / quantile(without, 0.5).Seconds(),
	})
}

// A kickOffStore is a served store of small resources.
type kickOffStore struct {
	db     *store.DB
	base   string
	count  int
	middle fhir.Instant // half of the resources changed after it
	file   *os.File
}

func newKickOffStore(b *testing.B, n int) *kickOffStore {
	b.Helper()
	dir := b.TempDir()
	// Many commits, so that a large store has many segments, as one has that
	// grew by and by.
	db, end := openStore(b, filepath.Join(dir, "store"), store.Options{CommitSize: 2 << 20})
	b.Cleanup(end)
	s := &kickOffStore{db: db, count: n}
	s.fill(b)
	var err error
	if s.file, err = os.Create(filepath.Join(dir, "synced")); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.file.Close() })
	s.serve(b, nil)
	for merged := true; merged; { // what merges would do during the measurement is done before
		if merged, err = db.Merge(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// fill stores history and ends the bootstrap.
func (s *kickOffStore) fill(b *testing.B) {
	b.Helper()
	const perBatch = 2000
	p := store.Partition{Topic: "small"}
	if err := s.db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: p, End: int64(s.count)}}}); err != nil {
		b.Fatal(err)
	}
	begin := fhir.FromTime(epochs[1])
	s.middle = begin + fhir.Instant(s.count/2)
	for at := 0; at < s.count; at += perBatch {
		batch := store.Batch{Partition: p, Next: int64(min(s.count, at+perBatch)), End: int64(s.count), LeaderEpoch: -1, Asked: s.db.Now()}
		for i := at; i < int(batch.Next); i++ {
			batch.Changes = append(batch.Changes, smallChange(i, begin+fhir.Instant(i)))
		}
		if err := s.db.Apply(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.db.Flush(); err != nil {
		b.Fatal(err)
	}
	if st := s.db.Status(); !st.Ready || st.Rows != int64(s.count) {
		b.Fatalf("the store has %d rows, ready: %t", st.Rows, st.Ready)
	}
}

// smallTypes are as many as an ordinary export has files.
var smallTypes = []string{"Condition", "Encounter", "Immunization", "MedicationRequest", "Observation", "Procedure", "Claim", "DiagnosticReport"}

func smallChange(i int, at fhir.Instant) store.Change {
	kind, _ := fhir.ParseType(smallTypes[i%len(smallTypes)])
	patient := fmt.Sprintf("p%d", i%997)
	key := fhir.Key{Type: kind, ID: fmt.Sprintf("%08x-1111-4111-8111-%012x", uint32(i*2654435761), i)}
	return store.Change{
		Key: key, Version: 1, LastUpdated: at, Time: fhir.None, Timestamp: at, Offset: int64(i), Patients: []string{patient},
		Body: fmt.Appendf(nil, `{"resourceType":"%s","id":"%s","meta":{"versionId":"1","lastUpdated":"%s"},"subject":{"reference":"Patient/%s"},"status":"final"}`,
			kind, key.ID, at, patient),
	}
}

// serve starts a server, with a trail or nil.
func (s *kickOffStore) serve(b *testing.B, trail *audit.Trail) {
	b.Helper()
	address := anyPort(b)
	s.base = "http://" + address + "/fhir"
	server, err := api.New(api.Options{Store: export.Of(s.db), Listen: address, PublicURL: s.base, Audit: trail})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := server.Listen(); err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
}

// kickOff times one export up to its manifest, proves the manifest whole and
// deletes the job.
func (s *kickOffStore) kickOff(b *testing.B, params url.Values) time.Duration {
	b.Helper()
	start := time.Now()
	m, job, err := kickOff(s.base, params)
	took := time.Since(start)
	if err != nil {
		b.Fatal(err)
	}
	want := int64(s.count)
	if len(params) > 0 {
		want -= int64(s.count)/2 + 1 // the one at _since itself is not after it
	}
	if got := manifestCount(b, m.Output); got != want {
		b.Fatalf("the manifest counts %d resources, want %d", got, want)
	}
	endJob(b, job)
	return took
}

// sync times one small synced write.
func (s *kickOffStore) sync(b *testing.B) time.Duration {
	b.Helper()
	var page [512]byte
	start := time.Now()
	if _, err := s.file.Write(page[:]); err != nil {
		b.Fatal(err)
	}
	if err := s.file.Sync(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}
