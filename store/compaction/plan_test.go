package compaction

import (
	"math/rand/v2"
	"testing"
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
