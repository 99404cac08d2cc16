package hospital

// mishap writes a record that no plan foresaw; false if this is not the time
// for one. Whatever it writes has one meaning by the rules of the order of
// changes: what has no version is only repeated while it is the newest, and
// never brought back, since nothing could tell it from an old life.
func (h *Hospital) mishap(now int64, live bool) (Record, bool) {
	x := h.rng.Float64()
	hit := func(share float64) bool {
		x -= share
		return x < 0
	}
	switch {
	case hit(h.habits.Duplicate):
		return h.repeat(Duplicate)
	case hit(h.habits.Stale / 2):
		return h.repeat(Stale)
	case hit(h.habits.Stale / 2):
		return h.swap(now)
	case hit(h.habits.Delete):
		return h.remove(now)
	case hit(h.habits.Recreate):
		return h.recreate(now)
	case hit(h.habits.Correct):
		return h.correct(now, live)
	case hit(h.habits.Panel):
		return h.meetAny(now)
	case live && hit(h.habits.Admit):
		h.admit(h.calendar.next().due)
	}
	return Record{}, false
}

// repeat sends a recent record again, as producers do: as a duplicate while it
// is the newest of its resource, as a stale one after another.
func (h *Hospital) repeat(op Op) (Record, bool) {
	for range 16 {
		s, ok := h.recent.pick(h.rng)
		if !ok {
			break
		}
		newest := s.version == s.of.version
		if newest != (op == Duplicate) || !newest && s.of.bare != full {
			continue
		}
		again := s.rec
		again.Op, again.Late = op, false
		return again, true
	}
	return Record{}, false
}

// swap writes two corrections of a resource in the wrong order: the first one
// arrives after the second and comes to nothing.
func (h *Hospital) swap(now int64) (Record, bool) {
	r, ok := h.pick(now-2, func(r *resource) bool { return r.kind.editable() && r.bare == full })
	if !ok {
		return Record{}, false
	}
	r.edits++
	first := h.write(r, Stale, now-1, now)
	r.edits++
	second := h.write(r, Update, now, now)
	h.queue = append(h.queue, first)
	return second, true
}

func (h *Hospital) remove(now int64) (Record, bool) {
	r, ok := h.pick(now, func(r *resource) bool { return r.kind.deletable() })
	if !ok {
		return Record{}, false
	}
	r.version++
	r.deleted, r.changed = true, now
	rec := h.record(r, now)
	rec.Op = Delete
	h.recent.put(sent{rec: rec, of: r, version: r.version})
	if r.bare == full {
		h.gone.put(r)
	}
	return rec, true
}

func (h *Hospital) recreate(now int64) (Record, bool) {
	r, ok := h.gone.pick(h.rng)
	if !ok || !r.deleted || r.changed >= now {
		return Record{}, false
	}
	r.deleted = false
	return h.write(r, Recreate, now, now), true
}

func (h *Hospital) correct(now int64, live bool) (Record, bool) {
	r, ok := h.pick(now, func(r *resource) bool { return r.kind.editable() })
	if !ok {
		return Record{}, false
	}
	r.edits++
	return h.write(r, Update, h.moment(r, now, live), now), true
}

func (h *Hospital) meetAny(now int64) (Record, bool) {
	p := h.panels[h.rng.IntN(len(h.panels))]
	if p.res.version == 0 {
		return Record{}, false
	}
	return h.meet(p, now)
}

// pick looks for a resource that fits and has not changed at or after now.
func (h *Hospital) pick(now int64, fits func(*resource) bool) (*resource, bool) {
	for range 16 {
		r, ok := h.open.pick(h.rng)
		if ok && !r.deleted && r.changed < now && fits(r) {
			return r, true
		}
	}
	return nil, false
}
