package publish

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/api/export"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A place is where a page stands. Its pin is called by it.
type place struct {
	chain  int    // chains follow one another: only the last can be open
	number int    // within the chain, from 1, without a gap
	id     string // random: the page's name in URLs
}

const pinPrefix = "publish"

func (p place) pin() string { return fmt.Sprintf("%s-%d-%d-%s", pinPrefix, p.chain, p.number, p.id) }

// parsePlace reads the name of a pin; false if it is none of ours.
func parsePlace(pin string) (p place, ok bool) {
	f := strings.Split(pin, "-")
	if len(f) != 4 || f[0] != pinPrefix {
		return p, false
	}
	chain, err := strconv.Atoi(f[1])
	if err != nil {
		return p, false
	}
	number, err := strconv.Atoi(f[2])
	return place{chain, number, f[3]}, err == nil
}

// A record is what is kept with a page's pin.
type record struct {
	Version   int           `json:"v"`
	Types     []string      `json:"types"` // all that the chain is about, sorted
	Epoch     uint64        `json:"epoch"` // of the store
	Increment *export.Whole `json:"increment,omitempty"`
	Snapshot  *export.Whole `json:"snapshot,omitempty"`
	// Unfinished says that the files are being made, and that this is no page yet.
	Unfinished bool `json:"unfinished,omitempty"`
}

// recordVersion is the form above; those of version 1 were made under no policy. A page
// of another form is not shown.
const recordVersion = 2

// A page is one that was published.
type page struct {
	place
	created time.Time
	gone    bool // it is not shown: for one of the next two, as it is damaged, or as its types are not published any more
	revoked bool // nothing of it is left
	weaker  bool // it was made under a policy that does not withhold all that is withheld now
	record
}

func (p *page) upto() fhir.Instant {
	if p.Increment != nil {
		return p.Increment.Upto()
	}
	return p.Snapshot.Upto()
}

// withholds is the policy under which the files were made.
func (r *record) withholds() (policy withhold.Policy) {
	for _, w := range []*export.Whole{r.Increment, r.Snapshot} {
		if w != nil {
			policy = w.Withholds()
		}
	}
	return policy
}

// bytes is how long all files are, uncompressed.
func (r *record) bytes() (n int64) {
	for _, w := range []*export.Whole{r.Increment, r.Snapshot} {
		if w != nil {
			n += w.Bytes()
		}
	}
	return n
}

// increments is how many files the increment has; those of the root come after.
func (r *record) increments() int {
	if r.Increment == nil {
		return 0
	}
	return len(r.Increment.Files())
}

// A table is all pages at one moment, in their order.
type table struct {
	pages []*page
	open  bool // the last chain can be continued
}

// table lists the pages that are pinned now. What is known of them never changes,
// but that one is revoked or found damaged, so each is read once.
func (p *Pages) table() table {
	p.mu.Lock()
	known := p.known
	p.mu.Unlock()
	var t table
	fresh := false
	for _, pin := range p.finished() {
		at := known[pin.ID]
		if at == nil || pin.Revoked && !at.revoked || pin.Damaged && !at.gone {
			var ours bool
			if at, ours = p.read(pin); !ours {
				continue
			}
			fresh = true
		}
		t.pages = append(t.pages, at)
	}
	if fresh || len(known) != len(t.pages) {
		p.remember(t.pages)
	}
	slices.SortFunc(t.pages, func(a, b *page) int {
		return cmp.Or(cmp.Compare(a.chain, b.chain), cmp.Compare(a.number, b.number))
	})
	t.open = p.continues(t)
	return t
}

// finished lists the pins that are no page's in the making.
func (p *Pages) finished() []store.Pinned {
	p.turning.RLock() // else one that turns meanwhile would be taken for what it was
	defer p.turning.RUnlock()
	return slices.DeleteFunc(p.db.Pinned(), func(pin store.Pinned) bool { return p.unfinished[pin.ID] })
}

