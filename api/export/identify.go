package export

import (
	"context"
	"fmt"
	"slices"

	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// identify finds the members whom a Group names by an identifier only
// (decisions.md 3): all Patients are read once. Whoever has changed in the window
// may have got the identifier then, so he counts as one who has joined: his data
// come whole. Who may have been meant when it began and is not any more has left:
// he is deleted, or others have the identifier, too. What an export knows that ended
// where the window begins stands above that (cohort.recall).
func (w *walk) identify(ctx context.Context, s Snapshot, since fhir.Instant) error {
	if len(w.named) == 0 {
		return nil
	}
	found := map[string][]identified{}
	upto := s.Watermark()
	windows := [][2]fhir.Instant{{fhir.None, upto}}
	if since != fhir.None {
		windows = [][2]fhir.Instant{{fhir.None, min(since, upto)}, {min(since, upto), upto}}
	}
	for i, window := range windows {
		if err := w.look(ctx, s, window[0], window[1], i > 0, found); err != nil {
			return fmt.Errorf("find members by their identifiers: %w", err)
		}
	}
	gone, all, err := w.lookBack(ctx, s, since)
	if err != nil {
		return fmt.Errorf("find former members by their identifiers: %w", err)
	}
	for name, stays := range w.named {
		who := found[name]
		open := slices.ContainsFunc(stays, func(t store.Stay) bool { return t.Left == fhir.None })
		switch {
		case len(who) == 0 && open:
			w.nobody++
		case len(who) > 1 && w.doubtful:
			w.mean(stays, who)
		case len(who) > 1 && open:
			w.several++
		case len(who) == 1:
			for _, t := range stays {
				if who[0].changed || len(gone[name]) > 0 || !all { // or another had it, too, before he was deleted
					t.Joined = max(t.Joined, since+1)
				}
				if t.Left == fhir.None || t.Joined < t.Left {
					extend(w.patients, who[0].id, t)
				}
			}
		}
		if w.doubtful { // what is left of one who was deleted is his still
			for _, id := range gone[name] {
				w.mean(stays, []identified{{id: id}})
			}
			continue
		}
		if id, ok := former(who, gone[name]); ok {
			w.leave(id, stays, upto)
		}
	}
	return nil
}

// mean takes in all who may be meant, for all of the time.
func (w *walk) mean(stays []store.Stay, who []identified) {
	for _, i := range who {
		for _, t := range stays {
			extend(w.patients, i.id, t)
		}
	}
}

// former is who alone may have had an identifier when the window began, if he is
// not the one who has it now.
func former(who []identified, gone []string) (id string, ok bool) {
	then := slices.DeleteFunc(slices.Clone(who), func(i identified) bool { return i.changed })
	switch {
	case len(then) == 1 && len(who) > 1:
		return then[0].id, true
	case len(then) == 0 && len(gone) == 1:
		return gone[0], true
	}
	return "", false
}

// leave ends the stays of one of whom it is not known when he ceased to be meant.
func (w *walk) leave(id string, stays []store.Stay, upto fhir.Instant) {
	for _, t := range stays {
		if t, some := within(t, store.Stay{Joined: fhir.None, Left: upto}); some {
			extend(w.patients, id, t)
		}
	}
}

// lookBack finds the Patients who were deleted in the window and had an identifier
// that is looked for; all: that is known of each of them, for his last state is
// kept.
func (w *walk) lookBack(ctx context.Context, s Snapshot, since fhir.Instant) (gone map[string][]string, all bool, err error) {
	gone = map[string][]string{}
	if w.doubtful {
		since = fhir.None // whenever he was deleted, as long as it is known who he was
	} else if since == fhir.None {
		return gone, true, nil
	}
	known := map[string]bool{}
	err = s.LastStates(ctx, patientType, since, func(line []byte) error {
		known[search.ID(line)] = true
		search.Identifiers(line, func(id, system, value []byte) {
			name := fhir.ByIdentifier(system, value)
			if w.named[name] != nil && !slices.Contains(gone[name], string(id)) {
				gone[name] = append(gone[name], string(id))
			}
		})
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	all = true
	err = s.Rows(ctx, store.Section{Kind: store.Deleted, Type: patientType}, since, s.Watermark(), func(row *store.Row) error {
		all = all && known[row.Key.ID]
		return nil
	})
	return gone, all, err
}

// An identified is a Patient with an identifier that was looked for.
type identified struct {
	id      string
	changed bool // in the window
}

func (w *walk) look(ctx context.Context, s Snapshot, since, upto fhir.Instant, changed bool, found map[string][]identified) error {
	ext, err := s.Extents(store.Section{Kind: store.Live, Type: patientType}, since, upto)
	if err != nil {
		return err
	}
	lost, err := s.Lines(ctx, since, upto, ext, func(line []byte) error {
		search.Identifiers(line, func(id, system, value []byte) {
			name := fhir.ByIdentifier(system, value)
			if w.named[name] == nil {
				return
			}
			// One who has it twice is one; of several, more than two are no news.
			who := found[name]
			if met := slices.ContainsFunc(who, func(i identified) bool { return i.id == string(id) }); !met && (len(who) < 2 || w.doubtful) {
				found[name] = append(who, identified{string(id), changed})
			}
		})
		return nil
	}, func() {})
	w.lose(patientType, lost)
	return err
}

// lose counts what cannot be read.
func (w *walk) lose(t fhir.Type, n int) {
	if n > 0 {
		w.lost[t] += n
	}
}
