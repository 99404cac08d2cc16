// Package attachment changes where the Attachments of a resource lead, by surgery on
// its bytes: what is not changed stays as it is, number for number.
package attachment

import (
	"bytes"
	"encoding/json"

	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// A Lead is what stands in an Attachment in place of its url.
type Lead struct {
	URL string // "": the url stays, or goes if there is Data
	// Data is the content as a JSON string, base64 within (Attachment.data);
	// ContentType is a JSON string, too, for an Attachment that has none.
	Data, ContentType []byte
}

// Follow tells where an Attachment is to lead whose url leads to a key, see
// fhir.AttachedTo.
type Follow func(fhir.Key) Lead

// A Rewriter changes resources. It is not for two goroutines at once.
type Rewriter struct {
	Bases  []string // of absolute references to resources of this server
	Follow Follow

	dst, line []byte
	copied    int // of line
	text      []byte
}

// Append appends a resource to dst with its Attachments changed. line is what a
// fhir.Scanner made of it, Resource.Body. What follows the resource, as a newline,
// stays.
func (r *Rewriter) Append(dst, line []byte) []byte {
	r.dst, r.line, r.copied = dst, line, 0
	r.walk(0, false)
	dst = append(r.dst, line[r.copied:]...)
	r.dst, r.line = nil, nil
	return dst
}

// walk looks through the value at i, which is an Attachment, or a list of some.
func (r *Rewriter) walk(i int, attachment bool) {
	if r.line[i] == '[' {
		for i++; r.line[i] != ']'; {
			end := compact.Skip(r.line, i)
			if nested(r.line[i]) {
				r.walk(i, attachment)
			}
			if i = end; r.line[i] == ',' {
				i++
			}
		}
		return
	}
	var url compact.Member // to be changed
	var lead Lead
	if attachment {
		var whole bool
		if url, lead, whole = r.change(i); whole {
			return
		}
	}
	compact.Members(r.line, i, func(m compact.Member) bool {
		switch {
		case m == url:
			r.copyTo(m.Colon + 1)
			r.dst = append(r.dst, quote(lead.URL)...)
			r.copied = m.End
		case nested(r.line[m.Colon+1]):
			r.walk(m.Colon+1, fhir.IsAttachment(r.plain(r.line[m.Name:m.Colon])))
		}
		return true
	})
}

func nested(first byte) bool { return first == '{' || first == '[' }

// plain lives until the next call.
func (r *Rewriter) plain(quoted []byte) []byte {
	plain := compact.Plain(r.text[:0], quoted)
	if bytes.IndexByte(quoted, '\\') >= 0 {
		r.text = plain[:0] // which may have grown
	}
	return plain
}

// change tells which url of the Attachment at i is to be changed, if one is, and
// into what. One that is filled is written as a whole.
func (r *Rewriter) change(i int) (url compact.Member, lead Lead, whole bool) {
	typed, filled := false, false
	end := compact.Members(r.line, i, func(m compact.Member) bool {
		switch string(r.plain(r.line[m.Name:m.Colon])) {
		case "url":
			url = m
		case "contentType":
			typed = true
		case "data":
			filled = true
		}
		return true
	})
	if url.End == 0 || r.line[url.Colon+1] != '"' {
		return compact.Member{}, lead, false
	}
	key, ok := fhir.AttachedTo(r.plain(r.line[url.Colon+1:url.End]), r.Bases)
	if ok {
		lead = r.Follow(key)
	}
	switch {
	case lead.Data != nil && !filled:
		r.fill(i, end, lead, typed)
		return url, lead, true
	case lead.URL == "":
		return compact.Member{}, lead, false
	}
	return url, lead, false
}

// fill writes an Attachment with its content in place of its url.
func (r *Rewriter) fill(i, end int, lead Lead, typed bool) {
	r.copyTo(i)
	r.dst = append(r.dst, '{')
	if !typed && lead.ContentType != nil {
		r.dst = append(append(append(r.dst, `"contentType":`...), lead.ContentType...), ',')
	}
	r.dst = append(append(r.dst, `"data":`...), lead.Data...)
	compact.Members(r.line, i, func(m compact.Member) bool {
		switch string(r.plain(r.line[m.Name:m.Colon])) {
		case "url", "_url":
		default:
			r.dst = append(append(r.dst, ','), r.line[m.Name:m.End]...)
		}
		return true
	})
	r.dst = append(r.dst, '}')
	r.copied = end
}

func (r *Rewriter) copyTo(i int) {
	r.dst = append(r.dst, r.line[r.copied:i]...)
	r.copied = i
}

func quote(s string) []byte {
	quoted, _ := json.Marshal(s) // of a string: cannot fail
	return quoted
}

// Content is what a Binary holds: its contentType and its data, JSON strings both,
// nil for what it lacks.
func Content(binary []byte) (contentType, data []byte) {
	text := func(m compact.Member) []byte {
		if v := binary[m.Colon+1 : m.End]; v[0] == '"' {
			return v
		}
		return nil
	}
	var scratch []byte
	compact.Members(binary, 0, func(m compact.Member) bool {
		switch string(compact.Plain(scratch, binary[m.Name:m.Colon])) {
		case "contentType":
			contentType = text(m)
		case "data":
			data = text(m)
		}
		return true
	})
	return contentType, data
}
