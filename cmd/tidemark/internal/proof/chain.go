package proof

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// A Chain is what one client received: exports, each of which began where the
// one before had ended.
type Chain struct {
	ledger  *Ledger
	windows []window
	seen    map[*resource][]sighting
	strange []fault // of resources that were never written
	live    int     // resources delivered
	deleted int     // deletions delivered
}

// window is the span of change instants (since, until].
type window struct{ since, until int64 }

// sighting is one appearance of a resource in a window.
type sighting struct {
	facts
	window  int
	deleted bool
}

// Chain begins the chain of another client.
func (l *Ledger) Chain() *Chain {
	return &Chain{ledger: l, seen: map[*resource][]sighting{}}
}

// Window begins the next window: an export with this _since (zero for a full
// one) and this transactionTime.
func (c *Chain) Window(since, until time.Time) error {
	w := window{since: math.MinInt64, until: until.UnixMilli()}
	if len(c.windows) > 0 {
		w.since = c.windows[len(c.windows)-1].until
		if since.UnixMilli() != w.since {
			return errors.New("open a window: it does not begin where the one before ended")
		}
		if w.until < w.since {
			return errors.New("open a window: transactionTime went back")
		}
	} else if !since.IsZero() {
		return errors.New("open a window: a chain begins with a full export")
	}
	c.windows = append(c.windows, w)
	return nil
}

// Output enters a line of an output file of that type.
func (c *Chain) Output(kind string, line []byte) error {
	f, err := read(line)
	if err != nil {
		return fmt.Errorf("enter a line of %s: %w", kind, err)
	}
	c.live++
	at := len(c.windows) - 1
	if f.kind != kind {
		c.strange = append(c.strange, fault{Altered, kind, at})
		return nil
	}
	c.see(f.kind+"/"+f.id, kind, sighting{facts: f, window: at})
	return nil
}

// Deleted enters a deletion of a resource, given as Type/id.
func (c *Chain) Deleted(key string) {
	c.deleted++
	c.see(key, kindOf(key), sighting{window: len(c.windows) - 1, deleted: true})
}

func (c *Chain) see(key, kind string, s sighting) {
	c.ledger.mu.Lock()
	res := c.ledger.byKey[key]
	c.ledger.mu.Unlock()
	if res == nil {
		c.strange = append(c.strange, fault{Unknown, kind, s.window})
		return
	}
	c.seen[res] = append(c.seen[res], s)
}
