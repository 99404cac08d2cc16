package segment

import (
	"tidemark/store/fhir"
	"tidemark/store/internal/varint"
)

// Life is what a resource's earlier deletions left behind.
type Life struct {
	FloorVersion int64          // the greatest version deleted so far, NoVersion if none
	FloorUpdated fhir.Instant   // the latest lastUpdated deleted so far, None if none
	Reborn       bool           // re-created once with a version below the floor
	Tombstones   []fhir.Instant // record timestamps of the versionless deletions, ascending
}

// NoLife is the Life of a resource that was never deleted.
var NoLife = Life{FloorVersion: NoVersion, FloorUpdated: fhir.None}

// Empty reports whether nothing was left behind.
func (l *Life) Empty() bool {
	return l.FloorVersion == NoVersion && l.FloorUpdated == fhir.None && !l.Reborn && len(l.Tombstones) == 0
}

// Append codes l relative to base.
func (l *Life) Append(dst []byte, base fhir.Instant) []byte {
	c := &coder{varint.Coder{B: dst}}
	var f uint64
	if l.FloorVersion != NoVersion {
		f |= 1
	}
	if l.FloorUpdated != fhir.None {
		f |= 2
	}
	if l.Reborn {
		f |= 4
	}
	c.Uint(f)
	if f&1 != 0 {
		c.Uint(uint64(l.FloorVersion))
	}
	if f&2 != 0 {
		c.since(base, l.FloorUpdated)
	}
	c.Uint(uint64(len(l.Tombstones)))
	for _, t := range l.Tombstones {
		c.since(base, t)
	}
	return c.B
}

// ParseLife is the inverse of Append; it returns the bytes that follow.
func ParseLife(b []byte, base fhir.Instant) (l Life, rest []byte, err error) {
	c := &coder{varint.Coder{B: b}}
	l = c.readLife(base)
	if c.Bad {
		return l, nil, ErrCorrupt
	}
	return l, c.B, nil
}

func (c *coder) readLife(base fhir.Instant) Life {
	l := NoLife
	f := c.ReadUint()
	if f&1 != 0 {
		l.FloorVersion = int64(c.ReadUint())
	}
	if f&2 != 0 {
		l.FloorUpdated = c.readSince(base)
	}
	l.Reborn = f&4 != 0
	if n := c.Count(); n > 0 {
		l.Tombstones = make([]fhir.Instant, n)
		for i := range l.Tombstones {
			l.Tombstones[i] = c.readSince(base)
		}
	}
	return l
}
