package roster

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"tidemark/store/fhir"
)

// A Fault is one thing that is wrong with a list.
type Fault struct {
	Line    int // of the file; 0 if the file as a whole is meant
	Message string
}

func (f Fault) String() string {
	if f.Line == 0 {
		return f.Message
	}
	return fmt.Sprintf("line %d: %s", f.Line, f.Message)
}

// Faults is everything that is wrong with a list, in the order of its lines.
type Faults []Fault

// maxTold bounds the faults that are told: whoever gives a wrong file need not
// read of every line of it.
const maxTold = 1000

func (f Faults) Error() string {
	lines := []string{fmt.Sprintf("the roster has %d faults, nothing was written:", len(f))}
	if len(f) == 1 {
		lines[0] = "the roster has a fault, nothing was written:"
	}
	for _, fault := range f[:min(len(f), maxTold)] {
		lines = append(lines, "  "+fault.String())
	}
	if more := len(f) - maxTold; more > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more", more))
	}
	return strings.Join(lines, "\n")
}

// A List is what a file says.
type List struct {
	Members []Member // sorted, each once
	Repeats int      // lines that said again what another had said
}

// Options say how a file is to be taken.
type Options struct {
	NoHeading bool // the first line is a patient, whatever it looks like
}

// A column is what a heading means.
type column int

const (
	nothing column = iota // a heading that is not known
	who                   // an id, a reference or an identifier
	system                // of an identifier
	value
	start
	end
	inactive
)

// headings are what may stand in the first line, in any case of letters.
var headings = map[string]column{
	"patient": who, "id": who, "reference": who, "identifier": who, "system": system, "value": value,
	"start": start, "period.start": start, "end": end, "period.end": end, "inactive": inactive,
}

const known = "known are patient, id, identifier, system and value, start, end, inactive"

// Read reads a list of patients: CSV with a comma, a semicolon or a tab between
// columns, with or without headings. Its error is of type [Faults] and holds all
// faults, or is that of r.
func Read(r io.Reader, o Options) (List, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return List{}, fmt.Errorf("read the roster: %w", err)
	}
	in := &reading{said: map[string]said{}}
	in.all(text, o)
	if len(in.faults) > 0 {
		slices.SortStableFunc(in.faults, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
		return List{}, in.faults
	}
	slices.SortFunc(in.list.Members, compareMembers)
	return in.list, nil
}

func compareMembers(a, b Member) int {
	var p, q Period
	if a.Period != nil {
		p = *a.Period
	}
	if b.Period != nil {
		q = *b.Period
	}
	return cmp.Or(
		strings.Compare(a.Entity.Type, b.Entity.Type), // those by reference, which have none, come first
		strings.Compare(a.Entity.String(), b.Entity.String()),
		strings.Compare(p.Start, q.Start), strings.Compare(p.End, q.End),
	)
}

// A reading goes through a file and notes what is wrong.
type reading struct {
	list    List
	faults  Faults
	columns []column
	names   []string        // of columns, none without a heading
	said    map[string]said // by patient and period
}

type said struct {
	line     int
	inactive bool
}

func (in *reading) fault(line int, format string, args ...any) {
	in.faults = append(in.faults, Fault{line, fmt.Sprintf(format, args...)})
}

var byteOrderMark = []byte("\xef\xbb\xbf")

func (in *reading) all(text []byte, o Options) {
	text = bytes.TrimPrefix(text, byteOrderMark)
	if bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
		in.fault(0, "the file is UTF-16: save it as CSV UTF-8")
		return
	}
	if !in.utf8(text) {
		return
	}
	records := csv.NewReader(bytes.NewReader(text))
	records.FieldsPerRecord = -1 // told in our words
	records.Comma = separator(text)
	for first := true; ; {
		fields, err := records.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if e, ok := errors.AsType[*csv.ParseError](err); ok {
			in.fault(e.StartLine, "the quotes do not match: a quote in a value is written twice, the value in quotes")
			first = false
			continue
		}
		line, _ := records.FieldPos(0)
		fields = trimmed(fields)
		if len(fields) == 0 {
			continue
		}
		if first {
			first = false
			if in.heading(line, fields, o) {
				continue
			}
		}
		if in.columns == nil {
			return // without them no line can be understood
		}
		in.record(line, fields)
	}
	if len(in.list.Members) == 0 && len(in.faults) == 0 {
		in.fault(0, "names nobody: to end a Group, tidemark group delete")
	}
}

