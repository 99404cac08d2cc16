package search

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"tidemark/store/fhir"
)

// BenchmarkMatch asks of synthetic resources what clients ask (the events digest,
// "What is really used"), with one search and with ten.
func BenchmarkMatch(b *testing.B) {
	for name, queries := range map[string][]string{
		"Observation": {
			"Observation?category=laboratory,vital-signs,survey&date=gt2015-01-01",
			"Observation?code=http://loinc.org|2339-0", "Observation?patient=Patient/nobody", "Observation?status=amended",
			"Observation?value-quantity=gt1000||mg/dL", "Observation?_lastUpdated=gt2030-01-01", "Observation?code:text=glucose",
			"Observation?combo-code=8480-6&status:not=final", "Observation?performer:missing=false", "Observation?value-concept=x&date=2019",
		},
		"ExplanationOfBenefit": {
			"ExplanationOfBenefit?service-date=ge2015-01-01&type=pharmacy,institutional",
			"ExplanationOfBenefit?_lastUpdated=gt2030-01-01", "ExplanationOfBenefit?_tag=s|t,s|u", "ExplanationOfBenefit?outcome=partial",
			"ExplanationOfBenefit?patient=nobody", "ExplanationOfBenefit?created=lt1990", "ExplanationOfBenefit?status=draft",
			"ExplanationOfBenefit?provider=Organization/none", "ExplanationOfBenefit?encounter=1", "ExplanationOfBenefit?identifier=1,2,3",
		},
	} {
		lines := resources(b, name)
		size := 0
		for _, line := range lines {
			size += len(line)
		}
		for label, some := range map[string][]string{"1": queries[:1], "10": queries} {
			b.Run(name+"/"+label, func(b *testing.B) {
				m, hits := matcher(b, some), 0
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					hits = 0
					for _, line := range lines {
						if m.Match(line) {
							hits++
						}
					}
				}
				b.ReportMetric(float64(hits)/float64(len(lines)), "matched")
			})
		}
	}
}

// BenchmarkList asks for one of 200 codes, a value set.
func BenchmarkList(b *testing.B) {
	list := "Observation?code=http://loinc.org|1-8"
	for i := range 199 {
		list += fmt.Sprintf(",http://loinc.org|%d-1", 10_000+i)
	}
	m, lines := matcher(b, []string{list}), resources(b, "Observation")
	b.ReportAllocs()
	for b.Loop() {
		for _, line := range lines {
			m.Match(line)
		}
	}
}

func matcher(t testing.TB, queries []string) *Matcher {
	t.Helper()
	var all []*Query
	for _, text := range queries {
		q, err := Parse(text, Env{Now: 1767225600000})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		all = append(all, q)
	}
	return New(all...).Matcher()
}

// resources are up to 2,000 synthetic ones of a type as the store keeps them.
func resources(b *testing.B, name string) (lines [][]byte) {
	dir := cmp.Or(os.Getenv("TIDEMARK_SYNTHEA"), "../../../shared/data/synthea")
	file := filepath.Join(dir, name+".ndjson.gz")
	if _, err := os.Stat(file); err != nil {
		b.Skipf("no synthetic resources in %s", dir)
	}
	var s fhir.Scanner
	for line := range bytes.Lines(unzipped(b, file)) {
		r, err := s.Scan(line)
		if err != nil {
			b.Fatal(err)
		}
		if lines = append(lines, r.Body); len(lines) == 2000 {
			break
		}
	}
	return lines
}
