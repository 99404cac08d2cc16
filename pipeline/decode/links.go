package decode

import (
	"bytes"

	"tidemark/store/compact"
)

// links are the resources of a Bundle by the urn:uuid: that stands for them within it:
// whoever takes the Bundle in puts their ids there (FHIR R4, http.html#transaction). The
// ids are known here only where a resource has one.
type links map[string][]byte // to Type/id

var urn = []byte("urn:uuid:")

// linksOf is nil for a Bundle in which nothing is called by such a name.
func linksOf(entries node) links {
	if !bytes.Contains(entries.value, urn) {
		return nil
	}
	l := links{}
	_ = entries.each(func(v node) error {
		var at [2]node
		full := v.member("fullUrl").text()
		v.member("resource").read(resourceMembers, at[:])
		if typ, id := at[0].text(), at[1].text(); bytes.HasPrefix(full, urn) && len(typ) > 0 && len(id) > 0 {
			l[string(full)] = bytes.Join([][]byte{typ, id}, []byte("/"))
		}
		return nil
	})
	if len(l) == 0 {
		return nil
	}
	return l
}

// resolve is a resource whose references and attachments name resources by type and id
// instead of by what stood for them. Texts that only look like it, such as identifiers,
// stay.
func (l links) resolve(body []byte) []byte {
	if l == nil || !bytes.Contains(body, urn) {
		return body
	}
	var out []byte
	from := 0
	for i := 0; i < len(body); {
		if body[i] != '"' {
			i++
			continue
		}
		end := compact.SkipText(body, i)
		if end < len(body) && body[end] == ':' && body[end+1] == '"' && leads(body[i:end]) {
			i = end + 1
			end = compact.SkipText(body, i)
			if to, known := l[string(compact.Plain(nil, body[i:end]))]; known {
				out = append(append(append(append(out, body[from:i]...), '"'), to...), '"')
				from = end
			}
		}
		i = end
	}
	if from == 0 {
		return body
	}
	return append(out, body[from:]...)
}

// leads tells whether the text of a member of that name leads to a resource.
func leads(name []byte) bool {
	return string(name) == `"reference"` || string(name) == `"url"`
}
