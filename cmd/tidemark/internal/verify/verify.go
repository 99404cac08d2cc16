// Package verify recounts a downloaded export against its manifest.
//
// It reads each file once, finds by its content which entry of the manifest it
// is, and says in plain words what is wrong with what is left: clients name
// their files as they like, so a name is a hint and never a proof. It knows the
// guide's NDJSON and both faces of a manifest, and refuses to know how files were
// downloaded, or by whom. What it says names files, lines, numbers and resource
// types; ids only if it is told to, bodies never.
package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"tidemark/cmd/tidemark/internal/manifest"
)

// Options of a verification. The zero value of all but Dir works.
type Options struct {
	Dir string // the folder that holds the files, also in folders of its own

	// FilesOnly leaves out the search for resources that stand twice, which
	// takes about 20 bytes of memory for each.
	FilesOnly bool
	Show      bool // name resources by their ids

	// Ask returns a file's checksum, for those of which the manifest has none.
	Ask func(context.Context, manifest.File) (uint32, error)

	// Progress is told how many bytes of the files on disk were read.
	Progress func(done, total int)

	maxLine int // for tests
}

// few is how many of a kind are named at most.
const few = 10

// An entry is a file of the export as the manifest lists it, and the downloaded
// file that was found to be it.
type entry struct {
	manifest.File
	list   string // output, deleted or errors
	number int    // in the list, over all pages
	name   string // the last part of its URL
	parts  int    // how many entries it stands for, which are one file here; 0: itself
	file   *file  // nil: missing
	proof  proof
}

const (
	output   = "output"
	deleted  = "deleted"
	outcomes = "errors" // which version 4 calls outcome
)

// String says which entry it is. Of its URL it tells the last part only: the
// rest may hold secrets.
func (e *entry) String() string {
	s := fmt.Sprintf("%s %d", e.list, e.number)
	if e.list == output && e.Type != "" {
		s += ", " + quoted(e.Type)
	}
	return s + ", " + quoted(e.name) + e.joinedOf()
}

// Run verifies what lies in a folder against the pages of an export's manifest.
func Run(ctx context.Context, pages []*manifest.Manifest, opts Options) (*Report, error) {
	r := &Report{}
	r.pages(pages)
	entries := list(pages)
	if opts.Ask != nil {
		r.ask(ctx, entries, opts.Ask)
	}
	files, err := read(ctx, entries, opts)
	if err != nil {
		return nil, err
	}
	match(entries, files)
	entries = join(entries, files)
	pair(entries, files)

	organised := pages[0].OrganizedBy != ""
	named := map[string]*entry{}
	for _, e := range entries {
		named[e.name] = e
	}
	for _, e := range entries {
		r.entry(ctx, e, named)
	}
	r.strangers(files, entries)
	if !opts.FilesOnly && !pages[0].Published {
		if err := r.resources(ctx, entries, organised, opts.Show); err != nil {
			return nil, err
		}
	}
	r.sum(entries, pages[0], opts)
	return r, ctx.Err()
}

// list is what all pages list.
func list(pages []*manifest.Manifest) (entries []*entry) {
	numbers := map[string]int{}
	add := func(list string, files []manifest.File) {
		for _, f := range files {
			numbers[list]++
			entries = append(entries, &entry{File: f, list: list, number: numbers[list], name: f.Name()})
		}
	}
	for _, m := range pages {
		add(output, m.Output)
		add(deleted, m.Deleted)
		add(deleted, m.Departed) // in the same form, and not in output either
		add(outcomes, m.Error)
	}
	return entries
}

// pages says what is wrong with the manifest itself.
func (r *Report) pages(pages []*manifest.Manifest) {
	first, open := pages[0], 0
	for _, m := range pages {
		again := first.Published && m.Published // the pages of an update chain are of their own times
		if m.Published != first.Published || !again && !m.TransactionTime.Equal(first.TransactionTime) || m.Request != first.Request || m.OrganizedBy != first.OrganizedBy {
			r.fault("the manifests", "they are not pages of one export: their transactionTime or request differ")
		}
		if m.Next != "" {
			open++
		}
	}
	switch {
	case first.Published && open == len(pages): // a root always leads on, mostly to later changes
		r.note("the manifest", `it leads on (link with relation "next") to a page that was not given: later changes, or more of the same; fetch it and name it to verify that, too`)
	case first.Published: // a page that was saved as the last one is that no more once there is another
	case open == len(pages):
		r.fault("the manifest", `it is not whole: it has a next page (link with relation "next") that was not given; fetch it and name it, too`)
	case open < len(pages)-1:
		r.fault("the manifests", "more than one is a last page: one is given twice, or is of another export")
	}
	seen := map[string]bool{}
	for _, e := range list(pages) {
		if seen[e.URL] {
			r.fault(e.String(), "its URL stands in the manifest twice")
		}
		seen[e.URL] = true
	}
}

// ask completes what the manifest says by what the server says now.
func (r *Report) ask(ctx context.Context, entries []*entry, ask func(context.Context, manifest.File) (uint32, error)) {
	vain := map[string]int64{}
	for _, e := range entries {
		if e.CRC != nil || ctx.Err() != nil {
			continue
		}
		crc, err := ask(ctx, e.File)
		if err != nil {
			vain[err.Error()]++
			continue
		}
		e.CRC = &crc
		r.asked++
	}
	for _, why := range slices.Sorted(maps.Keys(vain)) {
		r.fault(plural(vain[why], "checksum")+" asked for in vain", why)
	}
}

// strangers tells of files that belong to no entry. Whoever loads the whole
// folder loads them, too.
func (r *Report) strangers(files []*file, entries []*entry) {
	mine := map[*file]bool{}
	copies := map[manifest.Tally]*file{}
	for _, e := range entries {
		if e.file != nil {
			mine[e.file] = true
			copies[e.file.asIs] = e.file
		}
	}
	var names []string
	for _, f := range files {
		if mine[f] {
			continue
		}
		name := f.name
		if same := copies[f.asIs]; same != nil && f.err == nil && f.asIs.Bytes > 0 {
			name += ", a copy of " + same.name
		} else if f.kind != deletion && typeName(f.kind) != f.kind {
			name += ", which holds no FHIR resources"
		}
		names = append(names, name)
	}
	if n := int64(len(names)); n > few {
		names = append(names[:few], fmt.Sprintf("and %s more", comma(n-few)))
	}
	r.note("what belongs to no entry of the manifest", names...)
}
