package fhir

import "tidemark/store/compact"

// Where a document breaks the grammar of JSON.
const (
	reasonEnd       = "unexpected end"
	reasonValue     = "not a JSON value"
	reasonName      = "member name expected"
	reasonColon     = "colon expected"
	reasonComma     = "comma or closing bracket expected"
	reasonTrailing  = "something follows the document"
	reasonControl   = "control character in a string"
	reasonUTF8      = "invalid UTF-8"
	reasonEscape    = "invalid escape sequence"
	reasonSurrogate = "lone surrogate"
	reasonNumber    = "invalid number"
)

// The functions below take the place where something begins and return the
// place behind it, or -1 when they have called fail.

func (s *Scanner) fail(i int, reason string) int {
	s.err = &SyntaxError{Offset: i, Reason: reason}
	return -1
}

// expected fails at i, where something else should stand.
func (s *Scanner) expected(i int, reason string) int {
	if i >= len(s.src) {
		reason = reasonEnd
	}
	return s.fail(i, reason)
}

// value reads a value that somebody cares about.
func (s *Scanner) value(i int, n *node, depth int) int {
	if n == nil || i >= len(s.src) {
		return s.pass(i, depth, false)
	}
	switch c := s.src[i]; {
	case c == '"':
		return s.textValue(i, n)
	case c == '{' && n.is < typeText:
		return s.object(i+1, n, depth+1)
	case c == '[' && n.is < typeText && n.is != metaObject:
		return s.list(i+1, n, depth+1)
	}
	end := s.pass(i, depth, false)
	if end < 0 {
		return end
	}
	switch literal := s.src[i]; {
	case literal == 'n' && n.optional():
	case n.is == inactiveFlag && (literal == 't' || literal == 'f'):
		s.member.Inactive = literal == 't'
	case n.is == inactiveFlag:
		return s.fail(i, n.name+reasonNoBool)
	case n.is < typeText:
		return s.fail(i, n.name+reasonNoObject)
	default:
		return s.fail(i, n.name+reasonNoString)
	}
	return end
}

func (s *Scanner) textValue(i int, n *node) int {
	end, escaped := s.text(i + 1)
	if end < 0 {
		return end
	}
	if reason := s.takeText(n, s.plain(s.src[i+1:end-1], escaped), end); reason != "" {
		return s.fail(i, reason)
	}
	return end
}

// object reads the rest of an object that somebody cares about.
func (s *Scanner) object(i int, n *node, depth int) int {
	if depth > s.depth {
		return s.fail(i-1, reasonDepth)
	}
	s.enter(n, i)
	var seen uint32
	i = s.space(i)
	if i < len(s.src) && s.src[i] == '}' {
		s.leave(n, seen, true)
		return i + 1
	}
	for {
		if i >= len(s.src) || s.src[i] != '"' {
			return s.expected(i, reasonName)
		}
		end, escaped := s.text(i + 1)
		if end < 0 {
			return end
		}
		name := text{i + 1, end - 1}
		child, ok := s.step(n, name, escaped, &seen)
		if !ok {
			return -1
		}
		if i = s.colon(end); i < 0 {
			return i
		}
		if child == nil && n == headNode {
			s.late = append(s.late, lateMember{name, escaped, i})
		}
		if child == nil {
			i = s.passMember(name, escaped, i, depth, false)
		} else {
			i = s.value(i, child, depth)
		}
		if i < 0 {
			return i
		}
		if n == headNode && s.root != nil {
			n = s.root
		}
		i = s.space(i)
		switch {
		case i < len(s.src) && s.src[i] == ',':
			i = s.space(i + 1)
		case i < len(s.src) && s.src[i] == '}':
			s.leave(n, seen, false)
			return i + 1
		default:
			return s.expected(i, reasonComma)
		}
	}
}

// list reads the rest of a list; its elements stand where it stands.
func (s *Scanner) list(i int, n *node, depth int) int {
	if depth > s.depth {
		return s.fail(i-1, reasonDepth)
	}
	i = s.space(i)
	if i < len(s.src) && s.src[i] == ']' {
		return i + 1
	}
	for {
		if i = s.value(i, n, depth); i < 0 {
			return i
		}
		i = s.space(i)
		switch {
		case i < len(s.src) && s.src[i] == ',':
			i = s.space(i + 1)
		case i < len(s.src) && s.src[i] == ']':
			return i + 1
		default:
			return s.expected(i, reasonComma)
		}
	}
}

// passMember validates the value at i of a member that no node is for. Two kinds
// lead to other resources wherever they stand, in extensions and contained
// resources, too: the reference of a Reference, and the url of an Attachment.
func (s *Scanner) passMember(name text, escaped bool, i, depth int, attachment bool) int {
	if s.again || s.plainly || i >= len(s.src) { // they were noted at the first look
		return s.pass(i, depth, false)
	}
	switch s.src[i] {
	case '"':
		switch plain := s.plain(s.src[name.from:name.to], escaped); {
		case string(plain) == "reference":
			return s.lead(i, s.takeReference)
		case attachment && string(plain) == "url":
			return s.lead(i, s.takeURL)
		}
	case '{', '[':
		return s.pass(i, depth, IsAttachment(s.plain(s.src[name.from:name.to], escaped)))
	}
	return s.pass(i, depth, false)
}

