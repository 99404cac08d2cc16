package fhir

import (
	"bytes"

	"tidemark/store/compact"
)

// findings is what a Scanner has learnt so far.
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
	references  []reference
	members     []pending
}

// reference is a Key whose ID is not a string yet.
type reference struct {
	typ Type
	id  text
}

// pending is a Member whose Ref is not a string yet.
type pending struct {
	Member
	ref                text
	typ, system, value text // what else its entity says
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
	s.unesc = compact.Unescape(s.unesc[:0], raw)
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
		s.nameMember()
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
		s.takeReference(raw)
	case targetText:
		s.takePatient(raw)
		s.takeReference(raw)
		s.takeTarget(raw)
	case memberReferenceText:
		s.takeMember(raw)
		s.takeReference(raw)
	case memberTypeText:
		s.member.typ = s.keep(raw)
	case memberSystemText:
		s.member.system = s.keep(raw)
	case memberValueText:
		s.member.value = s.keep(raw)
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

// takeReference notes the target of a reference if it lies in no Patient's
// compartment: the other references lead to what an export has anyway, and are
// noted only for who asks for all.
func (s *Scanner) takeReference(ref []byte) {
	if s.again { // it was noted at the first look
		return
	}
	name, id, ok := referenceTarget(ref, s.OwnBases)
	t := typeNumbers[string(name)]
	if ok && t != 0 && (!inCompartment[t] || s.AllReferences) {
		s.note(t, id)
	}
}

// takeURL notes where an Attachment leads. That is no reference: who asks for all
// of them does not mean it.
func (s *Scanner) takeURL(url []byte) {
	if s.AllReferences {
		return
	}
	if id, ok := attachedTo(url, s.OwnBases); ok {
		s.note(Binary, id)
	}
}

// note adds a reference. Mostly it is one of the last again.
func (s *Scanner) note(t Type, id []byte) {
	known := s.found.references
	for _, r := range known[max(0, len(known)-8):] {
		if r.typ == t && bytes.Equal(s.arena[r.id.from:r.id.to], id) {
			return
		}
	}
	s.found.references = append(known, reference{t, s.keep(id)})
}

// takeTarget notes what a Provenance is about if it lies in Patients'
// compartments: the Provenance goes where that goes.
func (s *Scanner) takeTarget(ref []byte) {
	name, id, ok := referenceTarget(ref, s.OwnBases)
	t := typeNumbers[string(name)]
	if ok && t != 0 && inCompartment[t] && t != patientType { // in that one's compartment it is anyway
		s.found.references = append(s.found.references, reference{t, s.keep(id)})
	}
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

// nameMember gives a member that refers to no resource of ours the identifier of
// its entity as its name, if it may be a Patient.
func (s *Scanner) nameMember() {
	m := &s.member
	says := func(t text) []byte { return s.arena[t.from:t.to] }
	if m.ref != (text{}) || len(says(m.value)) == 0 || len(says(m.typ)) > 0 && string(says(m.typ)) != "Patient" {
		return
	}
	m.ref = s.keep(appendByIdentifier(nil, says(m.system), says(m.value)))
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
