package fhir

import (
	"bytes"
	"math"
	"slices"

	"tidemark/store/compact"
)

// defaultDepth is far above what FHIR resources need (a Questionnaire in real
// use has some 30 levels) and far below what would strain a stack.
const defaultDepth = 256

// maxScratch bounds what a Scanner keeps from one document to the next: the
// members of one huge Group should not stay with us.
const maxScratch = 1 << 20

// What Scan refuses beyond the grammar of JSON. Names of elements stand in the
// reasons as they stand in our tables.
const (
	reasonObject    = "not a JSON object"
	reasonLarge     = "larger than 2 GiB"
	reasonDepth     = "nested too deep"
	reasonDuplicate = "duplicate "
	reasonType      = "resourceType is not a resource type of FHIR R4"
	reasonNoType    = "resourceType is missing"
	reasonID        = "id is not a FHIR id"
	reasonNoID      = "id is missing"
	reasonVersion   = "meta.versionId is empty"
	reasonNoObject  = " is not an object"
	reasonNoString  = " is not a string"
	reasonNoBool    = " is not a boolean"
	reasonNoTime    = " is not a dateTime"
)

// A Scanner validates resources and learns what the store needs to know of
// them, in one pass over the bytes. The zero value is ready; a Scanner is made
// to be used again, but not by two goroutines at once.
//
// It is strict about JSON (RFC 8259, UTF-8, no lone surrogates, nothing behind
// the object) and refuses beyond that what would make our answers ambiguous:
// names we read that come twice in one object, however they are escaped, and
// values of the wrong kind where we read one. Names that we do not read may come
// twice. In the elements of the compartment and of a Group's members null counts
// as absent. Contained resources are none of its business.
type Scanner struct {
	// MaxDepth bounds the nesting of objects and lists; 0 is 256.
	MaxDepth int
	// OwnBases are the bases under which absolute references are references to
	// our resources, such as http://server/fhir.
	OwnBases []string
	// AllReferences: Resource.References are those to any type, not only to types
	// that lie in no Patient's compartment.
	AllReferences bool

	src   []byte
	depth int // the bound in force
	err   *SyntaxError

	// The body without the white space, once there was some: out holds it up to
	// src[copied], removed is how much shorter it is there.
	out     []byte
	copied  int
	removed int

	root  *node // of the type, once that is known
	seen  uint32
	late  []lateMember
	again bool // the second look: the white space is gone already
	// plainly: nothing in the document is asked about, but its fields down to a depth.
	plainly bool
	listed  int
	fields  []Field
	found   findings
	arena   []byte // the texts that found refers to
	unesc   []byte
	member  pending
}

// A lateMember is a member of the root that came before resourceType, and so
// before we knew whether it matters.
type lateMember struct {
	name    text
	escaped bool
	value   int
}

// A text is a range of Scanner.src or of Scanner.arena.
type text struct{ from, to int }

// Scan reads src, which must hold one resource. The error is a *SyntaxError.
//
// Body aliases src when there was no white space to remove within; nothing else
// in the answer does, and the Scanner forgets src when Scan returns.
func (s *Scanner) Scan(src []byte) (Resource, error) {
	s.reset(src)
	body := s.document()
	if s.err == nil {
		s.lookAgain()
	}
	if s.err != nil {
		err := s.err
		s.reset(nil)
		return Resource{}, err
	}
	res := s.resource(body)
	s.reset(nil)
	return res, nil
}

// Compact validates a JSON document of any kind, as strictly as Scan, and returns it
// without the white space between its tokens. It aliases src when there was none. The
// error is a *SyntaxError.
func (s *Scanner) Compact(src []byte) ([]byte, error) {
	s.reset(src)
	defer s.reset(nil)
	return s.compact()
}

// A Field is a member of an object, or an element of a list, within a document, as places in
// its compact text. Of an element the value begins at Name. Depth is how many objects and
// lists it lies in, 1 of what the document itself has.
type Field struct {
	Depth int
	compact.Member
}

// Fields is Compact that tells the fields down to a depth, too, each before those within it:
// who wants to know what a large text stands beside need not pass by it again. It tells none
// of a document of very many small ones: a list of millions of numbers is walked for less.
func (s *Scanner) Fields(src []byte, depth int) ([]byte, []Field, error) {
	s.reset(src)
	defer s.reset(nil)
	s.listed = depth
	body, err := s.compact()
	if err != nil {
		return nil, nil, err
	}
	return body, slices.Clone(s.fields), nil
}

// place notes where a field is, or forgets all of them, if they are so many and so small that they would
// take more memory than the document.
func (s *Scanner) place(f Field) {
	const fewFields, fieldSize = 256, 32
	if len(s.fields) >= fewFields+len(s.src)/fieldSize {
		s.listed, s.fields = 0, s.fields[:0]
		return
	}
	s.fields = append(s.fields, f)
}

