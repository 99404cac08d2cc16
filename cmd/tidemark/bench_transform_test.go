package main

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/flate"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// BenchmarkTransform is how fast a job is planned that must read bodies, in NDJSON
// that is read on one core, beside what no such job can do without: inflating the
// same blocks and, of what is written, deflating it. All of it is time of a
// processor: what else the machine does is no matter then.
func BenchmarkTransform(b *testing.B) {
	dir := b.TempDir()
	db, end := openStore(b, filepath.Join(dir, "store"), store.Options{MergeOff: true})
	defer end()
	size := fillCorpus(b, db)
	inflate, deflate := bounds(b, filepath.Join(dir, "store", "segments"))
	jobs := export.New(export.Of(db), export.Options{})
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- jobs.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}()
	var filters []string
	for _, t := range fhir.AllTypes() { // so that everything is read
		filters = append(filters, t.String()+"?_id=none")
	}
	for name, q := range map[string]export.Request{
		"filter=none":     {Filters: filters},
		"filter=category": {Filters: append([]string{"Observation?category=laboratory&date=gt2015"}, filters...)},
		"elements=id":     {Elements: []string{"id"}},
		"elements=most":   {Elements: []string{"code", "subject", "patient", "value", "effective", "item", "status", "type", "billablePeriod", "text", "component"}},
		"filter,elements": {Filters: filters, Elements: []string{"id"}},
		"by=Patient":      {By: typeNamed("Patient")},
		"by=Practitioner": {By: typeNamed("Practitioner")},
	} {
		b.Run(name, func(b *testing.B) {
			q.Since, q.Upto = fhir.None, fhir.None
			var took time.Duration
			written := int64(0)
			for b.Loop() {
				start := processorTime(b)
				id, err := jobs.Start(b.Context(), q)
				if err != nil {
					b.Fatal(err)
				}
				written = 0
				for _, f := range planned(b, jobs, id).Files {
					written += f.Bytes
				}
				took += processorTime(b) - start
				if err := jobs.Delete(b.Context(), id); err != nil {
					b.Fatal(err)
				}
			}
			perJob := took.Seconds() / float64(b.N)
			bound := inflate.Seconds()
			if len(q.Elements) > 0 || q.By != 0 {
				bound += deflate.Seconds() * float64(written) / float64(size)
			}
			report(b, map[string]float64{
				"MB/s": float64(size) / 1e6 / perJob, "x-bound": perJob / bound,
				"written-MB": float64(written) / 1e6, "read-MB": float64(size) / 1e6,
			})
		})
	}
}

func typeNamed(name string) fhir.Type {
	t, _ := fhir.ParseType(name)
	return t
}

func planned(b *testing.B, jobs *export.Jobs, id string) export.Manifest {
	for {
		m, err := jobs.Manifest(id)
		if _, working := errors.AsType[*export.WorkingError](err); !working {
			if err != nil {
				b.Fatal(err)
			}
			return m
		}
		time.Sleep(time.Millisecond)
	}
}

// fillCorpus stores the corpus and returns how much NDJSON it is.
func fillCorpus(b *testing.B, db *store.DB) (size int64) {
	samples := corpus(b)
	p := store.Partition{Topic: "corpus"}
	if err := db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: p, End: int64(len(samples))}}}); err != nil {
		b.Fatal(err)
	}
	var scanner fhir.Scanner
	for at := 0; at < len(samples); {
		batch := store.Batch{Partition: p, End: int64(len(samples)), LeaderEpoch: -1, Asked: db.Now()}
		for ; at < len(samples) && len(batch.Changes) < 1000; at++ {
			r, err := scanner.Scan(samples[at].stamped(1, epochs[1]))
			if err != nil {
				b.Fatal(err)
			}
			size += int64(len(r.Body)) + 1
			batch.Changes = append(batch.Changes, store.Change{
				Key: r.Key, Body: r.Body, Meta: r.Meta, Patients: r.Patients, References: r.References, Members: r.Members,
				Version: 1, LastUpdated: r.LastUpdated, Time: fhir.None, Timestamp: r.LastUpdated, Offset: int64(at),
			})
		}
		batch.Next = int64(at)
		if err := db.Apply(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	if err := db.Flush(); err != nil {
		b.Fatal(err)
	}
	return size
}

// bounds is how long one core inflates all bodies, and deflates them anew.
func bounds(b *testing.B, dir string) (inflate, deflate time.Duration) {
	names, err := filepath.Glob(filepath.Join(dir, "*.ndjson.gz"))
	if err != nil || len(names) == 0 {
		b.Fatal(len(names), err)
	}
	w, err := flate.NewWriter(io.Discard, segment.FastLevel)
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range names {
		start := processorTime(b)
		if _, err := unzip(io.Discard, name); err != nil {
			b.Fatal(err)
		}
		inflate += processorTime(b) - start
		start = processorTime(b)
		if _, err := unzip(w, name); err != nil {
			b.Fatal(err)
		}
		deflate += processorTime(b) - start
	}
	return inflate, deflate - inflate
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
