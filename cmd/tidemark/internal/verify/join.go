package verify

import (
	"cmp"
	"fmt"
	"hash/crc32"
	"slices"

	"tidemark/cmd/tidemark/internal/manifest"
)

// join finds files that a client has joined of several: each such run of
// entries, in the manifest's order or in that of their names, becomes one.
// Entries that have their file are passed by.
func join(entries []*entry, files []*file) []*entry {
	taken := map[*file]bool{}
	groups := map[[2]string][]*entry{}
	for _, e := range entries {
		taken[e.file] = true
		if e.file == nil && (e.Bytes != nil || e.Count != nil) {
			key := [2]string{e.list, e.Type}
			groups[key] = append(groups[key], e)
		}
	}
	joined := map[*entry]*entry{} // what an entry has become a part of
	for _, group := range groups {
		byName := slices.Clone(group)
		slices.SortStableFunc(byName, func(a, b *entry) int { return cmp.Compare(a.name, b.name) })
		for _, order := range [][]*entry{group, byName} {
			for _, f := range files {
				if taken[f] || f.err != nil || !order[0].wants(f) {
					continue
				}
				if run, k := runOf(order, f, joined); run != nil {
					whole := merge(run, k, f)
					for _, e := range run {
						joined[e] = whole
					}
					taken[f] = true
				}
			}
		}
	}
	var rest []*entry
	told := map[*entry]bool{}
	for _, e := range entries {
		whole := joined[e]
		switch {
		case whole == nil:
			rest = append(rest, e)
		case !told[whole]:
			rest = append(rest, whole)
			told[whole] = true
		}
	}
	return rest
}

// runOf is the run of entries, neighbours in this order, that a file is joined
// of, and what is known of them all; nil if there is none.
func runOf(order []*entry, f *file, joined map[*entry]*entry) ([]*entry, known) {
	for i := range order {
		var t manifest.Tally
		all := order[i].known()
		for j, e := range order[i:] {
			k := e.known()
			all = known{all.crc && k.crc, all.bytes && k.bytes, all.count && k.count}
			says := e.says()
			t.Lines, t.Bytes = t.Lines+says.Lines, t.Bytes+says.Bytes
			if joined[e] != nil || !all.bytes && !all.count || t.Bytes > f.tidy.Bytes || t.Lines > f.tidy.Lines {
				break
			}
			run, sums := order[i:i+j+1], known{bytes: all.bytes, count: all.count}
			if j > 0 && sums.of(t) == sums.of(f.tidy) && (!all.crc || crcOf(run) == f.tidy.CRC) {
				return run, all
			}
		}
	}
	return nil, known{}
}

// merge is the entry that a joined file has in the place of all its parts.
func merge(run []*entry, k known, f *file) *entry {
	whole := *run[0]
	whole.parts = len(run)
	whole.File = manifest.File{Type: whole.Type, URL: whole.URL}
	whole.file = f
	for _, s := range strength {
		if s.known == k {
			whole.proof = s.proof
		}
	}
	return &whole
}

// crcOf is the CRC-32 of all these files, one after the other.
func crcOf(run []*entry) (crc uint32) {
	for _, e := range run {
		says := e.says()
		crc = after(crc, says.CRC, says.Bytes)
	}
	return crc
}

// after is the CRC-32 of a text that is followed by another one.
//
// It is a polynomial over two elements, its first bit the coefficient of x^0;
// each bit that follows multiplies it by x.
func after(first, second uint32, bytes int64) uint32 { return times(power(bytes), first) ^ second }

// times multiplies two of them, modulo that of CRC-32.
func times(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a>>31 == 1 {
			product ^= b
		}
		b = b>>1 ^ b&1*crc32.IEEE
	}
	return product
}

// power is x to the 8n.
func power(n int64) uint32 {
	result, square := uint32(1)<<31, uint32(1)<<(31-8)
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			result = times(result, square)
		}
		square = times(square, square)
	}
	return result
}

// joinedOf says of how many files one was joined.
func (e *entry) joinedOf() string {
	if e.parts == 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more, joined", e.parts-1)
}