// lead reads a text that leads somewhere.
func (s *Scanner) lead(i int, take func([]byte)) int {
	end, escaped := s.text(i + 1)
	if end >= 0 {
		take(s.plain(s.src[i+1:end-1], escaped))
	}
	return end
}

// pass validates a value that nobody cares about, or Attachments.
func (s *Scanner) pass(i, depth int, attachment bool) int {
	if i >= len(s.src) {
		return s.fail(i, reasonEnd)
	}
	switch c := s.src[i]; c {
	case '"':
		end, _ := s.text(i + 1)
		return end
	case '{':
		return s.passObject(i+1, depth+1, attachment)
	case '[':
		return s.passList(i+1, depth+1, attachment)
	case 't':
		return s.literal(i, "true")
	case 'f':
		return s.literal(i, "false")
	case 'n':
		return s.literal(i, "null")
	default:
		return s.number(i)
	}
}

func (s *Scanner) passObject(i, depth int, attachment bool) int {
	if depth > s.depth {
		return s.fail(i-1, reasonDepth)
	}
	i = s.space(i)
	if i < len(s.src) && s.src[i] == '}' {
		return i + 1
	}
	for {
		if i >= len(s.src) || s.src[i] != '"' {
			return s.expected(i, reasonName)
		}
		end, escaped := s.text(i + 1)
		if end < 0 {
			return end
		}
		name, field := text{i + 1, end - 1}, len(s.fields)
		if depth <= s.listed {
			s.place(Field{depth, compact.Member{Name: i - s.removed, Colon: end - s.removed}})
		}
		if i = s.colon(end); i < 0 {
			return i
		}
		if i = s.passMember(name, escaped, i, depth, attachment); i < 0 {
			return i
		}
		if depth <= s.listed {
			s.fields[field].End = i - s.removed
		}
		i = s.space(i)
		switch {
		case i < len(s.src) && s.src[i] == ',':
			i = s.space(i + 1)
		case i < len(s.src) && s.src[i] == '}':
			return i + 1
		default:
			return s.expected(i, reasonComma)
		}
	}
}

func (s *Scanner) passList(i, depth int, attachment bool) int {
	if depth > s.depth {
		return s.fail(i-1, reasonDepth)
	}
	i = s.space(i)
	if i < len(s.src) && s.src[i] == ']' {
		return i + 1
	}
	for {
		field := len(s.fields)
		if depth <= s.listed {
			s.place(Field{depth, compact.Member{Name: i - s.removed, Colon: i - s.removed - 1}})
		}
		if i = s.pass(i, depth, attachment); i < 0 {
			return i
		}
		if depth <= s.listed {
			s.fields[field].End = i - s.removed
		}
		i = s.space(i)
		switch {
		case i < len(s.src) && s.src[i] == ',':
			i = s.space(i + 1)
		case i < len(s.src) && s.src[i] == ']':
			return i + 1
		default:
			return s.expected(i, reasonComma)
		}
	}
}

// colon reads what separates a name from its value, and the space around it.
func (s *Scanner) colon(i int) int {
	i = s.space(i)
	if i >= len(s.src) || s.src[i] != ':' {
		return s.expected(i, reasonColon)
	}
	return s.space(i + 1)
}

func (s *Scanner) literal(i int, want string) int {
	end := i + len(want)
	if end > len(s.src) || string(s.src[i:end]) != want {
		return s.fail(i, reasonValue)
	}
	return end
}

// space passes by white space, which the body will not have. Compact input is
// what mostly comes, so that is decided without a call.
func (s *Scanner) space(i int) int {
	if i < len(s.src) && s.src[i] <= ' ' {
		return s.cutSpace(i)
	}
	return i
}

func (s *Scanner) cutSpace(i int) int {
	end := spaces(s.src, i)
	if !s.again && end > i {
		s.out = append(s.out, s.src[s.copied:i]...)
		s.copied = end
		s.removed += end - i
	}
	return end
}

// spaces returns where the white space at i ends.
func spaces(src []byte, i int) int {
	for i < len(src) && (src[i] == ' ' || src[i] == '\n' || src[i] == '\r' || src[i] == '\t') {
		i++
	}
	return i
}

// number reads -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)? and never looks
// at what it is worth.
func (s *Scanner) number(i int) int {
	start := i
	if s.src[i] == '-' {
		i++
	}
	first := i
	i = s.passDigits(i)
	switch {
	case i == start:
		return s.fail(i, reasonValue)
	case i == first, i > first+1 && s.src[first] == '0':
		return s.fail(start, reasonNumber)
	}
	if i < len(s.src) && s.src[i] == '.' {
		fraction := i + 1
		if i = s.passDigits(fraction); i == fraction {
			return s.fail(start, reasonNumber)
		}
	}
	if i < len(s.src) && s.src[i]|0x20 == 'e' {
		i++
		if i < len(s.src) && (s.src[i] == '+' || s.src[i] == '-') {
			i++
		}
		exponent := i
		if i = s.passDigits(exponent); i == exponent {
			return s.fail(start, reasonNumber)
		}
	}
	return i
}

func (s *Scanner) passDigits(i int) int {
	for i < len(s.src) && s.src[i]-'0' <= 9 {
		i++
	}
	return i
}
