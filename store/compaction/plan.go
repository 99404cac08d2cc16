// Package compaction decides what of a store is written anew, over facts about
// segments alone, and moves their bytes. It knows nothing of the index: which
// rows stay is told by a filter, and what it made is told to the caller.
//
// There are four kinds of work and one way to do them, a merge with a filter:
// neighbouring fresh segments are joined; fresh rows of a window that is old
// enough settle, sorted by patient; neighbouring windows are widened as they
// age; a segment with many dead rows is cleaned.
package compaction

import (
	"iter"
	"slices"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

const (
	// fanIn is the least number of neighbours that a join takes: with eight, a
	// day of half-second commits stays below a hundred segments, and a byte is
	// moved a few times only (TestADayOfCommits measures both).
	fanIn = 8
	// maxFan bounds the files that a merge holds open.
	maxFan = 64
	// maxBody ends the joining of fresh segments. Bytes; about 250,000 rows,
	// whose directory a merge holds in memory.
	maxBody = 96 << 20
	// windowsFan is the least number of neighbouring windows that are widened to
	// one: each time all their rows are compressed anew.
	windowsFan = 4
	// maxWindow bounds the NDJSON of one window, bytes: what one merge writes
	// before it can be interrupted without losing work, and what lies twice on
	// the disk meanwhile.
	maxWindow = 1 << 30
	// rowOverhead is counted for each row beside its line: its part of the
	// directory, which a merge holds in memory. Bytes.
	rowOverhead = 300
	// agesToWidth is how many times its width a window is old at least: an
	// export that S cuts through pays for the rows of one window, which is at
	// most this part of what it sends.
	agesToWidth = 8
	// dirty is the share of dead bytes, one in so many, at which a segment is
	// cleaned whether exports ask for it or not: lower costs more writing, higher
	// more disk.
	dirty = 5
)

// Meta is what a plan needs to know of a segment.
type Meta struct {
	Stored, Raw int64 // bytes of the body and of its NDJSON
	Dead        int64 // bytes of NDJSON that a merge would leave out
	Wanted      int64 // bytes of NDJSON that exports had to recompress because of such rows
	Overdue     bool  // some of them have been dead for so long that they keep deletions from being forgotten
	Damaged     bool  // it cannot be read: no merge takes it, nor settles past its rows
	First, Last fhir.Instant
	Window      *segment.Window // nil: fresh
	Sections    []segment.SectionInfo
	Blocks      []segment.BlockInfo
}

// State is what a plan is made over.
type State struct {
	Fresh   []Meta        // by sequence number
	Settled []Meta        // by window
	Closed  segment.Bound // rows up to here have settled
	Settle  fhir.Instant  // rows up to here may
	Now     fhir.Instant
	Tight   bool // the disk is full: only what makes room
}

// A Kind of work.
type Kind uint8

// The kinds of work, in the order in which they are preferred.
const (
	Nothing Kind = iota
	Join         // neighbouring fresh segments become one
	Clean        // one segment is written without its dead rows
	Settle       // the fresh rows of a window move into settled segments
	Widen        // neighbouring windows become one
)

func (k Kind) String() string { return [...]string{"nothing", "join", "clean", "settle", "widen"}[k] }

// A Job is what Plan wants done.
type Job struct {
	Kind     Kind
	Settled  bool            // the inputs are among the settled segments, else among the fresh
	From, To int             // the inputs: neighbours [From, To)
	Window   *segment.Window // of the outputs, nil: they are fresh
}

// Plan chooses the next work.
func (s *State) Plan() Job {
	if s.Tight {
		return s.clean()
	}
	if from, to := s.join(); from < to {
		return Job{Kind: Join, From: from, To: to}
	}
	if j := s.clean(); j.Kind != Nothing {
		return j
	}
	if w := s.settle(); w != nil {
		return Job{Kind: Settle, From: 0, To: len(s.Fresh), Window: w}
	}
	return s.widen()
}

// join chooses neighbours [from, to) among the fresh segments: the smallest run
// of at least fanIn none of which is larger than all others together, so that
// no large one is written again for the sake of a few small ones.
func (s *State) join() (from, to int) {
	best := int64(0)
	for i := range s.Fresh {
		total, largest := int64(0), int64(0)
		for j := i; j < min(len(s.Fresh), i+maxFan); j++ {
			size := s.Fresh[j].Stored
			if s.Fresh[j].Damaged {
				break
			}
			total += size
			largest = max(largest, size)
			if total > maxBody || best > 0 && total >= best {
				break
			}
			if j+1-i >= fanIn && largest <= total-largest {
				from, to, best = i, j+1, total
				break
			}
		}
	}
	return from, to
}

// wanted tells that exports have spent on the dead rows of a segment what a
// cleaning costs: from then on it is the cheaper of the two, however little is
// dead. Rows that die all over the store make most blocks dirty long before
// they are a fifth of it.
func (m *Meta) wanted() bool { return m.Dead > 0 && m.Wanted > 0 && m.Wanted >= m.Stored }

// clean chooses the segment with the greatest share of dead bytes.
func (s *State) clean() Job {
	best, job := 0.0, Job{}
	for _, list := range [][]Meta{s.Fresh, s.Settled} {
		for i := range list {
			m := &list[i]
			share := float64(m.Dead) / float64(max(1, m.Raw))
			if !m.Damaged && (share >= 1./dirty || m.Overdue && share > 0 || m.wanted()) && share > best {
				best, job = share, Job{Kind: Clean, Settled: m.Window != nil, From: i, To: i + 1, Window: m.Window}
			}
		}
	}
	return job
}

// settle chooses the next window behind those that have settled: as wide as its
// age allows once all of it may settle, and of bounded bytes.
func (s *State) settle() *segment.Window {
	first, some := s.first()
	to := first + (s.Now-first)/(agesToWidth+1) // then the age is agesToWidth times the width
	if !some || to > s.Settle || to < first {
		return nil
	}
	for i := range s.Fresh {
		if m := &s.Fresh[i]; m.Damaged && m.Last >= s.Closed.Instant && m.First <= to {
			return nil
		}
	}
	leads := s.leads()
	w := &segment.Window{From: s.Closed, To: segment.Upto(to)}
	raw := int64(0)
	for i, l := range leads {
		if l.at.Instant > to {
			break
		}
		if raw += l.raw; raw > maxWindow && i > 0 && l.at.Compare(leads[0].at) > 0 {
			w.To = segment.Bound{Instant: l.at.Instant, Seq: l.at.Seq - 1}
			break
		}
	}
	return w
}

// lead is where a block begins, or where what is left of it does.
type lead struct {
	at  segment.Bound
	raw int64
}

// leads lists the blocks of the fresh segments with rows that have not settled,
// in the order of their first such rows, as far as the block table tells.
func (s *State) leads() []lead {
	var list []lead
	for l := range s.unsettled() {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b lead) int { return a.at.Compare(b.at) })
	return list
}