// utf8 finds the lines that are not.
func (in *reading) utf8(text []byte) bool {
	if utf8.Valid(text) {
		return true
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for n := 1; lines.Scan(); n++ {
		if !utf8.Valid(lines.Bytes()) {
			in.fault(n, "is not UTF-8: save the file as CSV UTF-8")
		}
	}
	return false
}

// separator is that of a first line whose parts are all headings, else a comma:
// spreadsheets write what the country is used to.
func separator(text []byte) rune {
	first, _, _ := strings.Cut(strings.TrimLeft(string(text[:min(len(text), 1<<10)]), "\r\n"), "\n")
	for _, sep := range ";\t" {
		parts := strings.Split(first, string(sep))
		all := len(parts) > 1
		for _, p := range parts {
			p = strings.TrimSpace(strings.Trim(strings.TrimSpace(p), `"`))
			_, is := headings[strings.ToLower(p)]
			all = all && (is || p == "")
		}
		if all {
			return sep
		}
	}
	return ','
}

// trimmed is a record without spaces around its fields and empty ones at its
// end.
func trimmed(fields []string) []string {
	n := 0
	for i, f := range fields {
		if fields[i] = strings.TrimSpace(f); fields[i] != "" {
			n = i + 1
		}
	}
	return fields[:n]
}

// heading tells whether the first line is one. It is if one of its words is
// known, or if none of them has a digit: hardly an id is without, and a heading
// that was taken for a patient would go unnoticed.
func (in *reading) heading(line int, fields []string, o Options) bool {
	is := !o.NoHeading && !strings.ContainsAny(strings.Join(fields, ""), "0123456789|/")
	for _, f := range fields {
		_, known := headings[strings.ToLower(f)]
		is = is || known && !o.NoHeading
	}
	if !is {
		if len(fields) > 1 {
			in.fault(line, "there are %d columns: name them in a first line; %s", len(fields), known)
			return false
		}
		in.columns = []column{who}
		return false
	}
	seen := map[column]string{}
	var columns []column
	for i, f := range fields {
		f = strings.ToLower(f)
		c, is := headings[f]
		other, twice := seen[c]
		switch {
		case !is: // it is not repeated: it may be a patient's
			in.fault(line, "column %d is not known: %s. Take it out; if this line is a patient, add --no-heading", i+1, known)
		case twice && c != who: // of several that say who one may be empty
			in.fault(line, "the columns %s and %s mean the same", other, f)
		}
		seen[c] = f
		in.names = append(in.names, f)
		columns = append(columns, c)
	}
	_, byWho := seen[who]
	_, byValue := seen[value]
	if _, bySystem := seen[system]; bySystem && !byValue {
		in.fault(line, "the column system needs a column value beside it")
	} else if !byWho && !byValue && len(in.faults) == 0 {
		in.fault(line, "no column says who: %s", known)
	}
	in.columns = columns
	return true
}

// record takes one line.
func (in *reading) record(line int, fields []string) {
	if len(fields) > len(in.columns) {
		in.fault(line, "there are %d columns, %d more than in the first line: a comma in a value needs quotes around it", len(fields), len(fields)-len(in.columns))
		return
	}
	var m Member
	var p Period
	var of Identifier
	ok := true
	for i, f := range fields {
		if f == "" {
			continue
		}
		var err error
		switch in.columns[i] {
		case who:
			if m.Entity != (Entity{}) {
				err = errors.New("names a second patient: one to a line")
			} else {
				m.Entity, err = parseEntity(f)
			}
		case system:
			of.System = f
		case value:
			of.Value = f
		case start:
			p.Start, err = f, instant(f)
		case end:
			p.End, err = f, instant(f)
		case inactive:
			m.Inactive, err = boolean(f)
		}
		if err != nil {
			in.fault(line, "%s %s", in.called(i), err)
			ok = false
		}
	}
	if of != (Identifier{}) && ok {
		ok = in.identifier(line, &m, of)
	}
	switch {
	case !ok:
	case m.Entity == (Entity{}):
		in.fault(line, "names no patient")
	case p != (Period{}) && !in.period(line, p):
	default:
		if p != (Period{}) {
			m.Period = &p
		}
		in.take(line, m, p)
	}
}

// identifier puts system and value together.
func (in *reading) identifier(line int, m *Member, of Identifier) bool {
	i, err := ParseIdentifier(of.String())
	switch {
	case m.Entity != (Entity{}):
		in.fault(line, "names a second patient, by value: one to a line")
	case of.Value == "":
		in.fault(line, "has a system and no value")
	case strings.Contains(of.System, "|"):
		in.fault(line, "what stands under system is none: a system is a URL")
	case err != nil:
		in.fault(line, "what stands under system and value %s", err)
	default:
		m.Entity = Entity{Type: "Patient", Identifier: &i}
		return true
	}
	return false
}

// period tells whether something lies between start and end.
func (in *reading) period(line int, p Period) bool {
	first, _, begins := fhir.ParseSpan(p.Start)
	_, last, ends := fhir.ParseSpan(p.End)
	if begins && ends && last < first {
		in.fault(line, "ends before it starts")
		return false
	}
	return true
}

// take adds a member, once.
func (in *reading) take(line int, m Member, p Period) {
	key := m.Entity.String() + "\n" + p.Start + "\n" + p.End
	before, twice := in.said[key]
	switch {
	case !twice:
		in.said[key] = said{line, m.Inactive}
		in.list.Members = append(in.list.Members, m)
	case before.inactive != m.Inactive:
		in.fault(line, "says of the same patient and time the contrary of line %d", before.line)
	default:
		in.list.Repeats++
	}
}

// parseEntity reads an id, Patient/id or system|value.
func parseEntity(s string) (Entity, error) {
	if strings.Contains(s, "|") {
		i, err := ParseIdentifier(s)
		return Entity{Type: "Patient", Identifier: &i}, err
	}
	if id := strings.TrimPrefix(s, "Patient/"); fhir.ValidID(id) {
		return Entity{Reference: "Patient/" + id}, nil
	}
	if typ, _, ok := strings.Cut(s, "/"); ok && isType(typ) {
		return Entity{}, fmt.Errorf("is a reference to %s, or not whole: a roster lists patients, as Patient/id", article(typ))
	}
	return Entity{}, errors.New("is no patient: write an id (1 to 64 of A-Z, a-z, 0-9, - and .), Patient/id, or system|value")
}

func isType(name string) bool {
	_, is := fhir.ParseType(name)
	return is
}

func article(name string) string {
	if strings.Contains("AEIO", name[:1]) {
		return "an " + name
	}
	return "a " + name
}

func instant(s string) error {
	if _, _, ok := fhir.ParseSpan(s); !ok {
		return errors.New("is no date: write 2026-01-31, or 2026-01-31T12:00:00Z with a zone")
	}
	return nil
}

func boolean(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "yes", "1":
		return true, nil
	case "false", "no", "0":
		return false, nil
	}
	return false, errors.New("is not true or false")
}

func isSpace(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) }

// called names a value by its place. What it says is not repeated, not even its
// beginning: a name, or a number of a patient's, may be short.
func (in *reading) called(i int) string {
	if in.names == nil {
		return "what stands there"
	}
	return "what stands under " + in.names[i]
}
