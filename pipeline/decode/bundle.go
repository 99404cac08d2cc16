package decode

import (
	"bytes"
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"tidemark/store"
	"tidemark/store/fhir"
)

// Why a Bundle is refused.
const (
	reasonNoBundle    = "value is no Bundle"
	reasonResource    = "value is a resource and no Bundle: the format is probably resource"
	reasonNotice      = "Bundle is the notification of a Subscription: the format is notification"
	reasonAnswer      = "Bundle is the answer to a request, which says nothing of what has changed"
	reasonDocument    = "Bundle is a document or a message, whose resources are copies of their time"
	reasonBundleType  = "Bundle.type is missing or unknown"
	reasonMethod      = "request.method is none of GET, HEAD, PUT, POST, DELETE: what it makes of the resource is not in the message"
	reasonEntries     = "Bundle.entry is not a list"
	reasonConditional = "request.url is a search: which resource it finds is known to the source only"
	reasonOnlyIf      = "request is made only if there is no such resource yet (ifNoneExist, ifNoneMatch): whether there was is known to the source only"
	reasonOfVersion   = "request.url names a version: what is done to an earlier version says nothing of the resource"
	reasonPost        = "what is posted is not created: request.url is not the type of the resource, and what an operation makes of it is not in the message"
	reasonTwoNames    = "a fullUrl stands for two resources: which of them the references mean is not told"
	reasonNoRequest   = "request is missing"
	reasonPostNoID    = "resource that is posted has no id: only the source knows which it got"
	reasonRequestURL  = "request.url does not name a FHIR R4 resource as Type/id"
)

// bundle are Bundles of FHIR: transactions and batches, as they are sent to a server;
// histories, as a server tells them; collections and the answers to searches. A null value
// says nothing, so a topic of resources, whose deletions are null, must not pass for one of
// Bundles: a resource by itself is refused, unless the topic is said to be mixed.
//
// All entries are taken over, or none: one that cannot be understood makes the record a
// dead letter.
type bundle struct {
	changes
	alone Decoder // of resources by themselves, nil if they are refused
}

// entryDepth is where a resource's type and id lie in a Bundle: entry, which of them, resource.
const entryDepth = 4

func newBundle(o Options) Decoder {
	d := &bundle{}
	d.prepare(o, entryDepth)
	if o.Mixed {
		d.alone = newResource(o)
	}
	return d
}

// Decode implements Decoder.
func (d *bundle) Decode(rec Record) ([]store.Change, error) {
	b, err := d.bundle(rec)
	switch {
	case err == nil && b == nil && d.alone != nil:
		if _, err := fhir.ParseKey(string(rec.Key)); err != nil {
			return nil, nil // the tombstone of a Bundle
		}
		return d.alone.Decode(rec)
	case err != nil || b == nil:
		return nil, err
	case b.resourceType == "":
		return nil, refuse(rec, reasonNoBundle)
	case b.resourceType != "Bundle" && d.alone != nil:
		return d.alone.Decode(rec)
	case b.resourceType != "Bundle":
		return nil, refuse(rec, reasonResource)
	case b.notice():
		return nil, refuse(rec, reasonNotice)
	}
	switch b.typ {
	case "transaction", "batch":
		return d.entries(rec, b, (*entry).requested)
	case "history":
		return d.entries(rec, b, (*entry).happened)
	case "collection", "searchset":
		return d.entries(rec, b, (*entry).contained)
	case "transaction-response", "batch-response":
		return nil, refuse(rec, reasonAnswer)
	case "document", "message":
		return nil, refuse(rec, reasonDocument)
	}
	return nil, refuse(rec, reasonBundleType)
}

// A bundleValue is what is read of a Bundle.
type bundleValue struct {
	resourceType, typ string
	entry             node
}

var bundleMembers = []string{"resourceType", "type", "entry"}

