package proof

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Fault is a way in which a chain can be wrong.
type Fault int

// The faults. Each is counted once per resource and occurrence.
const (
	Missed  Fault = iota // the newest state, or deletion, was never delivered
	Overdue              // delivered, but not in the window that transactionTime promised
	Doubled              // the same state twice
	Stale                // an old state after or instead of a newer one
	Early                // a change from after transactionTime
	Wrong                // deleted although it lives, or in a full export
	Altered              // not what was written
	Unknown              // never written
	faults
)

func (f Fault) String() string {
	return [faults]string{"missed", "overdue", "doubled", "stale", "early", "wrongly deleted", "altered", "unknown"}[f]
}

// A Verdict is what a proof came to.
type Verdict struct {
	Records   int // written, of whatever kind
	Versions  int // of them changes
	Pending   int // never acknowledged by the broker; must be 0
	Windows   int
	Delivered int // resources, in all windows together
	Deletions int

	Counts [faults]int
	// Where says in which type and window faults were found, with their number.
	Where map[string]int
}

type fault struct {
	what   Fault
	kind   string
	window int // -1: none in particular
}

func (v *Verdict) add(f fault) {
	v.Counts[f.what]++
	where := fmt.Sprintf("%s: %s", f.what, f.kind)
	if f.window >= 0 {
		where = fmt.Sprintf("%s in window %d", where, f.window+1)
	}
	v.Where[where]++
}

// OK tells whether the chain delivered every change exactly once.
func (v *Verdict) OK() bool { return v.Counts == [faults]int{} && v.Pending == 0 }

// Lacking counts Missed and Overdue together: what a client did not have at
// some transactionTime.
func (v *Verdict) Lacking() int { return v.Counts[Missed] + v.Counts[Overdue] }

// String lists the faults: those that matter most always, others if there are
// any.
func (v *Verdict) String() string {
	parts := []string{fmt.Sprintf("missed %d, doubled %d", v.Lacking(), v.Counts[Doubled])}
	for f := range faults {
		if n := v.Counts[f]; n > 0 && f != Missed && f != Overdue && f != Doubled {
			parts = append(parts, fmt.Sprintf("%s %d", f, n))
		}
	}
	if v.Pending > 0 {
		parts = append(parts, fmt.Sprintf("not acknowledged %d", v.Pending))
	}
	return strings.Join(parts, ", ")
}

// Examples lists up to n of the places where faults were found.
func (v *Verdict) Examples(n int) []string {
	var lines []string
	for _, where := range slices.Sorted(maps.Keys(v.Where)) {
		lines = append(lines, fmt.Sprintf("%s (%d)", where, v.Where[where]))
	}
	return lines[:min(n, len(lines))]
}
