package reconcile

import (
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"

	"tidemark/store/compact"
)

// Canonical is a hash of what a resource says, whatever the order of its members and the
// escapes in its texts; numbers count as they are written, for 1.0 is not 1.00. It leaves
// out meta.versionId and meta.lastUpdated, which are compared on their own and which a
// store writes where the source has none. body is compact and was validated.
func Canonical(body []byte) uint64 { return hashObject(body, 0, atRoot) }

// Where an object stands in a resource.
type place uint8

const (
	elsewhere place = iota
	atRoot
	atMeta
)

func hashValue(b []byte, i int, at place) uint64 {
	switch b[i] {
	case '{':
		return hashObject(b, i, at)
	case '[':
		return hashList(b, i)
	case '"':
		return xxhash.Sum64(append([]byte{'"'}, compact.Plain(nil, b[i:compact.SkipText(b, i)])...))
	}
	return xxhash.Sum64(b[i:compact.Skip(b, i)])
}

type member struct {
	name string
	hash uint64
}

func hashObject(b []byte, i int, at place) uint64 {
	var members []member
	compact.Members(b, i, func(m compact.Member) bool {
		name := string(compact.Plain(nil, b[m.Name:m.Colon]))
		if at == atMeta && (name == "versionId" || name == "lastUpdated") {
			return true
		}
		in := elsewhere
		if at == atRoot && name == "meta" {
			in = atMeta
		}
		h := hashValue(b, m.Colon+1, in)
		if in == atMeta && h == emptyObject {
			return true // as good as none
		}
		members = append(members, member{name, h})
		return true
	})
	slices.SortStableFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	d := xxhash.New()
	d.WriteString("{")
	for _, m := range members {
		d.WriteString(m.name)
		d.Write(number(m.hash))
	}
	return d.Sum64()
}

var emptyObject = xxhash.Sum64String("{")

func hashList(b []byte, i int) uint64 {
	d := xxhash.New()
	d.WriteString("[")
	for i++; b[i] != ']'; {
		d.Write(number(hashValue(b, i, elsewhere)))
		if i = compact.Skip(b, i); b[i] == ',' {
			i++
		}
	}
	return d.Sum64()
}

// number is 8 bytes behind a zero one, which no name holds.
func number(h uint64) []byte {
	b := make([]byte, 9)
	for i := range 8 {
		b[1+i] = byte(h >> (8 * i))
	}
	return b
}