// first is the change instant of the first of them.
func (s *State) first() (at fhir.Instant, some bool) {
	for l := range s.unsettled() {
		if !some || l.at.Instant < at {
			at, some = l.at.Instant, true
		}
	}
	return at, some
}

func (s *State) unsettled() iter.Seq[lead] {
	behind := segment.Bound{Instant: s.Closed.Instant, Seq: s.Closed.Seq + 1}
	if s.Closed == segment.Upto(s.Closed.Instant) {
		behind = segment.Bound{Instant: s.Closed.Instant + 1}
	}
	return func(yield func(lead) bool) {
		for i := range s.Fresh {
			for b := range Unsettled(s.Fresh[i].Sections, s.Fresh[i].Blocks, s.Closed) {
				at := b.Lead.Bound
				if at.Compare(behind) < 0 {
					at = behind
				}
				if !yield(lead{at, b.Sum.Size + rowOverhead*int64(b.Rows)}) {
					return
				}
			}
		}
	}
}

// Unsettled are the blocks of a fresh segment with rows behind a bound, as far as the
// block table tells: of what lies in one instant, however much that is, at most one
// block too many for each section.
func Unsettled(sections []segment.SectionInfo, blocks []segment.BlockInfo, closed segment.Bound) iter.Seq[*segment.BlockInfo] {
	return func(yield func(*segment.BlockInfo) bool) {
		for _, sec := range sections {
			for b := sec.From; b < sec.To; b++ {
				if !segment.Passed(blocks, b, sec.To, closed) && !yield(&blocks[b]) {
					return
				}
			}
		}
	}
}

// widen chooses the smallest run of neighbouring windows that are old enough to
// be one, none of which is larger than all others together.
func (s *State) widen() Job {
	windows := s.windows()
	best, job := int64(0), Job{}
	for i := range windows {
		total, largest := int64(0), int64(0)
		for j := i; j < min(len(windows), i+maxFan); j++ {
			w := &windows[j]
			if w.damaged {
				break
			}
			total += w.raw
			largest = max(largest, w.raw)
			width, age := w.window.To.Instant-windows[i].first, s.Now-w.window.To.Instant
			if total > maxWindow || best > 0 && total >= best || width*agesToWidth > age {
				break
			}
			if j+1-i >= windowsFan && largest <= total-largest {
				best = total
				job = Job{
					Kind: Widen, Settled: true, From: windows[i].from, To: w.to,
					Window: &segment.Window{From: windows[i].window.From, To: w.window.To},
				}
				break
			}
		}
	}
	return job
}

// span is a window and the settled segments [from, to) that hold its rows.
type span struct {
	window   *segment.Window
	from, to int
	first    fhir.Instant
	raw      int64
	damaged  bool
}

func (s *State) windows() (list []span) {
	for i := range s.Settled {
		m := &s.Settled[i]
		if n := len(list); n > 0 && *list[n-1].window == *m.Window {
			w := &list[n-1]
			w.to, w.raw, w.first, w.damaged = i+1, w.raw+m.Raw, min(w.first, m.First), w.damaged || m.Damaged
			continue
		}
		list = append(list, span{m.Window, i, i + 1, m.First, m.Raw, m.Damaged})
	}
	return list
}
