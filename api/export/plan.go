package export

import (
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Limits are the sizes at which an output file is full. They count whole
// blocks, so a file passes them when its first block alone does.
type Limits struct {
	Bytes     int64 // uncompressed; 0: none
	Resources int64 // 0: none
}

// under is what is left of a job's limits of a request's own.
func (l Limits) under(maxBytes int64) Limits {
	if maxBytes > 0 {
		l.Bytes = min(noLimit(l.Bytes), maxBytes)
	}
	return l
}

// plan decides which files a job has. It asks for counts only and reads no
// body, so its cost does not depend on the size of the store.
func plan(s Snapshot, q Request, l Limits) (rule, error) {
	r := q.rule(s)
	pending := q.chosen()
	if !pending {
		var err error
		if pending, err = r.refersToBinaries(s, q.Types); err != nil {
			return rule{}, err
		}
	}
	if pending {
		r.Pending = &q
		return r, nil
	}
	return r, r.fill(s, q, l)
}

// rule is that of a request without its files. What the window makes doubtful goes
// to the request's notes.
func (q *Request) rule(s Snapshot) rule {
	r := rule{Level: q.Level, Face: q.Face, Separate: q.Separate, Request: q.URL, Since: q.Since, Upto: upto(s.Watermark(), q.Upto), Cut: s.Cut(), By: q.By, Access: q.Access}
	if r.Since != fhir.None && r.Since < s.Forgotten() { // a snapshot that is opened again does not know
		q.Notes = append(slices.Clip(q.Notes), forgotten(r.Since, s.Forgotten()))
	}
	return r
}

// fill adds the files of whole types.
func (r *rule) fill(s Snapshot, q Request, l Limits) error {
	l = l.under(q.MaxBytes)
	if err := r.add(s, Output, store.Live, q.Types, l); err != nil {
		return err
	}
	if q.Since != fhir.None { // without _since nothing was there to be deleted (decisions.md 4)
		if err := r.add(s, Deleted, store.Deleted, q.Types, l); err != nil {
			return err
		}
	}
	return r.addErrors(s, q.Notes)
}

// add appends the files of one list, a type to a file, types in alphabetical
// order.
func (r *rule) add(s Snapshot, list List, kind store.Kind, types []fhir.Type, l Limits) error {
	for _, sec := range r.sections(s, kind, types) {
		extents, err := r.extents(r.Level.of(s, list, sec.Type), sec)
		if err != nil {
			return err
		}
		r.Files = append(r.Files, summed(s, split(list, sec.Type, extents, l), extents)...)
	}
	return nil
}

// sections are those of the types that the job's level has, that its client may have
// and that are asked for, in alphabetical order.
func (r *rule) sections(s Snapshot, kind store.Kind, types []fhir.Type) []store.Section {
	return slices.DeleteFunc(r.everyones(s, kind, types), func(sec store.Section) bool { return !r.Access.exports(sec.Type) })
}

// everyones are sections likewise, whoever may have them: what belongs to an export is
// decided over all that there is.
func (r *rule) everyones(s Snapshot, kind store.Kind, types []fhir.Type) []store.Section {
	sections := slices.DeleteFunc(slices.Clone(s.Sections(kind)), func(sec store.Section) bool {
		return !r.Level.Holds(sec.Type) || len(types) > 0 && !slices.Contains(types, sec.Type)
	})
	slices.SortFunc(sections, func(a, b store.Section) int {
		return strings.Compare(a.Type.String(), b.Type.String())
	})
	return sections
}

// extents are those of a section's blocks that lie in the job's window.
func (r *rule) extents(s Snapshot, sec store.Section) ([]store.Extent, error) {
	if r.Since >= r.Upto { // nothing lies between; _since may be ahead of the watermark
		return nil, nil
	}
	extents, err := s.Extents(sec, r.Since, r.Upto)
	if err != nil {
		return nil, fmt.Errorf("find the extents of section %d/%d: %w", sec.Kind, sec.Type, err)
	}
	return extents, nil
}

// split cuts extents into files. No file is empty.
func split(list List, typ fhir.Type, extents []store.Extent, l Limits) []OutputFile {
	maxBytes, maxRows := noLimit(l.Bytes), noLimit(l.Resources)
	var files []OutputFile
	f := OutputFile{List: list, Type: typ}
	flush := func(to int) {
		if f.Rows > 0 {
			f.To = to
			files = append(files, f)
		}
		f = OutputFile{List: list, Type: typ, From: to}
	}
	for i, x := range extents {
		if f.Rows > 0 && (f.Bytes+x.Bytes > maxBytes || f.Rows+int64(x.Rows) > maxRows) {
			flush(i)
		}
		f.Rows += int64(x.Rows)
		f.Bytes += x.Bytes
	}
	flush(len(extents))
	return files
}

// summed adds checksums to files of extents, as far as they are known.
func summed(s Snapshot, files []OutputFile, extents []store.Extent) []OutputFile {
	for i := range files {
		if crc, known := s.Sum(extents[files[i].From:files[i].To]); known {
			files[i].CRC = &crc
		}
	}
	return files
}

// addErrors appends the file of OperationOutcomes: one line for each thing that
// was asked for and left out or may not be told, and one for records that are
// missing.
func (r *rule) addErrors(s Snapshot, notes []outcome.Issue) error {
	extents, err := r.extents(s, store.Section{Kind: store.Internal, Type: store.DeadLetters})
	if err != nil {
		return err
	}
	dead := 0
	for _, x := range extents {
		dead += x.Rows
	}
	if dead > 0 {
		notes = append(slices.Clip(notes), deadLetters(dead, r.Access.of().Whole))
	}
	if len(notes) == 0 {
		return nil
	}
	var text []byte
	for _, n := range notes {
		text = append(outcome.Append(text, n), '\n')
	}
	r.Errors = string(text)
	r.Files = append(r.Files, OutputFile{List: Errors, Rows: int64(len(notes)), Bytes: int64(len(text)), CRC: new(crc32.ChecksumIEEE(text))})
	return nil
}

// forgotten warns that the window begins before the horizon of deletions.
func forgotten(since, upto fhir.Instant) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Warning,
		Code:     outcome.Incomplete,
		Text: fmt.Sprintf("deletions between _since, %v, and %v may no longer be known here: what was deleted then is not listed in deleted. "+
			"To be rid of it, take an export without _since and drop what it does not hold", since, upto),
	}
}

// deadLetters warns that the window has holes. How many there are is nobody's business who
// cannot have the whole; whether any is in his part only what could not be decoded tells.
func deadLetters(n int, whole bool) outcome.Issue {
	if !whole {
		return outcome.Issue{
			Severity: outcome.Warning, Code: outcome.Incomplete,
			Text: "records of this export's time window could not be decoded: whether they belong to this export is not known, so changes may be missing here; the server's operator knows more",
		}
	}
	text := fmt.Sprintf("%d records of this export's time window could not be decoded, so the changes they carry are missing here", n)
	if n == 1 {
		text = "1 record of this export's time window could not be decoded, so the change it carries is missing here"
	}
	return outcome.Issue{
		Severity: outcome.Warning,
		Code:     outcome.Incomplete,
		Text:     text + "; the server's operator sees them with: tidemark deadletter list",
	}
}
