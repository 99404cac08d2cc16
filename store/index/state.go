package index

import (
	"encoding/binary"

	"tidemark/store/fhir"
	"tidemark/store/internal/varint"
	"tidemark/store/segment"
)

// A State is what decides about a resource's next change: its newest row's
// facts, but never its place, for every merge moves rows.
type State struct {
	Kind     segment.Kind // Live, Deleted, or Internal for the deletion of a resource never had
	Seq      uint64
	Instant  fhir.Instant
	Length   int32
	Clock    segment.Clock
	Hash     uint64
	Placed   fhir.Instant
	Patients uint32 // segment.PatientsHash of the row's patients
	Life     segment.Life
}

// Section is where the row of a resource of type t stands.
func (s *State) Section(t fhir.Type) segment.Section {
	if s.Kind == segment.Internal {
		return segment.Section{Kind: segment.Internal, Type: segment.Unseen}
	}
	return segment.Section{Kind: s.Kind, Type: t}
}

// Place is where the row lies in its segment.
func (s *State) Place() segment.Place {
	return segment.Place{Patients: s.Patients, Bound: segment.Bound{Instant: s.Instant, Seq: s.Seq}}
}

const (
	stateKind        = 3 // two bits
	stateVersion     = 1 << 2
	stateInherited   = 1 << 3
	stateUpdated     = 1 << 4
	stateTimestamp   = 1 << 5
	statePosition    = 1 << 6
	stateLife        = 1 << 7
	statePatients    = 1 << 8
	stateSincePlaced = 1 << 9
	stateUpTo        = 1 << 10
	stateTold        = 1 << 11
)

// Encode codes s; origin is the number of its partition.
func (s *State) Encode(dst []byte, origin uint64) []byte {
	c := &varint.Coder{B: dst}
	f := uint64(s.Kind) & stateKind
	set := func(cond bool, bit uint64) {
		if cond {
			f |= bit
		}
	}
	k := &s.Clock
	set(k.Version != segment.NoVersion, stateVersion)
	set(k.Inherited, stateInherited)
	set(k.LastUpdated != fhir.None, stateUpdated)
	set(k.Timestamp != fhir.None, stateTimestamp)
	set(k.Position != 0, statePosition)
	set(!s.Life.Empty(), stateLife)
	set(s.Patients != 0, statePatients)
	set(s.Placed != s.Instant, stateSincePlaced)
	set(k.UpTo, stateUpTo)
	set(k.Told, stateTold)
	c.Uint(f)
	c.Int(int64(s.Instant))
	c.Uint(s.Seq)
	c.Uint(uint64(s.Length))
	c.Uint(origin)
	c.Int(k.Offset)
	if s.Kind == segment.Live {
		c.B = binary.LittleEndian.AppendUint64(c.B, s.Hash)
	}
	if f&stateVersion != 0 {
		c.Uint(uint64(k.Version))
	}
	if f&stateUpdated != 0 {
		c.Int(int64(s.Instant) - int64(k.LastUpdated))
	}
	if f&stateTimestamp != 0 {
		c.Int(int64(s.Instant) - int64(k.Timestamp))
	}
	if f&statePosition != 0 {
		c.Uint(k.Position)
	}
	if f&statePatients != 0 {
		c.B = binary.LittleEndian.AppendUint32(c.B, s.Patients)
	}
	if f&stateSincePlaced != 0 {
		c.Int(int64(s.Instant) - int64(s.Placed))
	}
	if f&stateLife != 0 {
		c.B = s.Life.Append(c.B, s.Instant)
	}
	return c.B
}

// DecodeState is the inverse of Encode; origin gives a number's partition.
func DecodeState(b []byte, origin func(uint64) (segment.Partition, bool)) (s State, err error) {
	c := &varint.Coder{B: b}
	f := c.ReadUint()
	s.Kind = segment.Kind(f & stateKind)
	s.Instant = fhir.Instant(c.ReadInt())
	s.Seq = c.ReadUint()
	s.Length = int32(c.ReadUint())
	k := &s.Clock
	var known bool
	if k.Origin, known = origin(c.ReadUint()); !known {
		c.Bad = true
	}
	k.Offset = c.ReadInt()
	if s.Kind == segment.Live {
		s.Hash = binary.LittleEndian.Uint64(c.Take(8))
	}
	k.Version, k.LastUpdated, k.Timestamp = segment.NoVersion, fhir.None, fhir.None
	k.Inherited, k.UpTo, k.Told = f&stateInherited != 0, f&stateUpTo != 0, f&stateTold != 0
	s.Placed, s.Life = s.Instant, segment.NoLife
	if f&stateVersion != 0 {
		k.Version = int64(c.ReadUint())
	}
	if f&stateUpdated != 0 {
		k.LastUpdated = s.Instant - fhir.Instant(c.ReadInt())
	}
	if f&stateTimestamp != 0 {
		k.Timestamp = s.Instant - fhir.Instant(c.ReadInt())
	}
	if f&statePosition != 0 {
		k.Position = c.ReadUint()
	}
	if f&statePatients != 0 {
		s.Patients = binary.LittleEndian.Uint32(c.Take(4))
	}
	if f&stateSincePlaced != 0 {
		s.Placed = s.Instant - fhir.Instant(c.ReadInt())
	}
	if f&stateLife != 0 {
		if s.Life, c.B, err = segment.ParseLife(c.B, s.Instant); err != nil {
			return s, err
		}
	}
	if len(c.B) != 0 {
		c.Bad = true
	}
	return s, faults(c, "row state")
}
