package fhir

import (
	"bytes"
	"math"
	"slices"
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

	src   []byte
	depth int // the bound in force
	err   *SyntaxError

	// The body without the white space, once there was some: out holds it up to
	// src[copied], removed is how much shorter it is there.
	out     []byte
	copied  int
	removed int

	root   *node // of the type, once that is known
	seen   uint32
	late   []lateMember
	again  bool // the second look: the white space is gone already
	found  findings
	arena  []byte // the texts that found refers to
	unesc  []byte
	member pending
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

type findings struct {
	typ         Type
	id, version text
	idEnd       int // in the body
	meta        Meta
	hasMeta     bool
	lastUpdated Instant
	tagSystem   bool
	tagCode     bool
	subsetted   bool
	patients    []text
	members     []pending
}

// pending is a Member whose Ref is not a string yet.
type pending struct {
	Member
	ref text
}

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

func (s *Scanner) reset(src []byte) {
	s.src, s.err, s.root, s.again = src, nil, nil, false
	s.copied, s.removed, s.seen = 0, 0, 0
	s.depth = s.MaxDepth
	if s.depth <= 0 {
		s.depth = defaultDepth
	}
	s.out, s.arena, s.unesc, s.late = reuse(s.out), reuse(s.arena), reuse(s.unesc), reuse(s.late)
	s.found = findings{
		lastUpdated: None,
		patients:    reuse(s.found.patients),
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

// keep copies b into the arena.
func (s *Scanner) keep(b []byte) text {
	from := len(s.arena)
	s.arena = append(s.arena, b...)
	return text{from, len(s.arena)}
}

// step finds the node of a member's name below n, nil if nobody cares. A name
// of ours must not come twice: readers differ on which one counts.
func (s *Scanner) step(n *node, name text, escaped bool, seen *uint32) (*node, bool) {
	i := n.find(s.plain(s.src[name.from:name.to], escaped))
	if i < 0 {
		return nil, true
	}
	if *seen&(1<<i) != 0 {
		s.fail(name.from, reasonDuplicate+n.children[i].name)
		return nil, false
	}
	*seen |= 1 << i
	return n.children[i], true
}

// plain is the text of a string, which lives until the next call.
func (s *Scanner) plain(raw []byte, escaped bool) []byte {
	if !escaped {
		return raw
	}
	s.unesc = unescape(s.unesc[:0], raw)
	return s.unesc
}

// enter is called behind the opening brace of a node's object.
func (s *Scanner) enter(n *node, i int) {
	switch n.is {
	case metaObject:
		s.found.hasMeta = true
		s.found.meta = Meta{at: uint32(i - s.removed), flags: lacksVersion | lacksUpdated}
	case tagObject:
		s.found.tagSystem, s.found.tagCode = false, false
	case memberObject:
		s.member = pending{Member: Member{Start: None, End: None}}
	}
}

// leave is called at the closing brace of a node's object.
func (s *Scanner) leave(n *node, seen uint32, empty bool) {
	switch n.is {
	case metaObject:
		if empty {
			s.found.meta.flags |= emptyMeta
		}
		if s.found.meta.flags&(lacksVersion|lacksUpdated) == 0 {
			s.found.meta = Meta{}
		}
	case tagObject:
		s.found.subsetted = s.found.subsetted || s.found.tagSystem && s.found.tagCode
	case memberObject:
		s.found.members = append(s.found.members, s.member)
	case passage:
		if n.name == "" {
			s.seen = seen
		}
	}
}

const (
	subsettedSystem = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
	subsettedCode   = "SUBSETTED"
)

// takeText is called for a string at a node, which ends before end. It returns
// the reason why it cannot stand there, "" if it can.
func (s *Scanner) takeText(n *node, raw []byte, end int) (reason string) {
	f := &s.found
	switch n.is {
	case typeText:
		f.typ = typeNumbers[string(raw)]
		if f.typ == 0 {
			return reasonType
		}
		s.root = roots[f.typ]
	case idText:
		if !validID(raw) {
			return reasonID
		}
		f.id, f.idEnd = s.keep(raw), end-s.removed
	case versionText:
		if len(raw) == 0 {
			return reasonVersion
		}
		f.version = s.keep(raw)
		f.meta.flags &^= lacksVersion
	case updatedText:
		f.lastUpdated, _, _ = parseInstant(raw)
		f.meta.flags &^= lacksUpdated
	case tagSystemText:
		f.tagSystem = string(raw) == subsettedSystem
	case tagCodeText:
		f.tagCode = string(raw) == subsettedCode
	case referenceText:
		s.takePatient(raw)
	case memberReferenceText:
		s.takeMember(raw)
	case startText, endText:
		return s.takeDate(n, raw)
	case inactiveFlag:
		return n.name + reasonNoBool
	default:
		return n.name + reasonNoObject
	}
	return ""
}

// takePatient adds the target of a compartment reference, if it is a Patient.
func (s *Scanner) takePatient(ref []byte) {
	name, id, ok := referenceTarget(ref, s.OwnBases)
	if !ok || string(name) != "Patient" {
		return
	}
	// Mostly it is the same patient again.
	if k := len(s.found.patients); k > 0 {
		last := s.found.patients[k-1]
		if bytes.Equal(s.arena[last.from:last.to], id) {
			return
		}
	}
	s.found.patients = append(s.found.patients, s.keep(id))
}

// takeMember notes the entity of a Group's member; one that is a Patient also
// has the Group in its compartment.
func (s *Scanner) takeMember(ref []byte) {
	name, id, ok := referenceTarget(ref, s.OwnBases)
	t := typeNumbers[string(name)]
	if !ok || t == 0 {
		return
	}
	from := s.keep(name).from
	s.arena = append(s.arena, '/')
	kept := s.keep(id)
	s.member.ref = text{from, kept.to}
	if t == patientType {
		s.found.patients = append(s.found.patients, kept)
	}
}

// takeDate notes an end of a member's period. What we cannot read must not
// count as open: a membership that ended would go on.
func (s *Scanner) takeDate(n *node, raw []byte) (reason string) {
	d, ok := parseDateTime(raw)
	if !ok {
		return n.name + reasonNoTime
	}
	if n.is == startText {
		s.member.Start = d.start
	} else {
		s.member.End = d.end
	}
	return ""
}
