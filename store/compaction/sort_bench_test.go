package compaction

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// dated is a resource with the day on which it was written, as far as it says.
type dated struct {
	typ      fhir.Type
	patients uint32
	date     string
	line     []byte
}

var dates = regexp.MustCompile(`"(?:issued|recordedDate|authoredOn|created|start|effectiveDateTime|performedDateTime|occurrenceDateTime|date)":"(\d{4}-\d{2}-\d{2}[^"]*)"`)

// readDated reads the large set of synthetic patients, in which resources lie
// patient by patient: their own dates put them into the order in which a
// hospital would have written them.
func readDated(b *testing.B) (rows []dated) {
	dir := cmp.Or(os.Getenv("TIDEMARK_SYNTHEA_LARGE"), "../../../shared/data/synthea-large")
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson.gz"))
	if err != nil || len(files) == 0 {
		b.Skipf("no synthetic patients in %s: set TIDEMARK_SYNTHEA_LARGE", dir)
	}
	var scan fhir.Scanner
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			b.Fatal(err)
		}
		lines := bufio.NewScanner(z)
		lines.Buffer(nil, 64<<20)
		for lines.Scan() {
			r, err := scan.Scan(lines.Bytes())
			if err != nil {
				b.Fatal(err)
			}
			row := dated{typ: r.Key.Type, patients: segment.PatientsHash(r.Patients), line: append(slices.Clone(lines.Bytes()), '\n')}
			if m := dates.FindSubmatch(row.line); m != nil {
				row.date = string(m[1])
			}
			rows = append(rows, row)
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
	return rows
}

// BenchmarkPatientSort compares rows in the order of time with rows sorted by
// patient: stored bytes for each byte of NDJSON, and which share of them must be
// read for the rows of one patient, 1 % and 10 % of all.
func BenchmarkPatientSort(b *testing.B) {
	rows := readDated(b)
	var patients []uint32
	seen := map[uint32]bool{0: true}
	for i := range rows {
		if p := rows[i].patients; !seen[p] {
			seen[p] = true
			patients = append(patients, p)
		}
	}
	byTime := func(x, y dated) int { return cmp.Or(cmp.Compare(x.typ, y.typ), cmp.Compare(x.date, y.date)) }
	byPatient := func(x, y dated) int {
		return cmp.Or(cmp.Compare(x.typ, y.typ), cmp.Compare(x.patients, y.patients), cmp.Compare(x.date, y.date))
	}
	for _, order := range []struct {
		name    string
		compare func(x, y dated) int
	}{{"time", byTime}, {"patient", byPatient}} {
		slices.SortStableFunc(rows, order.compare)
		for _, c := range []struct{ level, size int }{
			{segment.FastLevel, segment.BlockSize}, {SettledLevel, segment.BlockSize}, {SettledLevel, 512 << 10},
		} {
			b.Run(fmt.Sprintf("%s/level=%d/block=%d", order.name, c.level, c.size>>10), func(b *testing.B) {
				for b.Loop() {
					measureOrder(b, rows, patients, c.level, c.size)
				}
			})
		}
	}
}

func measureOrder(b *testing.B, rows []dated, patients []uint32, level, size int) {
	comp := segment.NewCompressor(level)
	type block struct {
		of     map[uint32]bool
		stored int
	}
	var blocks []block
	var lines [][]byte
	raw, stored, n := 0, 0, 0
	of := map[uint32]bool{}
	for i := range rows {
		r := &rows[i]
		lines, n, of[r.patients] = append(lines, r.line), n+len(r.line), true
		if n < size && i+1 < len(rows) && rows[i+1].typ == r.typ {
			continue
		}
		data := comp.Block(lines...).Data
		blocks = append(blocks, block{of, len(data)})
		raw, stored = raw+n, stored+len(data)
		lines, n, of = lines[:0], 0, map[uint32]bool{}
	}
	b.SetBytes(int64(raw))
	b.ReportMetric(float64(stored)/float64(raw), "stored/raw")
	for _, share := range []int{len(patients), 100, 10} {
		read, want := 0, len(patients)/share
		for _, k := range blocks {
			for i := range want {
				if k.of[patients[i*7919%len(patients)]] {
					read += k.stored
					break
				}
			}
		}
		b.ReportMetric(100*float64(read)/float64(stored), fmt.Sprintf("%%read-1/%d", share))
	}
}