func (p *Pages) remember(pages []*page) {
	known := map[string]*page{}
	for _, at := range pages {
		known[at.pin()] = at
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = known
}

// read makes a page of a pin; false if that is none of ours.
func (p *Pages) read(pin store.Pinned) (*page, bool) {
	at, ours := parsePlace(pin.ID)
	if !ours {
		return nil, false
	}
	r, readable := decode(pin.Rule) // a revoked one has none
	policy := r.withholds()
	weaker := readable && !p.o.Withhold.Within(&policy)
	gone := pin.Revoked || pin.Damaged || !readable || weaker || !p.shows(r.Types)
	return &page{at, pin.Created, gone, pin.Revoked, weaker, r}, true
}

func decode(rule []byte) (r record, ok bool) {
	if json.Unmarshal(rule, &r) != nil {
		return r, false
	}
	return r, r.Version >= 1 && r.Version <= recordVersion && (r.Increment != nil || r.Snapshot != nil)
}

// shows tells whether all of some types are published still.
func (p *Pages) shows(types []string) bool {
	return !slices.ContainsFunc(types, func(t string) bool { return !slices.Contains(p.types, t) })
}

// continues tells whether the last chain goes on: it is about what is to be
// published, and nothing of it was taken back. Nor goes it on when less is withheld: what
// was does not come in any increment before it changes.
func (p *Pages) continues(t table) bool {
	for _, at := range t.pages {
		if at.chain != t.last() {
			continue
		}
		if policy := at.withholds(); at.gone || !slices.Equal(at.Types, p.types) || !policy.Within(&p.o.Withhold) {
			return false
		}
	}
	return len(t.pages) > 0
}

// last is the number of the last chain, 0 if there is none.
func (t table) last() int {
	if len(t.pages) == 0 {
		return 0
	}
	return t.pages[len(t.pages)-1].chain
}

// tail is the last page of the open chain, nil if none is open.
func (t table) tail() *page {
	if !t.open {
		return nil
	}
	return t.pages[len(t.pages)-1]
}

// after is the place behind tail; behind none that of a new chain's first page.
func (t table) after(tail *page, id string) place {
	if tail == nil {
		return place{t.last() + 1, 1, id}
	}
	return place{tail.chain, tail.number + 1, id}
}

// root is where the newest root of the open chain stands, -1 if there is none.
func (t table) root() int {
	for i := len(t.pages) - 1; t.open && i >= 0 && t.pages[i].chain == t.last(); i-- {
		if t.pages[i].Snapshot != nil {
			return i
		}
	}
	return -1
}

func (t table) find(id string) (int, error) {
	i := slices.IndexFunc(t.pages, func(p *page) bool { return p.id == id })
	if i < 0 {
		return 0, ErrNotFound
	}
	if t.pages[i].gone {
		return 0, ErrWithdrawn
	}
	return i, nil
}

// next is the page that follows page i: the increment, or the stub of a root for
// which nothing had changed, or Pending or Closed. Whoever waits must be led past such
// a root, too: what lies before it is taken away in its time. It never leads past a
// page that is gone: what was in it would be missed.
func (t table) next(i int) Next {
	p := t.pages[i]
	switch {
	case i+1 == len(t.pages) && t.open:
		return Next{Page: Pending}
	case i+1 == len(t.pages):
		return Next{Page: Closed}
	}
	q := t.pages[i+1]
	if q.chain != p.chain || q.number != p.number+1 || q.gone {
		return Next{Page: Closed}
	}
	return Next{Page: q.id, Stub: q.Increment == nil}
}

// outlived are the pages that nobody needs any more: all before the newest root
// that is older than grace. Whoever follows the chain has had that long to go on
// from them, and whoever begins begins later.
func (t table) outlived(now time.Time, grace time.Duration) []*page {
	for i, p := range slices.Backward(t.pages) {
		if p.Snapshot != nil && now.Sub(p.created) >= grace {
			return t.pages[:i]
		}
	}
	return nil
}
