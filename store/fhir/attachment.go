package fhir

import "bytes"

// Binary is the type of that name.
const Binary Type = 9

// IsAttachment tells of the name of a member whether its values are Attachments.
// R4 4.0.1 has none by these names that are not and have a url, and no Attachment by
// any other name (profiles-resources, profiles-types).
func IsAttachment(name []byte) bool {
	switch string(name) {
	case "attachment", "content", "document", "form", "image", "photo", "presentedForm":
		return true
	}
	return bytes.HasSuffix(name, []byte("Attachment"))
}

// AttachedTo says where Attachment.url leads. To a Binary of this server: its key.
// To elsewhere: as the key of a Binary whose ID is no FHIR id but the origin of the
// URL, such as https://documents.example.org, or Relative. Whoever reads Resource.References tells them
// apart by Elsewhere. ok is false for what leads nowhere, or into the resource
// itself.
func AttachedTo(url []byte, bases []string) (key Key, ok bool) {
	id, ok := attachedTo(url, bases)
	return Key{Binary, string(id)}, ok
}

// Relative is the origin of a URL that has none and is not Binary/id.
const Relative = "/"

// Elsewhere tells whether a key of AttachedTo leads to no resource of this server.
func (k Key) Elsewhere() bool { return k.Type == Binary && !validID([]byte(k.ID)) }

// maxOrigin bounds what is kept of a URL that leads elsewhere, bytes.
const maxOrigin = 255

func attachedTo(url []byte, bases []string) (id []byte, ok bool) {
	if len(url) == 0 || url[0] == '#' || bytes.HasPrefix(url, []byte("data:")) {
		return nil, false
	}
	if name, id, ok := referenceTarget(url, bases); ok && typeNumbers[string(name)] == Binary {
		return id, true
	}
	o := origin(url)
	return o[:min(len(o), maxOrigin)], true
}

// origin is scheme, host and port of a URL: all that may be told of it, and that
// many have in common.
func origin(url []byte) []byte {
	colon := bytes.IndexAny(url, ":/?#")
	if colon < 0 || url[colon] != ':' {
		return []byte(Relative)
	}
	scheme, rest := url[:colon+1], url[colon+1:]
	host, found := bytes.CutPrefix(rest, []byte("//"))
	if !found {
		return bytes.ToLower(scheme)
	}
	if end := bytes.IndexAny(host, "/?#"); end >= 0 {
		host = host[:end]
	}
	host = host[bytes.LastIndexByte(host, '@')+1:] // who may enter is nobody's business
	return bytes.ToLower(append(append(bytes.Clone(scheme), "//"...), host...))
}
