package verify

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"tidemark/cmd/tidemark/internal/manifest"
	"tidemark/store/fhir"
)

// A Finding is something to say of one file, entry or of all.
type Finding struct {
	Fault bool // else it is to be known, but not wrong
	Where string
	What  []string
}

// A Report is what a verification has found.
type Report struct {
	Findings []Finding

	sums    []string // what is proved
	asked   int      // checksums that the server told
	doubled bool     // some resource stands where it should not
}

func (r *Report) fault(where string, what ...string) {
	if len(what) > 0 {
		r.Findings = append(r.Findings, Finding{Fault: true, Where: where, What: what})
	}
}

func (r *Report) note(where string, what ...string) {
	if len(what) > 0 {
		r.Findings = append(r.Findings, Finding{Where: where, What: what})
	}
}

// Faults is how many findings mean that the download is not the export.
func (r *Report) Faults() (n int) {
	for _, f := range r.Findings {
		if f.Fault {
			n++
		}
	}
	return n
}

// WriteTo writes the report for people.
func (r *Report) WriteTo(w io.Writer) (int64, error) {
	var text bytes.Buffer
	for _, f := range r.Findings {
		mark := "note  "
		if f.Fault {
			mark = "FAULT "
		}
		fmt.Fprintf(&text, "%s%s\n", mark, f.Where)
		for _, line := range f.What {
			fmt.Fprintf(&text, "      %s\n", line)
		}
	}
	if text.Len() > 0 {
		text.WriteByte('\n')
	}
	for _, line := range r.sums {
		fmt.Fprintln(&text, line)
	}
	return text.WriteTo(w)
}

// sum says how much was verified, and how much that proves.
func (r *Report) sum(entries []*entry, m *manifest.Manifest, opts Options) {
	var proved [byChecksum + 1]int64
	var files, resources, deletions, bytes int64
	for _, e := range entries {
		files += int64(max(1, e.parts))
		if e.file == nil {
			continue
		}
		proved[e.proof] += int64(max(1, e.parts))
		bytes += e.file.asIs.Bytes
		switch e.list {
		case output:
			resources += e.file.asIs.Lines
		case deleted:
			deletions += e.file.asIs.Lines
		}
	}
	r.sums = append(r.sums, fmt.Sprintf("%s in the manifest; here are %s, %s, %s of NDJSON",
		plural(files, "file"), plural(resources, "resource"), plural(deletions, "deletion"), humanize.IBytes(uint64(bytes))))
	for _, p := range meaning {
		if n := proved[p.proof]; n > 0 {
			r.sums = append(r.sums, plural(n, "file")+" "+p.text)
		}
	}
	if opts.Ask == nil && proved[bySize] > 0 {
		r.sums = append(r.sums, "--ask asks the server for the checksums that the manifest does not have")
	}
	if r.asked > 0 {
		r.sums = append(r.sums, plural(int64(r.asked), "checksum")+" came from the server now")
	}
	switch {
	case opts.FilesOnly:
		r.sums = append(r.sums, "whether a resource stands twice was not looked for (--files-only)")
	case m.Published:
		r.sums = append(r.sums, "what is published may come again in a newer version, so no resource was looked for twice")
	case m.OrganizedBy != "":
		r.sums = append(r.sums, "files are organised in blocks: a resource may stand in several, so none was looked for twice")
	case !r.doubled:
		r.sums = append(r.sums, "no resource stands in output twice, none in output and in deleted")
	}
}

// meaning says how much each proof is worth.
var meaning = []struct {
	proof proof
	text  string
}{
	{byChecksum, "proved by CRC-32: lines and bytes are the server's"},
	{bySize, "known by lines and bytes: a byte changed in place shows only if it breaks JSON"},
	{byCount, "known by lines and type, the manifest says no more: a change within a line shows only if it breaks JSON"},
	{byType, "known by type alone, the manifest says no more: missing lines would not show"},
}

// unknown stands for what says it is a resource type and is none we know: it
// may be anything.
const unknown = "an unknown type"

// typeName is how lines of that kind are called. Files may hold anything: only
// what is a resource type is repeated.
func typeName(kind string) string {
	switch _, known := fhir.ParseType(kind); {
	case kind == "":
		return "no resource"
	case known:
		return kind
	}
	return unknown
}

// quoted is what a terminal may show of a name that others have chosen.
func quoted(s string) string {
	plain := utf8.ValidString(s) && len(s) <= 200
	for _, r := range s {
		plain = plain && unicode.IsPrint(r)
	}
	if plain {
		return s
	}
	return strconv.Quote(s[:min(200, len(s))])
}

func comma(n int64) string { return humanize.Comma(n) }

func plural(n int64, word string) string {
	if n != 1 {
		word += "s"
	}
	return comma(n) + " " + word
}

// isAre begins a sentence: 1 line is, 2 lines are.
func isAre(n int64, word string) string { return plural(n, word) + " " + is(n) }

func is(n int64) string {
	if n == 1 {
		return "is"
	}
	return "are"
}