// bundle is a record's value as what may be a Bundle; nil of Kafka's null.
func (c *changes) bundle(rec Record) (*bundleValue, error) {
	switch {
	case rec.Value == nil:
		return nil, nil
	case rec.size() > c.maxRecord:
		return nil, refuse(rec, reasonLarge)
	}
	v, err := c.envelope(rec)
	if err != nil {
		return nil, err
	}
	var at [3]node
	if !v.read(bundleMembers, at[:]) {
		return nil, refuse(rec, reasonTwice)
	}
	if at[0].isText() && string(at[0].text()) == "Bundle" && at[2].value != nil && !at[2].isList() {
		return nil, refuse(rec, reasonEntries)
	}
	return &bundleValue{string(at[0].text()), string(at[1].text()), at[2]}, nil
}

// notice tells whether the first entry is the status of a Subscription.
func (b *bundleValue) notice() bool {
	if b.typ == "subscription-notification" {
		return true
	}
	return b.typ == "history" && isStatus(b.entry.first().member("resource"))
}

// An entry is one of a Bundle's.
type entry struct {
	fullURL, resource           node
	method, url, etag, modified []byte
	mode                        []byte // of a search
	typ, id                     []byte // of the resource
	hasRequest, onlyIf          bool
}

var (
	entryMembers    = []string{"fullUrl", "resource", "request", "response", "search"}
	requestMembers  = []string{"method", "url", "ifNoneExist", "ifNoneMatch"}
	responseMembers = []string{"etag", "lastModified"}
	resourceMembers = []string{"resourceType", "id"}
)

func readEntry(v node) (e entry, reason string) {
	var at [5]node
	var request [4]node
	var response, resource [2]node
	once := v.read(entryMembers, at[:])
	e.fullURL, e.resource = at[0], at[1]
	once = once && at[2].read(requestMembers, request[:]) && at[3].read(responseMembers, response[:]) && e.resource.read(resourceMembers, resource[:])
	if !once {
		return e, reasonTwice
	}
	e.hasRequest, e.method, e.url = at[2].value != nil, request[0].text(), request[1].text()
	e.onlyIf = request[2].value != nil || request[3].value != nil
	e.etag, e.modified = response[0].text(), response[1].text()
	e.mode = at[4].member("mode").text()
	e.typ, e.id = resource[0].text(), resource[1].text()
	return e, ""
}

// target is the resource that a request changes.
func (e *entry) target() (fhir.Key, string) {
	key, versionID, reason := e.key()
	if reason == "" && versionID != "" {
		reason = reasonOfVersion
	}
	return key, reason
}

// creates tells whether what is posted is posted to its type, as what is to be created is: to
// it alone, or, as some write, with the id that it has.
func (e *entry) creates() (reason string) {
	url := bytes.TrimRight(e.url, "/")
	switch key, versionID, ok := named(url); {
	case bytes.IndexByte(url, '?') >= 0:
		return reasonConditional
	case ok && versionID == "" && key.Type.String() == string(e.typ) && key.ID == string(e.id):
		return ""
	case string(url[bytes.LastIndexByte(url, '/')+1:]) != string(e.typ) && len(url) > 0:
		return reasonPost
	}
	return ""
}

// key is the resource that the request's URL names.
func (e *entry) key() (key fhir.Key, versionID, reason string) {
	if bytes.IndexByte(e.url, '?') >= 0 {
		return key, "", reasonConditional
	}
	key, versionID, ok := named(e.url)
	if !ok {
		return key, "", reasonRequestURL
	}
	return key, versionID, ""
}

// requested is what an entry of a transaction or a batch changes.
func (e *entry) requested() (s said, changes bool, reason string) {
	s = nothing
	if !e.hasRequest {
		return s, false, reasonNoRequest
	}
	switch string(e.method) {
	case http.MethodGet, http.MethodHead:
		return s, false, ""
	case http.MethodDelete:
		s.delete = true
		s.key, reason = e.target()
		return s, reason == "", reason
	case http.MethodPut:
		if s.key, reason = e.target(); reason == "" && e.onlyIf {
			reason = reasonOnlyIf
		}
		s.body, s.lacks = e.resource.value, len(e.id) == 0
		return s, reason == "", reason
	case http.MethodPost:
		switch {
		case e.onlyIf:
			return s, false, reasonOnlyIf
		case e.resource.value == nil:
			return s, true, "" // for want of a body it is refused
		case len(e.id) == 0:
			return s, false, reasonPostNoID
		}
		if reason = e.creates(); reason != "" {
			return s, false, reason
		}
		s.body = e.resource.value
		return s, true, ""
	}
	return s, false, reasonMethod
}

