package decode

import (
	"bytes"
	"encoding/base64"

	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// The messages in which producers wrap resources are walked as bytes: validated and
// compacted once, then looked at member by member. Resources stand in them as JSON, or as
// the text of a string.

// A value is one of a message's JSON values as it is written, compact; nil: there is none.
type value []byte

func (v value) isObject() bool { return len(v) > 0 && v[0] == '{' }
func (v value) isList() bool   { return len(v) > 0 && v[0] == '[' }
func (v value) isText() bool   { return len(v) > 0 && v[0] == '"' }
func (v value) isTrue() bool   { return string(v) == "true" }

// none tells whether the value is not there, or null, which says the same.
func (v value) none() bool { return len(v) == 0 || v[0] == 'n' }

// text is what a string says; of a number it is how that is written, and "" else. It may
// alias the message.
func (v value) text() []byte {
	switch {
	case v.isText():
		return compact.Plain(nil, v)
	case len(v) > 0 && (v[0] == '-' || v[0]-'0' <= 9):
		return v
	}
	return nil
}

// member is one of an object's by name, the first of that name; nil: there is none.
func (v value) member(name string) (found value) {
	if !v.isObject() {
		return nil
	}
	compact.Members(v, 0, func(m compact.Member) bool {
		if string(compact.Plain(nil, v[m.Name:m.Colon])) == name {
			found = v[m.Colon+1 : m.End]
		}
		return found == nil
	})
	if found.none() {
		return nil
	}
	return found
}

// members is how many an object has.
func members(v value) (n int) {
	if v.isObject() {
		compact.Members(v, 0, func(compact.Member) bool { n++; return true })
	}
	return n
}

// embedded is a resource inside of a message: an object, or a string whose text is one.
func (v value) embedded() []byte {
	if v.isText() {
		return v.text()
	}
	return v
}

// document is a record's value as compact JSON; the zero node of Kafka's null.
func (c *changes) document(rec Record) (node, error) {
	switch {
	case rec.Value == nil:
		return node{}, nil
	case len(rec.Value) == 0:
		return node{}, refuse(rec, reasonEmpty)
	}
	n, err := c.nodes(rec.Value)
	if err != nil {
		return node{}, refuse(rec, "value "+err.Error())
	}
	return n, nil
}

// compact validates JSON of any kind: only then it can be walked. The scanner's errors are
// ours and hold nothing of it.
func (c *changes) compact(src []byte) (value, error) {
	s := c.scanners.Get().(*fhir.Scanner)
	defer c.scanners.Put(s)
	v, err := s.Compact(src)
	return v, err
}

// envelope is a record's value as compact JSON that is an object.
func (c *changes) envelope(rec Record) (node, error) {
	n, err := c.document(rec)
	if err == nil && !n.isObject() {
		return node{}, refuse(rec, reasonNoObject)
	}
	return n, err
}

// base64Text decodes what producers write of bytes: RFC 4648, both alphabets, padded or not.
func base64Text(text []byte) ([]byte, bool) {
	text = bytes.TrimRight(text, "=")
	encoding := base64.RawStdEncoding
	if bytes.ContainsAny(text, "-_") {
		encoding = base64.RawURLEncoding
	}
	b := make([]byte, encoding.DecodedLen(len(text)))
	n, err := encoding.Decode(b, text)
	return b[:n], err == nil
}
