package decode

import (
	"strings"

	"tidemark/store"
	"tidemark/store/fhir"
)

// Why a record of the format "resource" is refused.
const (
	reasonKey   = "key is not Type/id of a FHIR R4 resource"
	reasonNoKey = "deletion without a key"
	reasonOp    = "header fhir-op is none of create, update, delete"
)

// resource is our own format: the key is Type/id, the value the resource. A
// null value or the header fhir-op: delete is a deletion, whose value, if it
// has one, is not looked at.
//
// Headers fhir-version and fhir-last-updated count where the body's meta says
// nothing, and for deletions. Of several headers of one name the last counts, as
// everywhere in Kafka.
type resource struct{ changes }

func newResource(o Options) Decoder {
	d := &resource{}
	d.prepare(o, 0)
	return d
}

// Decode implements Decoder.
func (d *resource) Decode(rec Record) ([]store.Change, error) {
	key, err := readKey(rec)
	switch {
	case err != nil:
		return nil, err
	case d.drop[key.Type]: // however large: that is what dropping is mostly for
		return nil, nil
	case rec.size() > d.maxRecord:
		return nil, refuse(rec, reasonLarge)
	}
	h, err := readHeaders(rec)
	if err != nil {
		return nil, err
	}
	s := nothing
	s.key, s.version, s.lastUpdated = key, h.version, instant(h.lastUpdated)
	switch {
	case rec.Value == nil || h.deletes:
		if s.delete = true; key == (fhir.Key{}) {
			return nil, refuse(rec, reasonNoKey)
		}
	case len(rec.Value) == 0:
		return nil, refuse(rec, reasonEmpty)
	}
	s.body = rec.Value
	if !s.delete {
		if reason := d.requests(key, s.body); reason != "" {
			return nil, refuse(rec, reason)
		}
	}
	return d.add(nil, rec, s, "")
}

// readKey returns the zero key for a record without one; an empty key is none.
func readKey(rec Record) (fhir.Key, error) {
	if len(rec.Key) == 0 {
		return fhir.Key{}, nil
	}
	key, err := fhir.ParseKey(string(rec.Key))
	if err != nil {
		return fhir.Key{}, refuse(rec, reasonKey)
	}
	return key, nil
}

type headers struct {
	deletes              bool
	version, lastUpdated string
}

func readHeaders(rec Record) (headers, error) {
	var h headers
	var op string
	for _, header := range rec.Headers {
		switch header.Key {
		case "fhir-op":
			op = string(header.Value)
		case "fhir-version":
			h.version = string(header.Value)
		case "fhir-last-updated":
			h.lastUpdated = string(header.Value)
		}
	}
	switch strings.ToLower(op) {
	case "delete":
		h.deletes = true
	case "", "create", "update":
	default:
		// A word that we do not know may well mean that the resource is gone.
		return headers{}, refuse(rec, reasonOp)
	}
	return h, nil
}
