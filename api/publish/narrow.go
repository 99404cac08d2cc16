package publish

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"tidemark/api/export"
	"tidemark/store"
)

// Under a policy nobody knows what a page holds before all bodies are read, which takes
// too long to be done while a snapshot is pinned. So the snapshot is pinned for itself,
// and is no page before its files are made and its record says so: until then it is
// unfinished, and one that a crash has left is taken away. A page of that kind never
// keeps segments.

// narrowed makes a page of what the policy lets out.
func (p *Pages) narrowed(ctx context.Context, pin string, tail *page, root bool) (r record, err error) {
	p.begin(pin)
	s, err := p.db.Pin(ctx, pin, never, func(s export.Snapshot) ([]byte, error) {
		if r, err = p.plan(s, tail, root); err != nil {
			return nil, err
		}
		return json.Marshal(record{Version: recordVersion, Types: r.Types, Epoch: r.Epoch, Unfinished: true})
	})
	if err == nil {
		r, err = p.narrow(ctx, s, r, root)
		err = errors.Join(err, s.Close())
	}
	if err == nil {
		err = p.finish(pin, r)
	}
	if err != nil {
		return r, errors.Join(err, p.clear(context.WithoutCancel(ctx)))
	}
	return r, nil
}

// narrow makes the files of a page that was planned.
func (p *Pages) narrow(ctx context.Context, s export.Snapshot, r record, root bool) (record, error) {
	o := export.Options{Limits: p.o.Limits, Bases: p.o.Bases, Withhold: p.o.Withhold}
	before := 0
	if r.Increment != nil {
		w, err := r.Increment.Narrow(ctx, s, p.o.Types, o, before)
		if err != nil {
			return r, err
		}
		if r.Increment = nil; tells(w, root) {
			r.Increment, before = &w, len(w.Files())
		}
	}
	if r.Snapshot != nil {
		w, err := r.Snapshot.Narrow(ctx, s, p.o.Types, o, before)
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

// begin keeps a pin from being taken for a page. Called before it is there.
func (p *Pages) begin(pin string) {
	p.turning.Lock()
	defer p.turning.Unlock()
	p.unfinished[pin] = true
}

// finish makes a page of a snapshot whose files are made, in one step.
func (p *Pages) finish(pin string, r record) error {
	rule, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := p.db.Detach(pin, rule); err != nil {
		return err
	}
	p.forget(pin)
	return nil
}

func (p *Pages) forget(pin string) {
	p.turning.Lock()
	defer p.turning.Unlock()
	delete(p.unfinished, pin)
}

// findUnfinished finds what an earlier process has left.
func (p *Pages) findUnfinished() {
	for _, pin := range p.db.Pinned() {
		var r record
		if _, ours := parsePlace(pin.ID); ours && json.Unmarshal(pin.Rule, &r) == nil && r.Unfinished {
			p.begin(pin.ID)
		}
	}
}

// clear takes away what was not finished. Called with making held, or where nothing is
// published.
func (p *Pages) clear(ctx context.Context) error {
	p.turning.RLock()
	pins := slices.Collect(maps.Keys(p.unfinished))
	p.turning.RUnlock()
	for _, pin := range pins {
		if err := p.db.Unpin(ctx, pin); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		p.forget(pin)
	}
	return nil
}

// endWeaker ends the pages that were made when less was withheld, or other things: for
// good, and what they hold leaves the disk (decisions.md 6). One that cannot be ended
// there is not shown by this process, and is tried again.
func (p *Pages) endWeaker() {
	for _, at := range p.table().pages {
		if !at.weaker || at.revoked {
			continue
		}
		if err := p.db.Revoke(at.pin(), nil); err != nil && !errors.Is(err, store.ErrNotFound) {
			p.o.Logger.Warn("published pages that hold what is withheld now are not shown any more, but keep their place on the disk; it is tried again", "err", err)
			return
		}
	}
}
