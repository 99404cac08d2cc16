package decode

import (
	"bytes"
	"net/http"

	"tidemark/store/compact"
)

// links are the resources of a Bundle by the urn:uuid: or urn:oid: that stands for them within
// it: whoever takes the Bundle in puts their ids there (FHIR R4, http.html#transaction). The
// ids are known here only where a resource has one, or the URL that it is put to.
type links map[string][]byte // to Type/id

var urn = []byte("urn:")

// linksOf is nil for a Bundle in which nothing is called by such a name.
func linksOf(entries node) (l links, reason string) {
	if !bytes.Contains(entries.value, urn) {
		return nil, ""
	}
	_ = entries.each(func(v node) error {
		full := v.member("fullUrl").text()
		if !stands(full) {
			return nil
		}
		to := linked(v)
		switch was, met := l[string(full)]; {
		case to == nil:
		case met && !bytes.Equal(was, to):
			reason = reasonTwoNames
		case l == nil:
			l = links{}
			fallthrough
		default:
			l[string(full)] = to
		}
		return nil
	})
	return l, reason
}

// stands tells whether a URL stands for a resource within a Bundle.
func stands(full []byte) bool {
	return bytes.HasPrefix(full, []byte("urn:uuid:")) || bytes.HasPrefix(full, []byte("urn:oid:"))
}

// linked is the Type/id of an entry's resource, nil if that is not known.
func linked(v node) []byte {
	var at [2]node
	v.member("resource").read(resourceMembers, at[:])
	typ, id := at[0].text(), at[1].text()
	if request := v.member("request"); len(typ) > 0 && len(id) == 0 && string(request.member("method").text()) == http.MethodPut {
		if key, _, ok := named(request.member("url").text()); ok {
			id = []byte(key.ID)
		}
	}
	if len(typ) == 0 || len(id) == 0 {
		return nil
	}
	return bytes.Join([][]byte{typ, id}, []byte("/"))
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
