package store

import (
	"math"
	"slices"
	"sort"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// A Veil hides rows as if they were not there: what belongs to people who take no part,
// and to nobody who does. What belongs to one who takes part, too, stays: a row goes out
// by the right of any patient (decisions.md 3). Rows in nobody's compartment, and Groups,
// whoever is in them, it hides by their keys only.
type Veil struct {
	// Patients are those who took no part at some time of a window.
	Patients map[string]Absence
	// Keys are resources that are hidden wherever they lie.
	Keys map[fhir.Key]bool
	// About tells of what a Provenance may be about whether that is hidden, or has come
	// back: it goes with what it is about. nil: Provenance lies where it lies.
	About func(fhir.Key) (Absence, bool)
}

// An Absence is when a Patient took no part, as far as a window is concerned.
type Absence struct {
	// Out: he takes no part where the window ends, so what is his is hidden. Else he has
	// come back in it, so what is his counts from the beginning (decisions.md 3: joiners).
	Out bool
	// Told is the change instant behind which deletions of what was his count: None if he
	// took part when the window began, Never if he took part at no time of it.
	Told fhir.Instant
}

// Never is behind all instants.
const Never fhir.Instant = math.MaxInt64

// Veiled is s without what a veil hides. It is closed with s. nil hides nothing.
func (s *Snapshot) Veiled(v *Veil) *Snapshot {
	c := choosing{every: true}
	if s.choice != nil {
		c = s.choice.again()
	}
	c.veil = nil
	if v != nil {
		c.veil = &veiling{Veil: *v}
		for id, a := range v.Patients {
			c.veil.hashes = append(c.veil.hashes, segment.PatientsHash([]string{id}))
			c.veil.brings = c.veil.brings || !a.Out
		}
		slices.Sort(c.veil.hashes)
	}
	again := *s
	again.choice = &c
	return &again
}

// Hides tells whether a row of a resource that lives is hidden.
func (v *Veil) Hides(row *segment.Row) bool {
	return v != nil && (v.Keys[row.Key] || v.Behind(row, fhir.None+1) == Never)
}

// Behind is the instant behind which a row of a resource that lives counts, in place of
// another: Never if it is hidden, None if it has come back.
func (v *Veil) Behind(row *segment.Row, after fhir.Instant) fhir.Instant {
	if row.Key.Type != groupType && len(row.Patients) > 0 {
		least := Never
		for _, id := range row.Patients {
			var absent *Absence
			if a, is := v.Patients[id]; is {
				absent = &a
			}
			least = min(least, absent.behind(segment.Live, after))
		}
		after = least
	}
	if row.Key.Type == provenanceType && after != Never {
		after = v.behindTargets(row.References, len(row.Patients) > 0, after)
	}
	return after
}

// A veiling is a Veil at work.
type veiling struct {
	Veil

	hashes []uint32 // of Patients, sorted
	brings bool     // rows count from the beginning, as some have come back
}

// bringsBack tells whether rows from before a window may count, as somebody has come back.
func (v *veiling) bringsBack() bool { return v != nil && v.brings }

// concerns tells whether a row of block b, of a section that ends before block to, may be
// hidden or brought back.
func (v *veiling) concerns(s *seg, b, to int) bool {
	if v == nil {
		return false
	}
	sec := s.r.SectionOf(b)
	switch {
	case sec.Kind != segment.Live && sec.Kind != segment.Deleted:
		return false
	case sec.Kind == segment.Live && v.names(sec.Type), sec.Kind == segment.Live && sec.Type == provenanceType && v.About != nil:
		return true
	case sec.Type == groupType:
		return false
	}
	k := &s.r.Blocks()[b]
	return len(v.hashes) > 0 && k.Loose < k.Rows && !passes(v.hashes, s, b, to)
}

// names tells whether a resource of a type is hidden by its key.
func (v *veiling) names(t fhir.Type) bool {
	for key := range v.Keys {
		if key.Type == t {
			return true
		}
	}
	return false
}

// lay hides rows of a block among those that count behind some instants, and lets those
// count from the beginning that have come back.
func (v *veiling) lay(d *segment.Directory, b int, sec segment.Section, links segment.Links, behind []fhir.Instant) error {
	if v == nil || sec.Kind != segment.Live && sec.Kind != segment.Deleted {
		return nil
	}
	if sec.Type != groupType {
		v.layByPatients(sec.Kind, links, behind)
	}
	if sec.Kind == segment.Live && sec.Type == provenanceType && v.About != nil {
		v.layByTargets(links, behind)
	}
	if sec.Kind != segment.Live || !v.names(sec.Type) {
		return nil
	}
	rows, err := d.Rows(nil, b)
	for i := range rows {
		if v.Keys[fhir.Key{Type: sec.Type, ID: rows[i].Key.ID}] {
			behind[i] = always
		}
	}
	return err
}

func (v *veiling) layByPatients(kind segment.Kind, links segment.Links, behind []fhir.Instant) {
	absent, some := make([]*Absence, len(links.Patients.Names)), false
	for i, id := range links.Patients.Names {
		if a, is := v.Patients[id]; is {
			absent[i], some = &a, true
		}
	}
	for i := range behind {
		of := links.Patients.Of(i)
		if !some || behind[i] == always || len(of) == 0 {
			continue
		}
		after := always
		for _, p := range of {
			after = min(after, absent[p].behind(kind, behind[i]))
		}
		behind[i] = after
	}
}

// behind is the instant behind which a row counts by the right of one who was absent,
// in place of another; nil: he was not.
func (a *Absence) behind(kind segment.Kind, after fhir.Instant) fhir.Instant {
	switch {
	case a == nil:
		return after
	case kind == segment.Deleted:
		return max(after, a.Told)
	case a.Out:
		return always
	}
	return fhir.None
}

func (v *veiling) layByTargets(links segment.Links, behind []fhir.Instant) {
	var refs []fhir.Key
	for i := range behind {
		if behind[i] == always {
			continue
		}
		refs = refs[:0]
		for _, r := range links.References.Of(i) {
			refs = append(refs, links.References.Names[r])
		}
		behind[i] = v.behindTargets(refs, len(links.Patients.Of(i)) > 0, behind[i])
	}
}

// behindTargets is the instant behind which a Provenance counts by what it is about, in
// place of another; owned: it is about a Patient, too, for whose sake it counts. What else
// it refers to may be who made it: that tells nothing.
func (v *Veil) behindTargets(refs []fhir.Key, owned bool, after fhir.Instant) fhir.Instant {
	least, met := Never, false
	if owned {
		least = after
	}
	for _, key := range refs {
		var a Absence
		is := false
		if v.About != nil {
			a, is = v.About(key)
		}
		switch met = met || is; {
		case is:
			least = min(least, a.behind(segment.Live, after))
		case fhir.OnlyTargeted(key.Type):
			least = min(least, after)
		}
	}
	if !met {
		return after
	}
	return least
}

// passes tells whether the order of a settled segment leaves none of some Patients,
// by their sorted hashes, in a block: rows of one lie where the hash of his id says.
func passes(hashes []uint32, s *seg, b, to int) bool {
	blocks := s.r.Blocks()
	if s.window() == nil || blocks[b].Shared > 0 {
		return false
	}
	first := blocks[b].Lead.Patients
	i := sort.Search(len(hashes), func(i int) bool { return hashes[i] >= first })
	return i == len(hashes) || b+1 < to && hashes[i] > blocks[b+1].Lead.Patients
}
