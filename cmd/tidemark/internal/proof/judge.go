package proof

import (
	"math"
	"slices"
	"sort"
)

// Judge compares what the client received with what was written. It may be
// asked at any time; Missed means something only when all was acknowledged and
// the last window reaches beyond that.
//
// For each resource let v1 … vn be the states it took, in source order. Then:
//
//   - a window holds at most one of them, as a resource or as a deletion;
//   - from window to window their numbers rise: none comes twice, none goes back;
//   - in the end vn was delivered, unless it is a deletion that happened before
//     the first window ended and the client never had the resource;
//   - a window holds nothing from after its transactionTime;
//   - what is known to lie before a transactionTime is there by then: what was
//     acknowledged before the server started, and what was on time (its change
//     instant is its own time, by design.md 2).
//
// A client that applies the windows in order then has, after each of them, the
// hospital's state at that transactionTime.
func (c *Chain) Judge() *Verdict {
	l := c.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &Verdict{
		Records: l.records, Versions: l.versions, Pending: l.pending,
		Windows: len(c.windows), Delivered: c.live, Deletions: c.deleted, Where: map[string]int{},
	}
	for _, f := range c.strange {
		v.add(f)
	}
	if len(c.windows) == 0 {
		return v
	}
	for _, res := range l.byKey {
		j := judge{chain: c, res: res, verdict: v, have: -1, lacked: -1}
		j.run(c.seen[res])
	}
	return v
}

// judge walks through the windows with one resource.
type judge struct {
	chain   *Chain
	res     *resource
	verdict *Verdict

	have   int  // the state that the client has been told, -1: none
	alive  bool // the client has a copy
	lacked int  // the newest state that was overdue in some window, -1: none
	late   []fault
}

func (j *judge) run(seen []sighting) {
	for _, k := range j.eventful(seen) {
		due := j.due(k)
		var here []sighting
		for len(seen) > 0 && seen[0].window == k {
			here, seen = append(here, seen[0]), seen[1:]
		}
		j.window(k, due, here, seen)
	}
	j.end()
}

