package verify

import (
	"strings"

	"tidemark/cmd/tidemark/internal/manifest"
)

// A proof is what an entry's file was known by.
type proof int

const (
	unproved   proof = iota // nothing fits
	byType                  // the manifest says nothing more of it
	byCount                 // type and count
	bySize                  // type, count and bytes
	byChecksum              // CRC-32 (and bytes, where the manifest has them)
)

// known is what the manifest says of a file.
type known struct{ crc, bytes, count bool }

func (e *entry) known() known { return known{e.CRC != nil, e.Bytes != nil, e.Count != nil} }

// strength lists all that can be known, the strongest first: what proves most
// chooses first.
var strength = []struct {
	known known
	proof proof
}{
	{known{true, true, true}, byChecksum},
	{known{true, true, false}, byChecksum},
	{known{true, false, true}, byChecksum},
	{known{true, false, false}, byChecksum},
	{known{false, true, true}, bySize},
	{known{false, true, false}, bySize},
	{known{false, false, true}, byCount},
}

// of is a tally with only what is known, which finds it. Next to a checksum a
// count proves nothing: if it is wrong, the manifest is.
func (k known) of(t manifest.Tally) (found manifest.Tally) {
	if k.crc {
		found.CRC = t.CRC
	}
	if k.bytes {
		found.Bytes = t.Bytes
	}
	if k.count && !k.crc {
		found.Lines = t.Lines
	}
	return found
}

// says is what the manifest says of a file.
func (e *entry) says() (t manifest.Tally) {
	if e.CRC != nil {
		t.CRC = *e.CRC
	}
	if e.Bytes != nil {
		t.Bytes = *e.Bytes
	}
	if e.Count != nil {
		t.Lines = *e.Count
	}
	return t
}

// match gives entries the files that have their content, each file once: those
// that have it as they are, then those that would have it in good form.
func match(entries []*entry, files []*file) {
	taken := map[*file]bool{}
	matchBy(func(f *file) manifest.Tally { return f.asIs }, entries, files, taken)
	matchBy(func(f *file) manifest.Tally { return f.tidy }, entries, files, taken)
}

func matchBy(tally func(*file) manifest.Tally, entries []*entry, files []*file, taken map[*file]bool) {
	for _, s := range strength {
		var index map[manifest.Tally][]*file
		for _, e := range entries {
			if e.file != nil || e.known() != s.known {
				continue
			}
			if index == nil {
				index = map[manifest.Tally][]*file{}
				for _, f := range files {
					t := s.known.of(tally(f))
					index[t] = append(index[t], f)
				}
			}
			if f := e.choose(index[s.known.of(e.says())], taken, s.proof); f != nil {
				e.file, e.proof, taken[f] = f, s.proof, true
			}
		}
	}
}

// choose takes of files with the right content the one that looks most like
// the entry otherwise. Where the content is not proved by a checksum the type
// must be right.
func (e *entry) choose(files []*file, taken map[*file]bool, p proof) (best *file) {
	most := -1
	for _, f := range files {
		if taken[f] || p < byChecksum && (!e.wants(f) || f.err != nil) {
			continue
		}
		if like := e.likeness(f); like > most {
			best, most = f, like
		}
	}
	return best
}

// wants tells whether a file holds what the entry's files do.
func (e *entry) wants(f *file) bool {
	switch {
	case e.list == deleted:
		return f.kind == deletion
	case e.list == outcomes:
		return f.kind == "OperationOutcome"
	case e.Type == "Bundle":
		return f.kind == "Bundle" || f.kind == deletion
	}
	return e.Type == "" || f.kind == e.Type
}

// Hints, by their weight.
const (
	typeInName = 1 << iota
	sameType
	sameName // as the URL's
	allHints = sameName | sameType | typeInName
)

// likeness weighs hints; 0 is none.
func (e *entry) likeness(f *file) (hints int) {
	if f.base == e.name {
		hints += sameName
	}
	if e.wants(f) {
		hints += sameType
	}
	if e.typed(f.base) {
		hints += typeInName
	}
	return hints
}

// typed tells whether a file's name has the entry's type as a word.
func (e *entry) typed(name string) bool {
	kind := e.Type
	if e.list == outcomes {
		kind = "OperationOutcome"
	}
	if kind == "" {
		return false
	}
	before, rest, found := strings.Cut(name, kind)
	return found && (before == "" || !letter(before[len(before)-1])) && (rest == "" || !letter(rest[0]))
}

func letter(b byte) bool { return b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' }

// pair gives entries that have no file yet the likeliest of those left over, by
// hints, then by size, so that what is wrong can be said of them together. Of
// other servers it may be all that there is to go by.
func pair(entries []*entry, files []*file) {
	taken := map[*file]bool{}
	for _, e := range entries {
		taken[e.file] = true
	}
	called := map[string][]*file{}
	for _, f := range files {
		called[f.base] = append(called[f.base], f)
	}
	for hints := allHints; hints > 0; hints-- {
		for _, e := range entries {
			if e.file != nil {
				continue
			}
			candidates := files
			if hints >= sameName {
				candidates = called[e.name]
			}
			var best *file
			for _, f := range candidates {
				if !taken[f] && e.likeness(f) == hints && (best == nil || e.distance(f) < e.distance(best)) {
					best = f
				}
			}
			if best != nil {
				e.file, taken[best] = best, true
				if e.known() == (known{}) && e.wants(best) && best.err == nil {
					e.proof = byType
				}
			}
		}
	}
}

// distance is how far a file's size is from what the manifest says.
func (e *entry) distance(f *file) int64 {
	d := int64(0)
	switch {
	case e.Bytes != nil:
		d = f.asIs.Bytes - *e.Bytes
	case e.Count != nil:
		d = f.asIs.Lines - *e.Count
	}
	return max(d, -d)
}