// happened is what an entry of a history tells.
func (e *entry) happened() (s said, changes bool, reason string) {
	s = nothing
	var versionID string
	switch string(e.method) {
	case http.MethodGet, http.MethodHead:
		return s, false, ""
	case http.MethodDelete:
		s.delete = true
		if s.key, versionID, reason = e.key(); reason != "" {
			if key, version, ok := named(e.fullURL.text()); ok {
				s.key, versionID, reason = key, version, ""
			}
		}
	case http.MethodPut, http.MethodPost, http.MethodPatch, "":
		if key, version, ok := named(e.url); ok { // it was not told by a search, or made by a POST
			s.key, versionID = key, version
		}
		s.body, s.lacks = e.resource.value, len(e.id) == 0
	default:
		reason = reasonMethod
	}
	s.version, s.lastUpdated = cmp.Or(etag(e.etag), versionID), instant(e.modified)
	return s, reason == "", reason
}

// contained is what an entry of a collection holds.
func (e *entry) contained() (s said, changes bool, reason string) {
	s = nothing
	s.body = e.resource.value
	return s, string(e.mode) != "outcome", ""
}

// etag is the version in W/"3".
func etag(tag []byte) string {
	s := strings.TrimPrefix(string(tag), "W/")
	return strings.Trim(s, `"`)
}

// entries makes changes of all entries.
func (d *bundle) entries(rec Record, b *bundleValue, says func(*entry) (said, bool, string)) ([]store.Change, error) {
	var all []store.Change
	links, reason := linksOf(b.entry)
	if reason != "" {
		return nil, refuse(rec, reason)
	}
	n := 0
	err := b.entry.each(func(v node) (err error) {
		part := fmt.Sprintf("entry %d: ", n)
		n++
		e, reason := readEntry(v)
		if reason != "" {
			return refuse(rec, part+reason)
		}
		s, changes, reason := says(&e)
		switch {
		case reason != "":
			return refuse(rec, part+reason)
		case !changes:
			return nil
		}
		s.body = links.resolve(s.body)
		all, err = d.add(all, rec, s, part)
		return err
	})
	if err != nil {
		return nil, err
	}
	return inOrder(all, b.typ == "history"), nil
}

// inOrder are the changes of one record with those of each resource in the order of their
// versions, the oldest first. A history has the newest first. Of those between which
// nothing decides, for they share an offset, the last counts.
func inOrder(all []store.Change, newestFirst bool) []store.Change {
	if newestFirst {
		slices.Reverse(all)
	}
	last := map[fhir.Key]int{}
	var again map[fhir.Key][]int
	for i := range all {
		if at, met := last[all[i].Key]; met {
			if again == nil {
				again = map[fhir.Key][]int{}
			}
			if again[all[i].Key] == nil {
				again[all[i].Key] = []int{at}
			}
			again[all[i].Key] = append(again[all[i].Key], i)
		}
		last[all[i].Key] = i
	}
	dropped := map[int]bool{}
	for _, places := range again {
		same := make([]store.Change, len(places))
		for i, at := range places {
			same[i] = all[at]
		}
		slices.SortStableFunc(same, older)
		for i, at := range places {
			all[at] = same[i]
			if i > 0 && older(same[i-1], same[i]) == 0 {
				dropped[places[i-1]] = true
			}
		}
	}
	if len(dropped) == 0 {
		return all
	}
	kept := all[:0]
	for i := range all {
		if !dropped[i] {
			kept = append(kept, all[i])
		}
	}
	return kept
}

// older orders two changes of a resource by what they say of version and time.
func older(a, b store.Change) int {
	if a.Version != store.NoVersion && b.Version != store.NoVersion && a.Version != b.Version {
		return cmp.Compare(a.Version, b.Version)
	}
	if a.LastUpdated != fhir.None && b.LastUpdated != fhir.None {
		return cmp.Compare(a.LastUpdated, b.LastUpdated)
	}
	return 0
}
