package export

import "time"

// A bucket lets through a number of requests per minute: all of them at once
// if need be, then one whenever its share of the minute is over. A client
// that waits as it was told is thus never refused twice.
type bucket struct {
	every time.Duration // one token comes in this time
	size  time.Duration // the whole minute, in the same unit
	full  time.Time     // when the bucket would be full again
}

func newBucket(perMinute int) bucket {
	return bucket{every: time.Minute / time.Duration(perMinute), size: time.Minute}
}

// take takes a token, or says how long to wait for one.
func (b *bucket) take(now time.Time) time.Duration {
	if b.full.Before(now) {
		b.full = now
	}
	if wait := b.full.Add(b.every).Sub(now) - b.size; wait > 0 {
		return wait
	}
	b.full = b.full.Add(b.every)
	return 0
}
