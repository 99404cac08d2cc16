package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tidemark/cmd/tidemark/internal/manifest"
)

// entry says how an entry and its file agree.
func (r *Report) entry(ctx context.Context, e *entry, named map[string]*entry) {
	f := e.file
	if f == nil {
		r.fault(e.String(), "its file is missing: no file here is like it")
		return
	}
	where := e.String() + ", in " + f.name
	var faults, notes []string
	if f.err != nil {
		faults = append(faults, f.err.Error())
	}
	asIs, tidy := e.Check(f.asIs), e.Check(f.tidy)
	switch {
	case e.proof == unproved:
		faults = append(faults, e.differences(ctx)...)
	case f.err != nil:
		faults = append(faults, "all the same, what could be read is what the manifest says")
	case asIs != nil && tidy == nil:
		notes = append(notes, "its content is what the manifest says, its form is not:")
	case asIs != nil: // found by its checksum
		faults = append(faults, "the manifest contradicts itself: bytes and CRC-32 are right, but "+asIs.Error())
	}
	faults = append(faults, e.kinds()...)
	faults = append(faults, f.unfit()...)
	if e.proof == unproved && len(faults) == 0 {
		faults = append(faults, "it is not the file that the manifest lists: it has "+plural(f.asIs.Lines, "line"))
	}
	notes = append(notes, f.form()...)
	if len(faults) > 0 || f.bom || f.blank.n > 0 { // which readers stumble over
		r.fault(where, append(faults, notes...)...)
		return
	}
	if e.list == output && e.Type != "" && f.nameless > 0 {
		notes = append(notes, plural(f.nameless, "resource")+" without an id: whether they stand twice shows only where the lines are the same")
	}
	if other := named[f.base]; other != nil && f.base != e.name && other.file != f {
		notes = append(notes, "its name is that of "+other.String())
	}
	r.note(where, notes...)
}

// differences says how the file differs from what the manifest says, and
// wherefrom that may come.
func (e *entry) differences(ctx context.Context) (faults []string) {
	f := e.file
	lines, bytes := int64(0), int64(0) // too many
	if e.Count != nil {
		lines = f.asIs.Lines - *e.Count
	}
	if e.Bytes != nil {
		bytes = f.asIs.Bytes - *e.Bytes
	}
	switch {
	case lines < 0:
		faults = append(faults, fmt.Sprintf("%s missing: it has %s, the manifest says %s%s", isAre(-lines, "line"), comma(f.asIs.Lines), comma(*e.Count), e.inBytes(bytes)))
	case lines > 0:
		faults = append(faults, fmt.Sprintf("%s too many: it has %s, the manifest says %s%s", isAre(lines, "line"), comma(f.asIs.Lines), comma(*e.Count), e.inBytes(bytes)))
	case bytes != 0:
		faults = append(faults, fmt.Sprintf("something in it was changed: it has %s, the manifest says %s", plural(f.asIs.Bytes, "byte"), comma(*e.Bytes)))
	case e.CRC != nil && f.asIs.CRC != *e.CRC:
		faults = append(faults, fmt.Sprintf("something in it was changed: lines and bytes are as many as they should be, but their CRC-32 is %08x, the manifest says %08x", f.asIs.CRC, *e.CRC))
	}
	if f.open && f.err == nil && slices.Contains(f.broken.first, f.lines) {
		faults = append(faults, fmt.Sprintf("it breaks off in line %s: the download was cut short", comma(f.lines)))
	}
	if lines == 0 && bytes != 0 && f.err == nil && f.broken.n == 0 {
		faults = append(faults, "perhaps a client has read and written it anew instead of keeping its bytes: then numbers such as 1.00 have become 1")
	}
	if lines > 0 {
		faults = append(faults, e.doubled(ctx)...)
	}
	if e.CRC != nil && e.Bytes != nil && bytes == 0 && f.err == nil {
		faults = append(faults, e.flipped(ctx)...)
	}
	return faults
}

func (e *entry) inBytes(more int64) string {
	switch {
	case e.Bytes == nil:
		return ""
	case more < 0:
		return fmt.Sprintf(" (%s less)", plural(-more, "byte"))
	}
	return fmt.Sprintf(" (%s more)", plural(more, "byte"))
}

