package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
)

// never is when pages expire: they are taken away when they are outlived.
var never = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

var (
	errNothing = errors.New("nothing has changed")
	errBroken  = errors.New("the store cannot tell what has changed since")
)

// Publish makes a page of what has changed since the last one, and none if nothing
// has; with root it holds everything, too, and new consumers begin with it. Where
// no chain is open it begins one. Nothing waits for a commit.
func (p *Pages) Publish(ctx context.Context, root bool) error {
	p.making.Lock()
	defer p.making.Unlock()
	t := p.table()
	err := p.publish(ctx, t, t.tail(), root)
	if errors.Is(err, errBroken) {
		p.o.Logger.WarnContext(ctx, "the published chain cannot be continued: a new one begins, and consumers begin again",
			"chain", t.last(), "reason", "the store was restored, or has forgotten deletions since the last page")
		err = p.publish(ctx, t, nil, true)
	}
	if err != nil && !errors.Is(err, errNothing) {
		return fmt.Errorf("publish %s: %w", p.names(), err)
	}
	return nil
}

func (p *Pages) publish(ctx context.Context, t table, tail *page, root bool) error {
	at := page{place: t.after(tail, export.NewID())}
	err := p.clear(ctx)
	switch {
	case err != nil:
	case p.o.Withhold.Empty():
		at.record, err = p.whole(ctx, at.pin(), tail, root || tail == nil)
	default:
		at.record, err = p.narrowed(ctx, at.pin(), tail, root || tail == nil)
	}
	if err != nil {
		return err
	}
	p.tell(ctx, &at)
	p.heavy = true
	p.lighten(ctx)
	return nil
}

// whole makes a page of all that there is: it is there with its pin.
func (p *Pages) whole(ctx context.Context, pin string, tail *page, root bool) (r record, err error) {
	s, err := p.db.Pin(ctx, pin, never, func(s export.Snapshot) ([]byte, error) {
		if r, err = p.plan(s, tail, root); err != nil {
			return nil, err
		}
		if err := only(s, r); err != nil {
			return nil, err
		}
		return json.Marshal(r)
	})
	if err != nil {
		return r, err
	}
	_ = s.Close() // the pin stays; nothing was written that a failure could lose
	return r, nil
}

// lighten makes copies of what pages hold that keep more on the disk than they
// need: an increment is a few resources, and the segments in which they lie are all
// that came in meanwhile. Called with making held.
func (p *Pages) lighten(ctx context.Context) {
	if !p.heavy {
		return
	}
	var failed error
	light := map[string]bool{} // without those that have gone
	for _, at := range p.table().pages {
		if at.gone {
			continue
		}
		pin := at.pin()
		if !p.light[pin] {
			if err := p.detach(ctx, pin); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
		}
		light[pin] = true
	}
	p.light = light
	if failed != nil && ctx.Err() == nil && !errors.Is(failed, store.ErrClosed) {
		p.o.Logger.WarnContext(ctx, "published pages keep more on the disk than they need; it is tried again", "err", failed)
	}
	p.heavy = failed != nil
}

// detach does so for one page if its files, even uncompressed, are less than what
// it keeps.
func (p *Pages) detach(ctx context.Context, pin string) error {
	s, err := p.db.Snapshot(pin)
	if err != nil {
		return leftAlone(err)
	}
	defer func() { _ = s.Close() }() // what was written is durable
	r, ok := decode(s.Rule())
	if !ok || r.bytes() >= s.Holds() {
		return nil
	}
	before := 0
	for _, w := range []*export.Whole{r.Increment, r.Snapshot} {
		if w == nil {
			continue
		}
		if *w, err = w.Copy(ctx, s, before); err != nil {
			return leftAlone(err)
		}
		before += len(w.Files())
	}
	rule, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return leftAlone(p.db.Detach(pin, rule))
}

// leftAlone passes over the error of a page that was ended meanwhile.
func leftAlone(err error) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrRevoked) {
		return nil
	}
	return err
}

// plan decides what a page holds.
func (p *Pages) plan(s export.Snapshot, tail *page, root bool) (record, error) {
	r := record{Version: recordVersion, Types: p.types, Epoch: s.Epoch()}
	if tail != nil {
		if s.Epoch() != tail.Epoch || tail.upto() < s.Forgotten() {
			return r, errBroken
		}
		w, err := export.PlanWhole(s, p.o.Types, tail.upto(), p.o.Limits)
		if err != nil {
			return r, err
		}
		if tells(w, root) {
			r.Increment = &w
		}
	}
	if root {
		w, err := export.PlanWhole(s, p.o.Types, fhir.None, p.o.Limits)
		if err != nil {
			return r, err
		}
		r.Snapshot = &w
	}
	if r.Increment == nil && r.Snapshot == nil {
		return r, errNothing
	}
	return r, nil
}

// tells tells whether there is anything to say in an increment. Records that could not
// be decoded make no page of their own, but who follows the chain is told of them, and
// its next window begins here.
func tells(w export.Whole, root bool) bool { return !w.Empty() || root && len(w.Files()) > 0 }

