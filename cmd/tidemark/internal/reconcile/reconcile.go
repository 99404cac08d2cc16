// Package reconcile compares what a source has exported with what a store has, and says
// what the store lacks, has in an older version, or has though the source has it no more.
//
// Both sides are compared in the order of the store's index: the export is sorted on the
// disk, the store is walked through. Memory does not grow with either. It refuses to know
// where the store is open, and how records are written.
package reconcile

import (
	"cmp"
	"slices"

	"tidemark/store"
	"tidemark/store/fhir"
)

// What tells what is wrong with a resource, or not.
type What uint8

// Same is what is as it should be. Newer is no fault: it has changed since the export.
const (
	Same      What = iota
	Newer          // changed, made or deleted here after the export
	Missing        // the export has it, the store has not
	Stale          // the export's version is newer
	Extra          // the store has it, the export has not, and it is no newer than that: a deletion was lost
	Reborn         // the export has a lower version that is later: it was deleted for good and made again, which was lost
	Behind         // the export has what was before, though nothing has changed here since: the source has gone back
	Different      // the same version with another content
	Deleted        // deleted here, though the export has it as it was before
	Erased         // erased here for ever, and the export has it still
	Unjudged       // the store has it, and the export does not tell whether the source has
	whats
)

func (w What) String() string {
	return [whats]string{"same", "newer", "missing", "stale", "extra", "reborn", "behind", "different", "deleted", "erased", "unjudged"}[w]
}

// Faults are what should not be.
var Faults = []What{Missing, Stale, Extra, Reborn, Behind, Different, Deleted}

// An Entry is what the export says of a resource.
type Entry struct {
	Key       fhir.Key
	File      uint32 // which of the export's
	Line      uint64
	Version   int64        // store.NoVersion if there is no decimal one
	Updated   fhir.Instant // fhir.None if it says none
	Hash      uint64       // of its bytes, as the store's (Newest.Hash)
	Canonical uint64       // of what it says, see Canonical; 0 if nobody asked
	Gone      bool         // the export says that it was deleted
	Refused   bool         // it was erased here
}

// Rules are what the comparison needs to know.
type Rules struct {
	At fhir.Instant // as of when the export is
	// Whole are types of which the export has all that the source has.
	Whole map[fhir.Type]bool
	// From tells of a topic whether what came from it is the source's, so that it is extra
	// where the export lacks it.
	From func(topic string) bool
	// Content: bytes that differ under the same version are looked into.
	Content bool
}

// judge says what is wrong with a resource. Either may be nil: that side has it not.
// Different is said of bytes that differ; whether they say something else is another's to
// find out.
func (r *Rules) judge(e *Entry, n *store.Newest) What {
	switch {
	case e == nil || e.Gone:
		return r.judgeAbsent(e, n)
	case e.Refused:
		return Erased
	case n == nil:
		return Missing
	case n.Kind != store.Live && n.Said() > r.At:
		return Newer
	}
	switch o := n.Compare(e.Version, e.Updated); {
	case n.Kind != store.Live && o < 0:
		return Deleted
	case n.Kind != store.Live:
		return Missing
	case o > 0:
		return Stale
	case o < 0 && n.Said() > r.At:
		return Newer
	case o < 0 && e.Updated != fhir.None && e.Updated > n.Clock.LastUpdated:
		return Reborn
	case o < 0:
		return Behind
	case r.Content && e.Hash != n.Hash:
		return Different
	}
	return Same
}

// judgeAbsent judges what the source has not, as far as the export tells.
func (r *Rules) judgeAbsent(e *Entry, n *store.Newest) What {
	switch {
	case n == nil || n.Kind != store.Live:
		return Same
	case n.Said() > r.At:
		return Newer
	case e != nil:
		return Extra
	case !r.Whole[n.Key.Type] || !r.From(n.Clock.Origin.Topic):
		return Unjudged
	}
	return Extra
}

// newest is of several entries of one resource the one that counts. An export may have a
// resource twice, and what it tells deleted is so only if it has it nowhere.
func newest(list []Entry) *Entry {
	best := slices.MaxFunc(list, func(a, b Entry) int {
		return cmp.Or(boolCompare(!a.Gone, !b.Gone), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Updated, b.Updated), cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return &best
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
