package watermark

import (
	"math/rand/v2"
	"testing"
	"time"

	"tidemark/store/fhir"
)

const allowance = 10 * time.Millisecond

func TestIdlePartitionAdvances(t *testing.T) {
	p := New(5)
	if got := p.Watermark(allowance); got != fhir.None {
		t.Errorf("before any answer: %v", got)
	}
	p.Observe(100, 5)
	if got := p.Watermark(allowance); got != 90 {
		t.Errorf("an answer without records asked at 100: %v, want 90", got)
	}
}

func TestAnEndCountsOnceItIsFetched(t *testing.T) {
	p := New(0)
	p.Observe(100, 10)
	p.Fetched(9)
	if got := p.Watermark(allowance); got != fhir.None {
		t.Errorf("one record is missing: %v", got)
	}
	p.Fetched(10)
	if got := p.Watermark(allowance); got != 90 {
		t.Errorf("all fetched: %v, want 90", got)
	}
	p.Observe(200, 30)
	p.Observe(300, 40)
	p.Fetched(35)
	if got := p.Watermark(allowance); got != 190 {
		t.Errorf("behind the end asked at 300: %v, want 190", got)
	}
}

func TestAtIsWhatWasKnownForARecord(t *testing.T) {
	p := New(0)
	p.Observe(100, 10)
	p.Observe(200, 20)
	for offset, want := range map[int64]fhir.Instant{9: fhir.None, 10: 90, 19: 90, 20: 190} {
		if got := p.At(offset, allowance); got != want {
			t.Errorf("record at %d: %v, want %v", offset, got, want)
		}
	}
}

// TestNeverAheadOfTheTruth lets a partition be appended to and read at random:
// everything appended at or before the watermark has been fetched, however the
// pairs were thinned.
func TestNeverAheadOfTheTruth(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := New(0)
		var appended []fhir.Instant // by offset
		now, next, last := fhir.Instant(1000), int64(0), fhir.None
		for range 300 {
			now += fhir.Instant(r.IntN(20))
			for range r.IntN(5) {
				appended = append(appended, now)
			}
			asked := now
			now += fhir.Instant(r.IntN(20))
			p.Observe(asked, int64(len(appended)))
			if r.IntN(3) == 0 {
				next = min(next+int64(r.IntN(12)), int64(len(appended)))
				p.Fetched(next)
			}
			w := p.Watermark(0)
			if w < last {
				t.Fatalf("seed %d: the watermark fell from %v to %v", seed, last, w)
			}
			last = w
			if next < int64(len(appended)) && appended[next] < w {
				t.Fatalf("seed %d: watermark %v, but the record at %d, appended at %v, is not fetched", seed, w, next, appended[next])
			}
		}
		p.Fetched(int64(len(appended)))
		if p.Watermark(0) == fhir.None {
			t.Fatalf("seed %d: caught up, but no watermark", seed)
		}
	}
}