// only has the snapshot keep no more than the page needs: pages stay for weeks.
func only(s export.Snapshot, r record) error {
	var all []store.Extent
	for _, w := range []*export.Whole{r.Increment, r.Snapshot} {
		if w == nil {
			continue
		}
		ext, err := w.Extents(s)
		if err != nil {
			return err
		}
		all = append(all, ext...)
	}
	return s.Only(all)
}

// tell writes down and counts a page that was made. Its id stays out of the log:
// it opens all its files.
func (p *Pages) tell(ctx context.Context, at *page) {
	for _, w := range []struct {
		kind string
		*export.Whole
	}{{"increment", at.Increment}, {"root", at.Snapshot}} {
		if w.Whole == nil {
			continue
		}
		rows := map[export.List]int64{}
		for _, f := range w.Files() {
			rows[f.List] += f.Rows
		}
		p.made.Add(ctx, 1, metric.WithAttributes(attribute.String("kind", w.kind)))
		p.o.Logger.InfoContext(ctx, "published", "kind", w.kind, "chain", at.chain, "page", at.number, "upto", w.Upto().String(),
			"resources", rows[export.Output], "deleted", rows[export.Deleted], "files", len(w.Files()))
	}
}

// How often Run looks at least, for something to take away or a chain to begin
// anew, and to try again after a failure; and how soon at the soonest, by itself and
// because somebody asked for a root: anybody may, as often as he likes, while there
// cannot be one.
const (
	lookEvery  = time.Minute
	leastPause = 10 * time.Millisecond
	askedPause = time.Second
)

// Run publishes when it is time, and takes away what is outlived, until ctx ends.
func (p *Pages) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		began := time.Now()
		timer := time.NewTimer(max(p.step(ctx), leastPause))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-p.wake:
			timer.Reset(askedPause - time.Since(began))
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		timer.Stop()
	}
	return nil
}

// step does what is due and tells when to come again.
func (p *Pages) step(ctx context.Context) time.Duration {
	err := p.advance(ctx)
	if err == nil {
		err = p.Sweep(ctx)
	}
	switch {
	case err == nil:
		return p.untilDue(time.Now())
	case errors.Is(err, store.ErrNotReady), errors.Is(err, store.ErrRevoked): // an erasure has come between
		return time.Second
	case ctx.Err() == nil && !errors.Is(err, store.ErrClosed):
		p.o.Logger.WarnContext(ctx, "publishing is put off; it is tried again", "err", err, "after", lookEvery)
	}
	return lookEvery
}

// advance publishes if it is time to.
func (p *Pages) advance(ctx context.Context) error {
	if !p.On() {
		return nil
	}
	now, t := time.Now(), p.table()
	root := t.root() < 0 || p.untilRoot(t, now) <= 0
	if !root && p.untilIncrement(t, now) > 0 {
		p.making.Lock()
		defer p.making.Unlock()
		p.lighten(ctx)
		return p.clear(ctx)
	}
	if err := p.Publish(ctx, root); err != nil {
		return err
	}
	p.looked = now
	return nil
}

func (p *Pages) untilDue(now time.Time) time.Duration {
	t := p.table()
	switch {
	case !p.On():
		return lookEvery
	case t.root() < 0: // something was erased this moment
		return 0
	}
	return min(lookEvery, p.untilRoot(t, now), p.untilIncrement(t, now))
}

// untilRoot is how long the newest root is fresh. One from further in the future
// than it may be old was made by a clock that was wrong.
func (p *Pages) untilRoot(t table, now time.Time) time.Duration {
	age := now.Sub(t.pages[t.root()].created)
	if age < -p.o.SnapshotEvery {
		return 0
	}
	return p.o.SnapshotEvery - age
}

// untilIncrement counts from the last page or, if nothing had changed since then,
// from when that was seen.
func (p *Pages) untilIncrement(t table, now time.Time) time.Duration {
	last := t.tail().created
	if last.After(now) || p.looked.After(last) {
		last = p.looked
	}
	return p.o.Every - now.Sub(last)
}

// Sweep takes away the pages that are outlived or withdrawn, oldest first, so that
// the last chain stays the last. While no chain is open nothing goes, for a new
// one must be there before what tells that the old one is closed. Where nothing is
// published any more everything goes.
func (p *Pages) Sweep(ctx context.Context) error {
	p.endWeaker()
	t := p.table()
	var gone []*page
	switch {
	case !p.On():
		if err := p.clear(ctx); err != nil {
			return fmt.Errorf("take published pages away: %w", err)
		}
		gone = t.pages
	case t.open:
		gone = t.outlived(time.Now(), p.o.Grace)
		for _, at := range t.pages[len(gone):] {
			if at.gone && !at.weaker && !at.revoked { // what was revoked says so to the end
				gone = append(slices.Clip(gone), at)
			}
		}
	}
	for _, at := range gone {
		if err := p.db.Unpin(ctx, at.pin()); err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("take published pages away: %w", err)
		}
	}
	if len(gone) > 0 {
		p.o.Logger.InfoContext(ctx, "took published pages away", "pages", len(gone), "kept", len(t.pages)-len(gone))
	}
	return nil
}
