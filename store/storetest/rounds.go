package storetest

// Rounds is how many of n random histories, crashes or kills a test goes through: all,
// but a quarter under the race detector. That makes each ten times slower, and what it
// looks for, how goroutines meet, is the same in all of them; what histories are for is
// found by the run without it.
func Rounds[N int | uint64](n N) N {
	if raced {
		return max(1, n/4)
	}
	return n
}
