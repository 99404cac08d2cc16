package main

import (
	"bufio"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/backfill"
	"tidemark/cmd/tidemark/internal/extract"
	"tidemark/cmd/tidemark/internal/hospital"
	"tidemark/store/fhir"
)

// BenchmarkLoad is how fast NDJSON goes to a topic, against copying the same lines there
// with the same producer and looking at none of them.
func BenchmarkLoad(b *testing.B) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "copy", "load"))
	if err != nil {
		b.Fatal(err)
	}
	defer cluster.Close()
	path, size := benchExtract(b)
	writer := func(topic string) *backfill.Writer {
		w, err := backfill.NewWriter(topic, 0, kgo.SeedBrokers(cluster.ListenAddrs()...))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(w.Close)
		return w
	}
	b.Run("copy", func(b *testing.B) {
		w := writer("copy")
		b.SetBytes(size)
		for b.Loop() {
			copyLines(b, w, path)
		}
	})
	b.Run("load", func(b *testing.B) {
		w := writer("load")
		e, err := extract.Find([]string{path})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(size)
		for b.Loop() {
			if _, err := backfill.Run(b.Context(), e.Files, w, nil, backfill.Options{At: fhir.None, Ages: true}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("look", func(b *testing.B) { // --dry-run
		e, err := extract.Find([]string{path})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(size)
		for b.Loop() {
			if _, err := backfill.Run(b.Context(), e.Files, nil, nil, backfill.Options{At: fhir.None}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// benchExtract is a file with what a hospital has.
func benchExtract(b *testing.B) (path string, size int64) {
	b.Helper()
	has := map[string]string{}
	for rec := range hospital.New(hospital.Options{Seed: 5, Patients: 50, Past: &hospital.Habits{}}).History {
		has[string(rec.Key)] = string(rec.Value)
	}
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(has)) {
		text.WriteString(has[key] + "\n")
	}
	path = filepath.Join(b.TempDir(), "all.ndjson")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	return path, int64(text.Len())
}

// copyLines sends lines as they are, under keys that say nothing.
func copyLines(b *testing.B, w *backfill.Writer, path string) {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 1<<20), 1<<24)
	for lines.Scan() {
		line := slices.Clone(lines.Bytes())
		w.Put(b.Context(), &kgo.Record{Key: line[:min(48, len(line))], Value: line}, func(err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	if err := w.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}