func (s *Scanner) compact() ([]byte, error) {
	src := s.src
	s.plainly = true
	if len(src) > math.MaxInt32 {
		s.fail(0, reasonLarge)
		return nil, s.err
	}
	start := spaces(src, 0)
	s.copied, s.removed = start, start
	end := s.pass(start, 0, false)
	if end >= 0 {
		if rest := spaces(src, end); rest < len(src) {
			end = s.fail(rest, reasonTrailing)
		}
	}
	switch {
	case end < 0:
		return nil, s.err
	case s.removed == start:
		return src[start:end:end], nil
	}
	s.out = append(s.out, src[s.copied:end]...)
	return bytes.Clone(s.out), nil
}

func (s *Scanner) reset(src []byte) {
	s.src, s.err, s.root, s.again, s.plainly = src, nil, nil, false, false
	s.copied, s.removed, s.seen = 0, 0, 0
	s.depth, s.listed = s.MaxDepth, 0
	if s.depth <= 0 {
		s.depth = defaultDepth
	}
	s.out, s.arena, s.unesc, s.late = reuse(s.out), reuse(s.arena), reuse(s.unesc), reuse(s.late)
	s.fields = reuse(s.fields)
	s.found = findings{
		lastUpdated: None,
		patients:    reuse(s.found.patients),
		references:  reuse(s.found.references),
		members:     reuse(s.found.members),
	}
}

func reuse[E any](s []E) []E {
	if cap(s) > maxScratch {
		return nil
	}
	return s[:0]
}

// document walks the whole of src and returns it without white space.
func (s *Scanner) document() []byte {
	if len(s.src) > math.MaxInt32 {
		s.fail(0, reasonLarge)
		return nil
	}
	start := spaces(s.src, 0)
	s.copied, s.removed = start, start
	if start == len(s.src) {
		s.fail(start, reasonEnd)
		return nil
	}
	if s.src[start] != '{' {
		s.fail(start, reasonObject)
		return nil
	}
	end := s.object(start+1, headNode, 1)
	if end < 0 {
		return nil
	}
	if rest := spaces(s.src, end); rest < len(s.src) {
		s.fail(rest, reasonTrailing)
		return nil
	}
	switch {
	case s.root == nil:
		s.fail(start, reasonNoType)
	case s.found.id == text{}:
		s.fail(start, reasonNoID)
	}
	if s.removed == start {
		return s.src[start:end:end]
	}
	s.out = append(s.out, s.src[s.copied:end]...)
	return bytes.Clone(s.out)
}

// lookAgain reads the members that came before the type was known, and turn
// out to matter. Nothing in them can be wrong any more as far as JSON goes.
func (s *Scanner) lookAgain() {
	s.again = true
	for _, l := range s.late {
		child, ok := s.step(s.root, l.name, l.escaped, &s.seen)
		if !ok || child != nil && s.value(l.value, child, 1) < 0 {
			return
		}
	}
}

// resource puts the findings together.
func (s *Scanner) resource(body []byte) Resource {
	f := &s.found
	if f.typ == patientType {
		f.patients = append(f.patients, f.id)
	}
	if !f.hasMeta {
		f.meta = Meta{at: uint32(f.idEnd), flags: lacksVersion | lacksUpdated | lacksMeta}
	}
	all := string(s.arena) // one string, and parts of it
	res := Resource{
		Key:         Key{Type: f.typ, ID: all[f.id.from:f.id.to]},
		Body:        body,
		Version:     all[f.version.from:f.version.to],
		LastUpdated: f.lastUpdated,
		Meta:        f.meta,
		Patients:    patientsOf(all, f.patients),
		References:  keysOf(all, f.references),
		Subsetted:   f.subsetted,
	}
	if len(f.members) > 0 {
		res.Members = make([]Member, len(f.members))
	}
	for i, m := range f.members {
		res.Members[i] = m.Member
		res.Members[i].Ref = all[m.ref.from:m.ref.to]
	}
	return res
}

func patientsOf(all string, found []text) []string {
	if len(found) == 0 {
		return nil
	}
	ids := make([]string, len(found))
	for i, t := range found {
		ids[i] = all[t.from:t.to]
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func keysOf(all string, found []reference) []Key {
	if len(found) == 0 {
		return nil
	}
	keys := make([]Key, len(found))
	for i, r := range found {
		keys[i] = Key{Type: r.typ, ID: all[r.id.from:r.id.to]}
	}
	slices.SortFunc(keys, Key.Compare)
	return slices.Compact(keys)
}
