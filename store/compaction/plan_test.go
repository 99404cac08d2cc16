package compaction

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

func TestPlan(t *testing.T) {
	small, large := int64(1000), int64(1<<20)
	repeat := func(n int, size int64) []int64 {
		list := make([]int64, n)
		for i := range list {
			list[i] = size
		}
		return list
	}
	for _, c := range []struct {
		name     string
		sizes    []int64
		from, to int
	}{
		{"nothing", nil, 0, 0},
		{"seven are not enough", repeat(7, small), 0, 0},
		{"eight are", repeat(8, small), 0, 8},
		{"a large one is not moved for seven small ones", append([]int64{large}, repeat(7, small)...), 0, 0},
		{"a large one stands between", append(append(repeat(4, small), large), repeat(8, small)...), 5, 13},
		{"the smallest run first", append(repeat(8, large), repeat(8, small)...), 8, 16},
		{"too large together", repeat(9, maxBody/4), 0, 0},
	} {
		if from, to := joinOf(c.sizes); from != c.from || to != c.to {
			t.Errorf("%s: [%d, %d), want [%d, %d)", c.name, from, to, c.from, c.to)
		}
	}
}

// TestADayOfCommits lets half-second commits of random sizes come and merges
// them as planned: the number of segments stays small, and a byte is moved a
// few times only.
func TestADayOfCommits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var sizes []int64
	var came, moved int64
	most := 0
	for range 2 * 86_400 {
		size := int64(500 + r.IntN(20_000))
		came += size
		sizes = append(sizes, size)
		for {
			from, to := joinOf(sizes)
			if from == to {
				break
			}
			var sum int64
			for _, s := range sizes[from:to] {
				sum += s
			}
			moved += sum
			sizes = append(sizes[:from], append([]int64{sum}, sizes[to:]...)...)
		}
		most = max(most, len(sizes))
	}
	t.Logf("at most %d segments, each byte moved %.1f times", most, float64(moved)/float64(came))
	if most > 60 || moved > 8*came {
		t.Errorf("at most %d segments, want 60; %d bytes moved for %d that came", most, moved, came)
	}
}

func joinOf(sizes []int64) (from, to int) {
	var s State
	for _, n := range sizes {
		s.Fresh = append(s.Fresh, Meta{Stored: n})
	}
	return s.join()
}

// block makes a block table's entry: rows with change instants from first to
// last, the first with the given sequence number.
func block(first, last fhir.Instant, seq uint64, raw int64) segment.BlockInfo {
	return segment.BlockInfo{First: first, Last: last, Lead: segment.Place{Bound: segment.Bound{Instant: first, Seq: seq}}, Sum: segment.Sum{Size: raw}}
}

func freshMeta(blocks ...segment.BlockInfo) Meta {
	m := Meta{First: blocks[0].First, Last: blocks[0].Last, Blocks: blocks, Sections: []segment.SectionInfo{{To: len(blocks)}}, Stored: 1}
	for _, b := range blocks {
		m.First, m.Last, m.Raw = min(m.First, b.First), max(m.Last, b.Last), m.Raw+b.Sum.Size
	}
	return m
}

// TestPlanSettlesOneInstant: much more than a window holds lies in one instant, in two
// sections and several segments. Each window takes as much as it may: with windows of
// a block each, all of it would be gone through once for each block.
func TestPlanSettlesOneInstant(t *testing.T) {
	const blocks, raw = 1024, maxWindow / 128
	s := State{Now: 9100, Settle: 9000, Closed: segment.NoBound}
	seq, newest := uint64(0), uint64(0)
	for range 4 {
		var list []segment.BlockInfo
		for i := range blocks / 4 {
			if i == blocks/8 { // another section, whose rows lie among those of the first
				seq -= 100*blocks/8 - 50
			}
			list = append(list, block(100, 100, seq+1, raw))
			seq += 100
			newest = max(newest, seq)
		}
		m := freshMeta(list...)
		m.Sections = []segment.SectionInfo{{To: blocks / 8}, {From: blocks / 8, To: blocks / 4}}
		s.Fresh = append(s.Fresh, m)
	}
	windows := 0
	for s.Closed.Compare(segment.Bound{Instant: 100, Seq: newest}) < 0 {
		w := s.settle()
		if w == nil || w.To.Compare(s.Closed) <= 0 {
			t.Fatalf("after %d windows, closed at %v: %v", windows, s.Closed, w)
		}
		s.Closed = w.To
		windows++
	}
	if windows > 2*blocks*raw/maxWindow {
		t.Errorf("%d windows, want about %d", windows, blocks*raw/maxWindow)
	}
}

