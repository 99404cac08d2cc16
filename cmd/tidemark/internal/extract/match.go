package extract

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"tidemark/cmd/tidemark/internal/manifest"
)

// A matching finds the files that a manifest lists: clients call what they download as
// they like, mostly as its URL ends, or by its type.
type matching struct {
	files []*File
	taken map[*File]bool
	named map[string]*File // by URL
}

// byName takes the files that are called as the URLs of entries end.
func (m *matching) byName(entries []manifest.File, deleted bool) {
	if m.named == nil {
		m.named = map[string]*File{}
	}
	for i := range entries {
		e := &entries[i]
		name := e.Name()
		if name == "" || m.named[e.URL] != nil {
			continue
		}
		file := m.first(func(f *File) bool { return f.called(name) && f.within("deleted") == deleted })
		if file == nil {
			file = m.first(func(f *File) bool { return f.called(name) })
		}
		if file != nil {
			file.lists = e
			m.named[e.URL], m.taken[file] = file, true
		}
	}
}

func (m *matching) first(is func(*File) bool) *File {
	i := slices.IndexFunc(m.files, func(f *File) bool { return !m.taken[f] && !f.within("error", "errors", "outcome") && is(f) })
	if i < 0 {
		return nil
	}
	return m.files[i]
}

// all is the files of all entries: those of output before those of deleted.
func (m *matching) all(output, deleted []manifest.File) (found []*File, err error) {
	types := map[string]*alike{}
	for i := range output {
		e := &output[i]
		if m.named[e.URL] == nil {
			more := m.alike(func(f *File) bool { return f.typed(e.Type) && !f.Deletions() })
			if len(more) == 0 && !m.typed(found, e.Type) {
				return nil, missing("output", i, e)
			}
			together(types, e, more)
			found = append(found, more...)
			continue
		}
		found = append(found, m.named[e.URL])
	}
	var gone []*File
	for i := range deleted {
		e := &deleted[i]
		if m.named[e.URL] == nil {
			more := m.alike(func(f *File) bool {
				return f.within("deleted") || strings.Contains(strings.ToLower(f.base()), "deleted")
			})
			if len(more) == 0 && len(gone) == 0 {
				return nil, missing("deleted", i, e)
			}
			gone = append(gone, more...)
			continue
		}
		gone = append(gone, m.named[e.URL])
	}
	for _, f := range gone {
		f.gone = true
	}
	return append(found, gone...), nil
}

// together counts an entry that has no file of its name among those of its type, and its files.
func together(types map[string]*alike, e *manifest.File, files []*File) {
	a := types[e.Type]
	if a == nil {
		a = &alike{}
		types[e.Type] = a
	}
	if a.files = append(a.files, files...); e.Count != nil {
		a.count += *e.Count
	} else {
		a.unknown = true
	}
	for _, f := range files {
		f.alike = a
	}
}

// alike takes what is left and looks like it.
func (m *matching) alike(is func(*File) bool) (list []*File) {
	for {
		file := m.first(func(f *File) bool { return f.ndjson() && is(f) })
		if file == nil {
			return list
		}
		m.taken[file] = true
		list = append(list, file)
	}
}

// typed tells whether a file of a type was found without its name: there may be one here
// for several entries.
func (m *matching) typed(found []*File, kind string) bool {
	return slices.ContainsFunc(found, func(f *File) bool { return f.lists == nil && f.typed(kind) })
}

func missing(list string, i int, e *manifest.File) error {
	return fmt.Errorf("%s %d of the manifest, %.40q of type %.40q, is not there: download it", list, i+1, e.Name(), e.Type)
}

// base is a file's name without what compression adds to it.
func (f *File) base() string {
	name := path.Base(f.below)
	for _, ext := range []string{".gz", ".zst"} {
		if n := len(name) - len(ext); n > 0 && strings.EqualFold(name[n:], ext) {
			name = name[:n]
		}
	}
	return name
}

// ndjson tells whether a file calls itself so. The log of an export is none of it.
func (f *File) ndjson() bool {
	name := strings.ToLower(f.base())
	return name != logName && (strings.HasSuffix(name, ".ndjson") || strings.HasSuffix(name, ".jsonl"))
}

// called tells whether a file is called as a URL ends.
func (f *File) called(name string) bool {
	base := f.base()
	return base == name || base == name+".ndjson" || path.Base(f.below) == name
}

// within tells whether a file lies in a folder with one of some names.
func (f *File) within(names ...string) bool {
	return slices.ContainsFunc(strings.Split(path.Dir(f.below), "/"), func(s string) bool { return slices.Contains(names, strings.ToLower(s)) })
}

// typed tells whether a type is a word of a file's name.
func (f *File) typed(kind string) bool {
	before, rest, found := strings.Cut(f.base(), kind)
	return kind != "" && found && (before == "" || !letter(before[len(before)-1])) && (rest == "" || !letter(rest[0]))
}

func letter(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' }
