package decode

import (
	"strconv"
	"strings"
	"sync"

	"tidemark/store"
	"tidemark/store/fhir"
)

// Why a record of the format "resource" is refused.
const (
	reasonLarge     = "larger than the limit for records (kafka.max_record)"
	reasonKey       = "key is not Type/id of a FHIR R4 resource"
	reasonNoKey     = "deletion without a key"
	reasonEmpty     = "value is empty, which is neither a resource nor a deletion (null)"
	reasonOp        = "header fhir-op is none of create, update, delete"
	reasonDisagree  = "key and value name different resources"
	reasonSubsetted = "resource is only a part (tag SUBSETTED) and must not replace the whole"
)

// resource is our own format: the key is Type/id, the value the resource. A
// null value or the header fhir-op: delete is a deletion, whose value, if it
// has one, is not looked at.
//
// Headers fhir-version and fhir-last-updated count where the body's meta says
// nothing, and for deletions. Of several headers of one name the last counts, as
// everywhere in Kafka.
type resource struct {
	maxRecord int64
	drop      map[fhir.Type]bool
	scanners  sync.Pool // of *fhir.Scanner
}

func newResource(o Options) Decoder {
	d := &resource{maxRecord: o.maxRecord(), drop: o.dropped()}
	d.scanners.New = func() any {
		return &fhir.Scanner{MaxDepth: o.MaxDepth, OwnBases: o.OwnBases}
	}
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
	if rec.Value == nil || h.deletes {
		return d.deletion(rec, key, h)
	}
	return d.upsert(rec, key, h)
}

func (d *resource) deletion(rec Record, key fhir.Key, h headers) ([]store.Change, error) {
	if key == (fhir.Key{}) {
		return nil, refuse(rec, reasonNoKey)
	}
	return []store.Change{{
		Key:         key,
		Delete:      true,
		Version:     version(h.version),
		LastUpdated: instant(h.lastUpdated),
		Time:        fhir.None,
		Timestamp:   rec.Timestamp,
		Offset:      rec.Offset,
	}}, nil
}

func (d *resource) upsert(rec Record, key fhir.Key, h headers) ([]store.Change, error) {
	if len(rec.Value) == 0 {
		return nil, refuse(rec, reasonEmpty)
	}
	res, err := d.scan(rec.Value)
	switch {
	case err != nil:
		// The scanner's errors are ours and hold nothing of the value.
		return nil, refuse(rec, "value "+err.Error())
	case key != (fhir.Key{}) && key != res.Key:
		return nil, refuse(rec, reasonDisagree)
	case d.drop[res.Key.Type]:
		return nil, nil
	case res.Subsetted:
		return nil, refuse(rec, reasonSubsetted)
	}
	c := store.Change{
		Key:         res.Key,
		Body:        res.Body,
		Meta:        res.Meta,
		Version:     version(res.Version),
		LastUpdated: res.LastUpdated,
		Time:        fhir.None,
		Timestamp:   rec.Timestamp,
		Offset:      rec.Offset,
		Patients:    res.Patients,
		References:  res.References,
		Members:     res.Members,
	}
	noVersion, noUpdated := res.Meta.Missing()
	if noVersion {
		c.Version = version(h.version)
	}
	if noUpdated {
		c.LastUpdated = instant(h.lastUpdated)
	}
	return []store.Change{c}, nil
}

func (d *resource) scan(value []byte) (fhir.Resource, error) {
	s := d.scanners.Get().(*fhir.Scanner)
	defer d.scanners.Put(s)
	return s.Scan(value)
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

// version is a decimal versionId; anything else orders nothing and is none.
func version(s string) int64 {
	v, err := strconv.ParseUint(s, 10, 63) // no sign, no separators
	if err != nil {
		return store.NoVersion
	}
	return int64(v)
}

// instant is None for what is no instant.
func instant(s string) fhir.Instant {
	i, _, err := fhir.ParseInstant(s)
	if err != nil {
		return fhir.None
	}
	return i
}