// doubled names lines that hold a resource that an earlier one holds, and tries
// whether the file is right without them.
func (e *entry) doubled(ctx context.Context) (faults []string) {
	f := e.file
	again := repeated(&f.keys)
	if len(again) == 0 {
		return nil
	}
	first, later := map[uint64]int64{}, map[int64]int64{} // line numbers
	for line, key := range f.keys.all() {
		if !again[key] {
			continue
		}
		if _, ok := first[key]; ok {
			later[line] = first[key]
		} else {
			first[key] = line
		}
	}
	right := e.without(ctx, func(line int64) bool { return later[line] > 0 })
	if !right && len(later) == 1 { // the copy may have been put before the original
		for _, line := range later {
			right = e.without(ctx, func(n int64) bool { return n == line })
		}
	}
	var numbers []int64
	for line := range later {
		numbers = append(numbers, line)
	}
	slices.Sort(numbers)
	for i, line := range numbers {
		if i == 5 {
			faults = append(faults, fmt.Sprintf("and %s more", plural(int64(len(numbers)-i), "line")))
			break
		}
		faults = append(faults, fmt.Sprintf("line %s has the resource of line %s again", comma(line), comma(later[line])))
	}
	if right {
		f.told = map[int64]bool{}
		for line, first := range later {
			f.told[line], f.told[first] = true, true
		}
		faults = append(faults, "without what stands there again the file is what the manifest says")
	}
	return faults
}

// without tells whether the file is right without some lines.
func (e *entry) without(ctx context.Context, drop func(line int64) bool) bool {
	var t manifest.Tally
	line := int64(0)
	err := e.file.each(ctx, nil, func(b []byte) error {
		if line++; !drop(line) {
			t.Add(b)
			t.Lines++
		}
		return nil
	})
	return err == nil && e.Check(t) == nil
}

// flipped looks for the one byte that would make the checksum right.
func (e *entry) flipped(ctx context.Context) []string {
	at, bits, ok := oneByte(e.file.asIs.CRC^*e.CRC, e.file.asIs.Bytes)
	if !ok {
		return nil
	}
	what := "one byte was changed"
	if bits == 1 {
		what = "one bit was flipped"
	}
	return []string{fmt.Sprintf("it is as if %s: byte %s, in line %s", what, comma(at+1), comma(e.file.lineOf(ctx, at)))}
}

var errEnough = errors.New("enough was read")

// lineOf is the number of the line that has the byte at this place.
func (f *file) lineOf(ctx context.Context, at int64) (line int64) {
	_ = f.each(ctx, nil, func(b []byte) error { // it was read whole once
		line++
		if at -= int64(len(b)); at < 0 {
			return errEnough
		}
		return nil
	})
	return line
}

// form says what is not as the guide wants it, though nothing is lost.
func (f *file) form() (said []string) {
	if f.bom {
		said = append(said, "it begins with a byte order mark")
	}
	if f.blank.n > 0 {
		said = append(said, f.blank.are("blank"))
	}
	if f.returns > 0 {
		said = append(said, isAre(f.returns, "line")+` ended by \r\n instead of \n`)
	}
	if f.open {
		said = append(said, "its last line has no newline")
	}
	return said
}

// kinds says which lines are not what the entry's should be.
func (e *entry) kinds() []string {
	f := e.file
	if e.list == output && e.Type == "" || f.asIs.Lines == 0 {
		return nil
	}
	want, right := e.Type, int64(0)
	switch e.list {
	case deleted:
		want, right = "a Bundle of deletions", f.deletions
	case outcomes:
		want = "OperationOutcome"
	}
	if e.list != deleted {
		if n := f.kinds[want]; n != nil {
			right = *n
		}
	}
	wrong := f.asIs.Lines - f.broken.n - right
	if wrong <= 0 {
		return nil
	}
	var others []string
	for kind := range f.kinds {
		if kind != want && (e.list != deleted || kind != "Bundle") {
			others = append(others, typeName(kind))
		}
	}
	slices.Sort(others)
	others = slices.Compact(others)
	said := fmt.Sprintf("%s of %s %s not %s", comma(wrong), plural(f.asIs.Lines, "line"), is(wrong), quoted(want))
	if len(others) > 0 {
		said += ", but " + strings.Join(others[:min(3, len(others))], ", ")
	}
	if right == 0 && f.asIs.Lines == 1 && f.kind == "OperationOutcome" {
		said += ": perhaps the server's answer was an error"
	}
	return []string{said}
}

// unfit says which lines are no resources at all.
func (f *file) unfit() (said []string) {
	if f.broken.n > f.binary.n {
		said = append(said, f.broken.are("not one valid JSON object"))
	}
	if f.binary.n > 0 {
		said = append(said, f.binary.are("not valid UTF-8"))
	}
	return said
}

// are says what these lines are.
func (p *places) are(what string) string {
	if p.n == 1 {
		return fmt.Sprintf("line %s is %s", comma(p.first[0]), what)
	}
	var list []string
	for _, line := range p.first {
		list = append(list, comma(line))
	}
	if more := p.n - int64(len(list)); more > 0 {
		return fmt.Sprintf("lines %s and %s more are %s", strings.Join(list, ", "), comma(more), what)
	}
	return fmt.Sprintf("lines %s and %s are %s", strings.Join(list[:len(list)-1], ", "), list[len(list)-1], what)
}
