package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// AboutsKey says that the index leads to all Provenance by what it is about: that of
// a store from before does not.
func AboutsKey() []byte { return []byte{spaceAbout} }

// What follows the head of a key that leads to Provenance.
const (
	tailSet = 0 // the hash of a set of Patients, 4 bytes
	tailID  = 1 // the id of a Provenance, packed
)

// A Pointer is where a key leads that is on the way to Provenance: to one, or to all
// that is about what lies in the compartments of other Patients.
type Pointer struct {
	Provenance string // its id; "" if it is a set
	Set        uint32 // segment.PatientsHash of those Patients
}

func (p Pointer) append(k []byte) []byte {
	if p.Provenance == "" {
		return binary.BigEndian.AppendUint32(append(k, tailSet), p.Set)
	}
	return segment.PackID(append(k, tailID), p.Provenance)
}

// AboutKey leads from the hash of a set of Patients to a Provenance that is about
// something in their compartments, or was; or to a set in whose compartments
// something of theirs was before, or after.
func AboutKey(set uint32, to Pointer) []byte { return to.append(about(set)) }

func about(set uint32) []byte { return binary.BigEndian.AppendUint32([]byte{spaceAbout}, set) }

// AwaitedKey leads to a Provenance from the hash of a resource that it is about and
// that lies in nobody's compartment, or is not here; or to a set of Patients in whose
// compartments that was. A resource that is not here shall not be named.
func AwaitedKey(resource uint64, to Pointer) []byte { return to.append(awaited(resource)) }

func awaited(resource uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{spaceAwaited}, resource)
}

// ResourceHash is what a resource is known by in an AwaitedKey.
func ResourceHash(k fhir.Key) uint64 {
	var b [80]byte
	return xxhash.Sum64(RowKey(b[:0], k))
}

// ParsePointer reads where an AboutKey or an AwaitedKey leads.
func ParsePointer(k []byte) (p Pointer, err error) {
	head := 5
	if len(k) > 0 && k[0] == spaceAwaited {
		head = 9
	}
	switch {
	case len(k) == head+5 && k[head] == tailSet:
		return Pointer{Set: binary.BigEndian.Uint32(k[head+1:])}, nil
	case len(k) > head+1 && k[head] == tailID:
		return Pointer{Provenance: segment.UnpackID(k[head+1:])}, nil
	}
	return p, fmt.Errorf("%w: key that leads to a Provenance", ErrCorrupt)
}

// LeadsTo is to which resource a ReferrerKey, an AboutKey or an AwaitedKey leads: the
// zero Key if it leads to other sets.
func LeadsTo(k []byte) (to fhir.Key, err error) {
	if len(k) > 0 && k[0] == spaceReferrer {
		_, to, err = ParseReferrerKey(k)
		return to, err
	}
	p, err := ParsePointer(k)
	if err != nil || p.Provenance == "" {
		return to, err
	}
	return fhir.Key{Type: provenanceType, ID: p.Provenance}, nil
}

var provenanceType, _ = fhir.ParseType("Provenance")

// AboutsOf bounds where a set of Patients leads.
func AboutsOf(set uint32) *pebble.IterOptions { return below(about(set)) }

// AwaitedOf bounds where a resource leads that is awaited.
func AwaitedOf(resource uint64) *pebble.IterOptions { return below(awaited(resource)) }

// Pointers bounds all keys that lead to Provenance, for each of their two spaces.
func Pointers() []*pebble.IterOptions {
	return []*pebble.IterOptions{{LowerBound: []byte{spaceAbout, 0}, UpperBound: []byte{spaceAbout + 1}}, Awaited()}
}

// Awaited bounds what is awaited.
func Awaited() *pebble.IterOptions { return space(spaceAwaited) }

// below bounds the keys that begin with head. What follows there is no 255.
func below(head []byte) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: head, UpperBound: append(slices.Clip(head), 255)}
}

// Each calls fn for each pointer within bounds until it says that it has enough; fn may
// not keep the key. The iterator has no bounds of its own.
func Each(it *pebble.Iterator, in *pebble.IterOptions, fn func(key []byte, to Pointer) (more bool)) error {
	for ok := it.SeekGE(in.LowerBound); ok && bytes.Compare(it.Key(), in.UpperBound) < 0; ok = it.Next() {
		to, err := ParsePointer(it.Key())
		if err != nil {
			return err
		}
		if !fn(it.Key(), to) {
			return nil
		}
	}
	return it.Error()
}

// Reach calls fn for each Provenance to which sets of Patients lead, and the sets to
// which those lead in turn, until it says that it has enough. One may come more than
// once. More than limit sets are too many: then it ends and tells false.
func Reach(it *pebble.Iterator, sets map[uint32]bool, limit int, fn func(id string) (more bool)) (bool, error) {
	more := true
	few, err := reach(sets, limit, func(set uint32, add func(uint32)) (bool, error) {
		err := Each(it, AboutsOf(set), func(_ []byte, to Pointer) bool {
			if to.Provenance == "" {
				add(to.Set)
				return true
			}
			more = fn(to.Provenance)
			return more
		})
		return more, err
	})
	return few, err
}

// Leads tells whether Reach would come to a Provenance. It passes by all others, of
// which there may be very many.
func Leads(it *pebble.Iterator, sets map[uint32]bool, id string) (found bool, err error) {
	_, err = reach(sets, math.MaxInt, func(set uint32, add func(uint32)) (bool, error) {
		key := AboutKey(set, Pointer{Provenance: id})
		if it.SeekGE(key) && bytes.Equal(it.Key(), key) {
			found = true
			return false, nil
		}
		err := Each(it, linksOf(set), func(_ []byte, to Pointer) bool { add(to.Set); return true })
		return true, err
	})
	return found, err
}

// linksOf bounds to which sets a set leads.
func linksOf(set uint32) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: append(about(set), tailSet), UpperBound: append(about(set), tailSet+1)}
}

// reach visits sets, and those that it is told to add, until it has enough or they are
// more than limit: then it tells false.
func reach(sets map[uint32]bool, limit int, visit func(set uint32, add func(uint32)) (more bool, err error)) (few bool, err error) {
	seen := make(map[uint32]bool, len(sets))
	open := make([]uint32, 0, len(sets))
	add := func(set uint32) {
		if !seen[set] {
			seen[set] = true
			open = append(open, set)
		}
	}
	for set := range sets {
		add(set)
	}
	slices.Sort(open) // as they lie
	for ; len(open) > 0; open = open[1:] {
		if len(seen) > limit {
			return false, nil
		}
		if more, err := visit(open[0], add); err != nil || !more {
			return err == nil, err
		}
	}
	return true, nil
}