func TestPlanSettles(t *testing.T) {
	until := func(c fhir.Instant) *segment.Window {
		return &segment.Window{From: segment.NoBound, To: segment.Upto(c)}
	}
	for _, c := range []struct {
		name   string
		s      State
		window *segment.Window
	}{
		{"nothing fresh", State{Now: 1000, Settle: 900, Closed: segment.NoBound}, nil},
		{"an eighth of its age", State{Now: 1000, Settle: 900, Closed: segment.NoBound, Fresh: []Meta{freshMeta(block(100, 950, 1, 9))}}, until(200)},
		{"not before all of it is old enough", State{Now: 1000, Settle: 150, Closed: segment.NoBound, Fresh: []Meta{freshMeta(block(100, 950, 1, 9))}}, nil},
		{"what has settled does not count", State{
			Now: 1000, Settle: 900, Closed: segment.Upto(549), Fresh: []Meta{freshMeta(block(100, 500, 1, 9), block(500, 950, 2, 9))},
		}, &segment.Window{From: segment.Upto(549), To: segment.Upto(600)}},
		{"bounded bytes end it before the block that is too much", State{Now: 9100, Settle: 9000, Closed: segment.NoBound, Fresh: []Meta{
			freshMeta(block(100, 110, 1, maxWindow-1), block(120, 130, 7, 2), block(130, 140, 9, 9)),
		}}, &segment.Window{From: segment.NoBound, To: segment.Bound{Instant: 120, Seq: 6}}},
		{"one instant may be cut", State{Now: 9100, Settle: 9000, Closed: segment.NoBound, Fresh: []Meta{
			freshMeta(block(100, 100, 1, maxWindow), block(100, 100, 7, 2)),
		}}, &segment.Window{From: segment.NoBound, To: segment.Bound{Instant: 100, Seq: 6}}},
		{"and goes on there", State{
			Now: 9100, Settle: 9000, Closed: segment.Bound{Instant: 100, Seq: 6},
			Fresh: []Meta{freshMeta(block(100, 100, 1, maxWindow), block(100, 100, 7, 2))},
		}, &segment.Window{From: segment.Bound{Instant: 100, Seq: 6}, To: segment.Upto(1100)}},
		{"a block larger than the bound passes alone", State{Now: 9100, Settle: 9000, Closed: segment.NoBound, Fresh: []Meta{
			freshMeta(block(100, 100, 1, 2*maxWindow), block(200, 200, 2, 1)),
		}}, &segment.Window{From: segment.NoBound, To: segment.Bound{Instant: 200, Seq: 1}}},
	} {
		got := c.s.settle()
		if d := cmp.Diff(c.window, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if got != nil && got.To.Compare(c.s.Closed) <= 0 {
			t.Errorf("%s: the window ends at %v, where the last one did or before", c.name, got.To)
		}
	}
}

func TestPlanWidens(t *testing.T) {
	settled := func(from, to fhir.Instant, raw int64) Meta {
		return Meta{Raw: raw, First: from + 1, Last: to, Window: &segment.Window{From: segment.Upto(from), To: segment.Upto(to)}}
	}
	four := []Meta{settled(0, 10, 5), settled(0, 10, 5), settled(10, 20, 9), settled(20, 30, 9), settled(30, 40, 9), settled(40, 50, 900)}
	for _, c := range []struct {
		name     string
		now      fhir.Instant
		list     []Meta
		from, to int
	}{
		{"too young", 300, four, 0, 0},
		{"old enough", 360, four, 0, 5},
		{"three are not enough", 9000, four[:4], 0, 0},
		{"a large one is not written again for small ones", 9000, append([]Meta{settled(-10, 0, 500)}, four[:4]...), 0, 0},
		{"too large together", 9000, []Meta{
			settled(0, 1, maxWindow/3), settled(1, 2, maxWindow/3), settled(2, 3, maxWindow/3), settled(3, 4, maxWindow/3),
		}, 0, 0},
	} {
		s := State{Now: c.now, Settled: c.list}
		j := s.widen()
		if j.From != c.from || j.To != c.to {
			t.Errorf("%s: [%d, %d), want [%d, %d)", c.name, j.From, j.To, c.from, c.to)
		}
		if j.Kind == Widen && (j.Window.From != c.list[j.From].Window.From || j.Window.To != c.list[j.To-1].Window.To) {
			t.Errorf("%s: window %v", c.name, *j.Window)
		}
	}
}

func TestPlanCleans(t *testing.T) {
	for _, c := range []struct {
		name string
		list []Meta
		want int // -1: none
	}{
		{"a little dirt stays", []Meta{{Raw: 100, Dead: 19}}, -1},
		{"the dirtiest first", []Meta{{Raw: 100, Dead: 20}, {Raw: 100, Dead: 30}, {Raw: 100, Dead: 21}}, 1},
		{"a little that holds deletions back goes", []Meta{{Raw: 100, Dead: 1, Overdue: true}}, 0},
		{"but not what could not go", []Meta{{Raw: 100, Overdue: true}}, -1},
		{"a little for which exports have not paid a cleaning's price", []Meta{{Stored: 10, Raw: 100, Dead: 1, Wanted: 9}}, -1},
		{"a little for which they have", []Meta{{Stored: 10, Raw: 100, Dead: 1, Wanted: 10}}, 0},
		{"what they pay for and could not go", []Meta{{Stored: 10, Raw: 100, Wanted: 10}}, -1},
	} {
		s := State{Fresh: c.list}
		j := s.clean()
		for range 8 { // of a full disk nothing is asked that does not make room
			s.Fresh = append(s.Fresh, Meta{Stored: 1, Raw: 10})
		}
		s.Tight = true
		if got := s.Plan(); got.Kind != j.Kind || got.From != j.From {
			t.Errorf("%s, on a full disk: %v of %d", c.name, got.Kind, got.From)
		}
		if got := j.From; (j.Kind == Clean) != (c.want >= 0) || j.Kind == Clean && got != c.want {
			t.Errorf("%s: %v of %d, want %d", c.name, j.Kind, got, c.want)
		}
	}
}

// TestYears lets a store grow for ten years and counts windows and how often
// their bytes are written anew: both grow with the logarithm of its age.
func TestYears(t *testing.T) {
	const hour = fhir.Instant(3_600_000)
	s := State{Closed: segment.NoBound}
	var came, written int64
	most := 0
	for s.Now = hour; s.Now < 10*365*24*hour; s.Now += hour {
		s.Fresh = append(s.Fresh, freshMeta(block(s.Now-hour+1, s.Now, uint64(s.Now), 1000)))
		came += 1000
		s.Settle = s.Now - 24*hour
		for {
			j := Job{Kind: Settle}
			if j.Window = s.settle(); j.Window == nil {
				j = s.widen()
			}
			if j.Kind == Nothing {
				break
			}
			m := Meta{Window: j.Window, First: j.Window.To.Instant, Last: j.Window.To.Instant}
			if j.Kind == Settle {
				s.Closed = j.Window.To
				n := 0
				for n < len(s.Fresh) && s.Fresh[n].Last <= s.Closed.Instant {
					m.Raw, m.First = m.Raw+s.Fresh[n].Raw, min(m.First, s.Fresh[n].First)
					n++
				}
				s.Fresh = s.Fresh[n:]
				s.Settled = append(s.Settled, m)
			} else {
				for _, x := range s.Settled[j.From:j.To] {
					m.Raw, m.First = m.Raw+x.Raw, min(m.First, x.First)
				}
				s.Settled = append(s.Settled[:j.From], append([]Meta{m}, s.Settled[j.To:]...)...)
			}
			written += m.Raw
		}
		most = max(most, len(s.Settled))
	}
	t.Logf("at most %d windows and %d fresh segments of an hour, each byte written %.1f times", most, len(s.Fresh), float64(written)/float64(came))
	if most > 200 || written > 7*came || len(s.Fresh) > 40 {
		t.Errorf("at most %d windows, want 200; %d fresh, want 40; %d bytes written for %d that came", most, len(s.Fresh), written, came)
	}
}

// TestPlanPassesByDamage: no merge takes a segment that cannot be read, and
// none settles past its rows; all others go on.
func TestPlanPassesByDamage(t *testing.T) {
	s := State{Now: 1000, Settle: 900, Closed: segment.NoBound, Fresh: []Meta{freshMeta(block(100, 150, 1, 9)), freshMeta(block(190, 250, 2, 9))}}
	if w := s.settle(); w == nil || w.To != segment.Upto(200) {
		t.Fatalf("sound: %v", w)
	}
	s.Fresh[1].Damaged = true
	if w := s.settle(); w != nil {
		t.Errorf("rows settle past a damaged segment: %v", *w)
	}
	list := make([]Meta, 17)
	for i := range list {
		list[i] = Meta{Stored: 1000, Raw: 1000}
	}
	list[3].Damaged, list[3].Dead = true, 1000
	s = State{Fresh: list}
	if j := s.Plan(); j.Kind != Join || j.From != 4 || j.To != 12 {
		t.Errorf("%v [%d, %d), want to join what lies behind the damage", j.Kind, j.From, j.To)
	}
	s = State{Fresh: list[:7]}
	if j := s.Plan(); j.Kind != Nothing {
		t.Errorf("%v [%d, %d) with a damaged segment among them", j.Kind, j.From, j.To)
	}
}

// TestDivide: small types share a file, and last states lie where their type
// does, also where it has no other row.
func TestDivide(t *testing.T) {
	sec := func(k segment.Kind, t fhir.Type) segment.Section { return segment.Section{Kind: k, Type: t} }
	sizes := map[segment.Section]int64{
		sec(segment.Live, 1): 10, sec(segment.Live, 2): 70, sec(segment.Last, 2): 50, sec(segment.Live, 3): 0,
		sec(segment.Deleted, 2): 5, sec(segment.Internal, 1): 5, sec(segment.Last, 4): 10,
	}
	want := [][]segment.Section{
		{sec(segment.Live, 1)},
		{sec(segment.Live, 2), sec(segment.Last, 2)},
		{sec(segment.Live, 3), sec(segment.Deleted, 2), sec(segment.Internal, 1), sec(segment.Last, 4)},
	}
	if diff := cmp.Diff(want, Divide(sizes, 100)); diff != "" {
		t.Error(diff)
	}
}
