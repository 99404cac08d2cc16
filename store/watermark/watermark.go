// Package watermark turns what the broker says about partitions into the least
// instant up to which everything has been fetched.
//
// It is arithmetic only, without locks or I/O, and it knows nothing of
// producers' clocks: only of ours, and of the ends that fetch answers report.
package watermark

import (
	"time"

	"tidemark/store/fhir"
)

// maxPairs bounds what a partition that is far behind remembers. Thinning costs
// freshness while catching up, never truth.
const maxPairs = 16

type pair struct {
	asked fhir.Instant
	end   int64
}

// A Partition's Progress. The zero value knows nothing.
type Progress struct {
	next    int64
	pairs   []pair // ends not yet fetched, ascending
	reached fhir.Instant
}

// New returns the progress of a partition of which everything below next has
// been fetched.
func New(next int64) *Progress { return &Progress{next: next, reached: fhir.None} }

// Observe takes an answer: whatever was appended and stable at asked lies below
// end. It must be called before Fetched of the same answer.
func (p *Progress) Observe(asked fhir.Instant, end int64) {
	if end <= p.next {
		p.reached = max(p.reached, asked)
		return
	}
	if n := len(p.pairs); n > 0 && p.pairs[n-1].end >= end {
		if p.pairs[n-1].end == end && p.pairs[n-1].asked < asked {
			p.pairs[n-1].asked = asked
		}
		return
	}
	if len(p.pairs) == maxPairs {
		p.thin()
	}
	p.pairs = append(p.pairs, pair{asked, end})
}

// thin drops every second pair but keeps the oldest, which is reached first.
func (p *Progress) thin() {
	kept := p.pairs[:0]
	for i, q := range p.pairs {
		if i%2 == 0 {
			kept = append(kept, q)
		}
	}
	p.pairs = kept
}

// Fetched says that everything below next has been fetched.
func (p *Progress) Fetched(next int64) {
	p.next = max(p.next, next)
	n := 0
	for n < len(p.pairs) && p.pairs[n].end <= p.next {
		p.reached = max(p.reached, p.pairs[n].asked)
		n++
	}
	p.pairs = append(p.pairs[:0], p.pairs[n:]...)
}

// Reached is the newest instant whose end has been fetched, None if there is
// none: whatever is fetched from now on was written after it.
func (p *Progress) Reached() fhir.Instant { return p.reached }

// Next is the offset up to which everything has been fetched.
func (p *Progress) Next() int64 { return p.next }

// End is the greatest end that an answer has told.
func (p *Progress) End() int64 {
	if n := len(p.pairs); n > 0 {
		return max(p.next, p.pairs[n-1].end)
	}
	return p.next
}

// Watermark is the newest instant whose end has been fetched, less allowance;
// None if there is none.
func (p *Progress) Watermark(allowance time.Duration) fhir.Instant {
	return less(p.Reached(), allowance)
}

// At is the watermark as it was known for a record at offset when it was
// fetched: the newest instant whose end lies at or before it, less allowance.
// A change later than that is on time. Ask before Fetched passes the offset's
// successor.
func (p *Progress) At(offset int64, allowance time.Duration) fhir.Instant {
	at := p.reached
	for _, q := range p.pairs {
		if q.end > offset {
			break
		}
		at = max(at, q.asked)
	}
	return less(at, allowance)
}

func less(i fhir.Instant, d time.Duration) fhir.Instant {
	if i == fhir.None {
		return fhir.None
	}
	return i - fhir.Instant(d.Milliseconds())
}