// eventful lists the windows that can change the verdict: the first, those that
// brought something, and those at whose end another state is due. In all others
// the one before is judged once more; an hour has 50,000 of them.
func (j *judge) eventful(seen []sighting) []int {
	windows := j.chain.windows
	list := []int{0}
	for _, s := range seen {
		list = append(list, s.window)
	}
	for i := range j.res.versions {
		latest := j.latest(&j.res.versions[i])
		if k := sort.Search(len(windows), func(k int) bool { return windows[k].until >= latest }); k < len(windows) {
			list = append(list, k)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// due returns the newest state that must be visible at the end of window k.
func (j *judge) due(k int) int {
	for i := len(j.res.versions) - 1; i >= 0; i-- {
		if j.latest(&j.res.versions[i]) <= j.chain.windows[k].until {
			return i
		}
	}
	return -1
}

// latest is the latest change instant that a state can have been given.
func (j *judge) latest(v *version) int64 {
	first := j.chain.windows[0].until
	opts := j.chain.ledger.opts
	switch {
	case v.acked == 0:
		return math.MaxInt64
	case !opts.Started.IsZero() && v.acked <= opts.Started.UnixMilli():
		return first
	case v.time > first && v.acked-v.time <= opts.Allowance.Milliseconds()/2 && opts.Allowance > 0:
		return v.time
	}
	return math.MaxInt64
}

func (j *judge) window(k, due int, here, later []sighting) {
	for range len(here) - 1 {
		j.fault(Doubled, k) // twice in one window, or in output and deleted
	}
	if len(here) > 0 {
		j.receive(k, due, here[len(here)-1], later)
	}
	if j.have >= due {
		return
	}
	if j.excused(due) || k == 0 && j.mayBeGone(due) {
		j.have = due
		return
	}
	if due > j.lacked {
		j.lacked = due
		j.late = append(j.late, fault{Overdue, j.res.kind, k})
	}
}

// receive finds out which state a sighting is.
func (j *judge) receive(k, due int, s sighting, later []sighting) {
	if s.deleted && k == 0 {
		j.fault(Wrong, k)
		return
	}
	i := j.match(due, s)
	if s.deleted {
		i = j.matchDeletion(i, s, later)
	}
	switch {
	case i < 0:
		j.fault(j.foreign(s), k)
		return
	case i == j.have:
		j.fault(Doubled, k)
		return
	case i < j.have || i < due:
		j.fault(Stale, k)
	case !j.intact(&j.res.versions[i], s):
		j.fault(Altered, k)
	case j.res.versions[i].time > j.chain.windows[k].until:
		j.fault(Early, k)
	}
	j.have, j.alive = max(j.have, i), !s.deleted
}

// match returns the number of the state that a sighting shows, -1 for none. Of
// several that look alike it takes the one that speaks best for the server:
// the first that is due, else the newest that the client does not have.
func (j *judge) match(due int, s sighting) int {
	best := -1
	for i := range j.res.versions {
		if !j.looksLike(&j.res.versions[i], s) {
			continue
		}
		if i > j.have && i >= due {
			return i
		}
		best = i
	}
	return best
}

// matchDeletion finds the deletion that a sighting shows. A deletion has no
// content, so it may be any that had happened by then; it is taken for the
// newest that leaves one each to the sightings that follow it. Where that is
// impossible, first, the oldest that the client has not been told, stays.
func (j *judge) matchDeletion(first int, s sighting, later []sighting) int {
	limit := len(j.res.versions)
	run := []sighting{s}
	for _, next := range later {
		if !next.deleted {
			if i := j.match(j.have+1, next); i > j.have {
				limit = i
			}
			break
		}
		run = append(run, next)
	}
	for _, later := range slices.Backward(run) {
		if limit = j.deletion(limit, j.chain.windows[later.window].until); limit <= j.have {
			return first
		}
	}
	return limit
}

// deletion returns the newest deletion below limit that had happened at an
// instant, -1 if there is none.
func (j *judge) deletion(limit int, at int64) int {
	for limit--; limit >= 0; limit-- {
		if v := &j.res.versions[limit]; v.deleted && v.time <= at {
			break
		}
	}
	return limit
}

func (j *judge) looksLike(v *version, s sighting) bool {
	if v.deleted || s.deleted {
		return v.deleted == s.deleted
	}
	return v.content == s.content && (v.version == unknown || v.version == s.version)
}

// intact: a body with a version and an instant of its own goes out byte for
// byte; another has got both from the server, and is otherwise unchanged.
func (j *judge) intact(v *version, s sighting) bool {
	switch {
	case v.deleted:
		return true
	case v.version != unknown && v.updated != unknown:
		return v.whole == s.whole
	}
	return s.version != unknown && s.updated != unknown
}

// foreign names the fault of a sighting that is none of the states.
func (j *judge) foreign(s sighting) Fault {
	if s.deleted {
		return Wrong
	}
	if slices.Contains(j.res.void, s.content) {
		return Stale
	}
	if len(j.res.versions) == 0 {
		return Unknown
	}
	return Altered
}

// excused: a deletion before the end of the first window is told only to those
// who have the resource.
func (j *judge) excused(i int) bool {
	v := &j.res.versions[i]
	return v.deleted && !j.alive && v.time <= j.chain.windows[0].until
}

// mayBeGone: a full export is silent about what was deleted after the state
// that was due, if the deletion may lie before its transactionTime.
func (j *judge) mayBeGone(due int) bool {
	for i := due + 1; i < len(j.res.versions); i++ {
		if j.excused(i) {
			return true
		}
	}
	return false
}

// end asks for the newest acknowledged state. What was overdue and never came
// is missed, and counted as that alone.
func (j *judge) end() {
	last := -1
	for i := range j.res.versions {
		if j.res.versions[i].acked != 0 {
			last = i
		}
	}
	missed := j.have < last && !j.excused(last)
	if missed {
		j.fault(Missed, -1)
	}
	for _, f := range j.late {
		if !missed || j.lacked <= j.have {
			j.verdict.add(f)
		}
	}
}

func (j *judge) fault(what Fault, k int) { j.verdict.add(fault{what, j.res.kind, k}) }
