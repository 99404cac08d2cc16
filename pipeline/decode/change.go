package decode

import (
	"strconv"
	"strings"
	"sync"

	"tidemark/store"
	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// Why a change is refused, whatever it came in.
const (
	reasonLarge     = "larger than the limit for records (kafka.max_record)"
	reasonNoObject  = "value is not a JSON object"
	reasonEmpty     = "value is empty, which is neither a resource nor a deletion (null)"
	reasonSubsetted = "resource is only a part (tag SUBSETTED) and must not replace the whole"
	reasonNoBody    = "only the id of a resource that has changed, without the resource: have the source send it whole, for it is never asked"
	reasonNoNamed   = "the message names no FHIR R4 resource as Type/id"
	reasonTwice     = "a member of the message that is read comes twice"
	reasonOther     = "the record and the resource in it name different resources"
)

// A said is what a message says of one resource.
type said struct {
	key         fhir.Key // the zero key: its body tells
	delete      bool
	body        []byte // JSON of the resource, handed over
	version     string // counts where the body has none
	lastUpdated fhir.Instant
	time        fhir.Instant // of the event, where nothing says when the resource changed
	position    uint64       // in the source's log
	snapshot    bool         // a snapshot told it
	earlier     bool         // a version's row, which was written before
	lacks       bool         // the body may lack its type and id
	unchanged   bool         // the body is left out, for it is what it was
}

// nothing is a said that says nothing.
var nothing = said{lastUpdated: fhir.None, time: fhir.None}

// changes makes changes of what messages say; all formats have it.
type changes struct {
	maxRecord int64
	drop      map[fhir.Type]bool
	depth     int       // in messages, of what is looked for: see node
	scanners  sync.Pool // of *fhir.Scanner
	inflaters sync.Pool // of *inflater
}

// prepare is called once. What lies deeper than depth in messages is read, too, but slower.
func (c *changes) prepare(o Options, depth int) {
	c.maxRecord, c.drop, c.depth = o.maxRecord(), o.dropped(), depth
	c.scanners.New = func() any {
		return &fhir.Scanner{MaxDepth: o.MaxDepth, OwnBases: o.OwnBases}
	}
	c.inflaters.New = func() any { return new(inflater) }
}

// add appends the change that a message says, nothing if it is of a dropped type. part
// names the place in a message of several, for the reason of an error; "" in one of one.
func (c *changes) add(to []store.Change, rec Record, s said, part string) ([]store.Change, error) {
	ch, ok, reason := c.change(rec, s)
	if reason != "" {
		return nil, refuse(rec, part+reason)
	}
	if ok {
		to = append(to, ch)
	}
	return to, nil
}

func (c *changes) change(rec Record, s said) (ch store.Change, ok bool, reason string) {
	if c.drop[s.key.Type] { // however large or wrong
		return ch, false, ""
	}
	ch = store.Change{
		Key: s.key, Delete: s.delete, Version: version(s.version), LastUpdated: s.lastUpdated, Time: s.time,
		Position: s.position, Snapshot: s.snapshot, Earlier: s.earlier, Timestamp: rec.Timestamp, Offset: rec.Offset,
	}
	switch {
	case s.delete && s.key == fhir.Key{}:
		return ch, false, reasonNoNamed
	case s.delete:
		return ch, true, ""
	case len(s.body) == 0:
		return ch, false, reasonNoBody
	}
	res, err := c.scan(s.body)
	if err != nil && s.lacks && s.key != (fhir.Key{}) {
		res, err = c.scanLacking(s.body, s.key)
	}
	switch {
	case err != nil:
		return ch, false, "resource " + err.Error() // the scanner's errors are ours and hold nothing of the value
	case s.key != (fhir.Key{}) && s.key != res.Key:
		return ch, false, reasonOther
	case c.drop[res.Key.Type]:
		return ch, false, ""
	case res.Subsetted:
		return ch, false, reasonSubsetted
	}
	noVersion, noUpdated := res.Meta.Missing()
	if !noVersion {
		ch.Version = version(res.Version)
	}
	if !noUpdated {
		ch.LastUpdated = res.LastUpdated
	}
	ch.Key, ch.Body, ch.Meta = res.Key, res.Body, res.Meta
	ch.Patients, ch.References, ch.Members = res.Patients, res.References, res.Members
	return ch, true, ""
}

func (c *changes) scan(body []byte) (fhir.Resource, error) {
	s := c.scanners.Get().(*fhir.Scanner)
	defer c.scanners.Put(s)
	return s.Scan(body)
}

// scanLacking scans a resource that may lack its type and id: sources that keep them in
// columns of their own leave them out of the body. Most do not, so that is tried second.
func (c *changes) scanLacking(body []byte, key fhir.Key) (fhir.Resource, error) {
	v, err := c.compact(body)
	if err != nil {
		return fhir.Resource{}, err
	}
	return c.scan(complete(v, key))
}

// complete is a resource that says its type and id.
func complete(v value, key fhir.Key) []byte {
	if !v.isObject() {
		return v // for Scan to refuse
	}
	hasType, hasID, first := false, false, 1
	compact.Members(v, 0, func(m compact.Member) bool {
		switch string(v[m.Name:m.Colon]) {
		case `"resourceType"`:
			if hasType = true; m.Name == 1 {
				first = m.End
			}
		case `"id"`:
			hasID = true
		}
		return !hasType || !hasID
	})
	if hasType && hasID {
		return v
	}
	return insert(v, first, key, !hasType, !hasID)
}

// insert writes what a resource lacks at a place in it: behind its opening brace, or
// behind its resourceType.
func insert(body []byte, at int, key fhir.Key, typ, id bool) []byte {
	b := make([]byte, 0, len(body)+len(`"resourceType":"","id":"",`)+len(key.Type.String())+len(key.ID))
	b = append(b, body[:at]...)
	if at > 1 {
		b = append(b, ',')
	}
	if typ {
		b = append(append(append(b, `"resourceType":"`...), key.Type.String()...), '"', ',')
	}
	if id {
		b = append(append(append(b, `"id":"`...), key.ID...), '"', ',')
	}
	rest := body[at:]
	if rest[0] == ',' {
		rest = rest[1:]
	}
	if rest[0] == '}' {
		b = b[:len(b)-1] // nothing follows the comma
	}
	return append(b, rest...)
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
func instant[T string | []byte](s T) fhir.Instant {
	i, _, err := fhir.ParseInstant(string(s))
	if err != nil {
		return fhir.None
	}
	return i
}

// named reads what names a resource, as a reference, a location or the URL of a request
// does: the last Type/id in it, with its version if it says one. false: it names none.
func named[T string | []byte](ref T) (key fhir.Key, versionID string, ok bool) {
	rest := string(ref)
	if strings.ContainsAny(rest, "?#") {
		return key, "", false // a search, or what is contained in something
	}
	rest, versionID, _ = strings.Cut(rest, "/_history/")
	id := strings.LastIndexByte(rest, '/')
	if id < 0 {
		return key, "", false
	}
	typ := strings.LastIndexByte(rest[:id], '/')
	key, err := fhir.ParseKey(rest[typ+1:])
	return key, versionID, err == nil
}
