package decode

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tidemark/store"
	"tidemark/store/fhir"
)

// Servers' own event messages: one JSON object that names what has happened to which
// resource, beside the resource.

// Why such a message is refused.
const (
	reasonNoEvent = "value has not the members that messages of this format have"
	reasonAction  = "what was done to the resource is told in a word that is not known here"
	reasonXML     = "resource is XML: have the source send JSON"
	reasonRelease = "resource is of another release of FHIR than R4"
	reasonBase64  = "what should be base64 is not"
	reasonTwoData = "event has its data twice (data and data_base64)"
	reasonRequest = "resource is a Bundle of what is to be done, or was, and nothing says that it is kept as one: the format is probably bundle"
)

// A fault is the reason why a record is refused, on its way up.
type fault string

func (f fault) Error() string { return string(f) }

// A change to a resource, as messages name it in words of their own.
type action uint8

const (
	unknownAction action = iota
	upserts
	deletes
)

var verbs = []struct {
	verb string
	does action
}{
	{"undelete", upserts},
	{"create", upserts},
	{"update", upserts},
	{"upsert", upserts},
	{"insert", upserts},
	{"patch", upserts},
	{"change", upserts},
	{"delete", deletes},
	{"remove", deletes},
	{"purge", deletes},
	{"expunge", deletes},
}

// actionOf reads what was done in the words that producers use: a verb or its past tense,
// in any case of letters, be it the end of a longer name, with a version or without
// (Microsoft.HealthcareApis.FhirResourceUpdated, org.example.resource.deleted.v1). A word
// that is not known may well mean that the resource is gone.
func actionOf[T string | []byte](word T) action {
	w := strings.ToLower(string(word))
	if dot := strings.LastIndex(w, ".v"); dot >= 0 && strings.Trim(w[dot+2:], "0123456789") == "" {
		w = w[:dot]
	}
	for _, v := range verbs {
		if strings.HasSuffix(w, v.verb) || strings.HasSuffix(w, v.verb+"d") || strings.HasSuffix(w, v.verb+"ed") {
			return v.does
		}
	}
	return unknownAction
}

// events is a format whose records are JSON with one event or several; null says nothing.
type events struct {
	changes
	read reader
}

func newEvents(o Options, depth int, read reader) Decoder {
	d := &events{read: read}
	d.prepare(o, depth)
	return d
}

// A reader calls each for what a record says, whose value is v; part names the place in a
// message of several. Its errors are faults, or those of each.
type reader func(c *changes, rec Record, v node, each func(part string, s said) error) error

// Decode implements Decoder.
func (d *events) Decode(rec Record) ([]store.Change, error) {
	if rec.size() > d.maxRecord {
		return nil, refuse(rec, reasonLarge)
	}
	v, err := d.document(rec)
	if err != nil {
		return nil, err
	}
	var all []store.Change
	err = d.read(&d.changes, rec, v, func(part string, s said) (err error) {
		if reason := d.bodied(&s); reason != "" {
			return refuse(rec, part+reason)
		}
		all, err = d.add(all, rec, s, part)
		return err
	})
	if f, is := errors.AsType[fault](err); is {
		return nil, refuse(rec, string(f))
	}
	return inOrder(all, false), err
}

// bodied looks at the resource that comes with a deletion, for it may say what is deleted, and
// must not say that it is another; and at a Bundle that nothing but itself calls a resource.
func (c *changes) bodied(s *said) (reason string) {
	if !s.delete {
		return c.requests(s.key, s.body)
	}
	n, err := c.nodes(s.body)
	if err != nil || !n.isObject() {
		return "" // nothing, or what the source has left of it
	}
	var at [2]node
	n.read(resourceMembers, at[:])
	key, err := fhir.ParseKey(string(at[0].text()) + "/" + string(at[1].text()))
	switch {
	case err != nil:
	case s.key == fhir.Key{}:
		s.key = key
	case s.key != key:
		return reasonOther
	}
	return ""
}

// requests tells of a Bundle whose entries are to be done, or were, that it is no resource: nobody keeps
// such a one, unless a key says so.
func (c *changes) requests(key fhir.Key, body []byte) (reason string) {
	if key != (fhir.Key{}) || !bytes.Contains(body, []byte(`Bundle`)) {
		return ""
	}
	n, err := c.nodes(body)
	if err != nil || string(n.member("resourceType").text()) != "Bundle" {
		return ""
	}
	switch string(n.member("type").text()) {
	case "transaction", "transaction-response", "batch", "batch-response", "history", "subscription-notification":
		return reasonRequest
	}
	return ""
}

// newHAPI is what HAPI's Subscriptions with a channel of type message, and Smile CDR's
// broker, write: a ResourceModifiedJsonMessage.
func newHAPI(o Options) Decoder { return newEvents(o, 2, readHAPI) }

var hapiMembers = []string{"operationType", "payloadId", "payloadVersion", "payload", "mediaType", "resourceId"}

func readHAPI(_ *changes, _ Record, v node, each func(part string, s said) error) error {
	if v.value == nil {
		return nil
	}
	var at [6]node
	var p [1]node
	once := v.read([]string{"payload"}, p[:])
	switch {
	case !p[0].isObject():
		return fault(reasonNoEvent)
	case !p[0].read(hapiMembers, at[:]) || !once:
		return fault(reasonTwice)
	}
	s := nothing
	switch string(at[0].text()) {
	case "CREATE", "UPDATE", "MANUALLY_TRIGGERED", "TRANSACTION":
	case "DELETE":
		s.delete = true
	default:
		return fault(reasonAction)
	}
	id := at[1].text()
	if id == nil {
		id = at[5].text() // up to 5.5
	}
	var ok bool
	if s.key, s.version, ok = named(id); !ok {
		return fault(reasonNoNamed)
	}
	if said := at[2].text(); said != nil {
		s.version = string(said)
	}
	s.body, s.lacks = at[3].embedded(), true
	if bytes.Contains(at[4].text(), []byte("xml")) || bytes.HasPrefix(s.body, []byte("<")) {
		return fault(reasonXML)
	}
	return each("", s)
}

// newLFH is what LinuxForHealth's FHIR server (before: IBM's) notifies of.
func newLFH(o Options) Decoder { return newEvents(o, 1, readLFH) }

var lfhMembers = []string{"operationType", "location", "lastUpdated", "resource"}

func readLFH(_ *changes, _ Record, v node, each func(part string, s said) error) error {
	var at [4]node
	switch once := v.read(lfhMembers, at[:]); {
	case v.value == nil:
		return nil
	case !once:
		return fault(reasonTwice)
	case at[0].value == nil || at[1].value == nil:
		return fault(reasonNoEvent)
	}
	s := nothing
	switch actionOf(at[0].text()) {
	case deletes:
		s.delete = true
	case unknownAction:
		return fault(reasonAction)
	}
	var ok bool
	if s.key, s.version, ok = named(at[1].text()); !ok {
		return fault(reasonNoNamed)
	}
	s.lastUpdated, s.body = instant(at[2].text()), at[3].embedded()
	return each("", s)
}

// newFirely is what Firely Server's PubSub writes: ResourcesChangedEvent, in MassTransit's
// envelope.
func newFirely(o Options) Decoder { return newEvents(o, 5, readFirely) }

var (
	firelyMembers    = []string{"changeType", "reference", "resource"}
	referenceMembers = []string{"resourceType", "resourceId", "version"}
)

func readFirely(_ *changes, _ Record, v node, each func(part string, s said) error) error {
	var outer [2]node
	var inner [1]node
	once := v.read([]string{"message", "headers"}, outer[:]) && outer[0].read([]string{"changes"}, inner[:])
	list, release := inner[0], outer[1].member("fhir-release").text()
	switch {
	case v.value == nil:
		return nil
	case !once:
		return fault(reasonTwice)
	case !list.isList():
		return fault(reasonNoEvent)
	case release != nil && string(release) != "R4":
		return fault(reasonRelease)
	}
	n := 0
	return list.each(func(change node) error {
		part := fmt.Sprintf("change %d: ", n)
		n++
		var at, ref [3]node
		if !change.read(firelyMembers, at[:]) || !at[1].read(referenceMembers, ref[:]) {
			return fault(part + reasonTwice)
		}
		s := nothing
		switch actionOf(at[0].text()) {
		case deletes:
			s.delete = true
		case unknownAction:
			return fault(part + reasonAction)
		}
		var err error
		if s.key, err = fhir.ParseKey(string(ref[0].text()) + "/" + string(ref[1].text())); err != nil {
			return fault(part + reasonNoNamed)
		}
		s.version, s.body = string(ref[2].text()), at[2].embedded()
		return each(part, s)
	})
}

// newOutbox is what Debezium's outbox event router writes of an outbox table: the key is
// the aggregate's id, Type/id or the id alone in a topic whose name ends with the type; the
// value a resource, as JSON or as a string of it; the header eventType says what was done, or
// a member beside the resource. Both may be framed: in Avro as strings, the value as a record
// whose payload is one, too.
func newOutbox(o Options) Decoder {
	return &outbox{events: newEvents(o, 2, readOutbox), codecs: codecs{schemas: o.Schemas}}
}

type outbox struct {
	events Decoder
	codecs codecs
}

// Decode implements Decoder.
func (d *outbox) Decode(rec Record) ([]store.Change, error) {
	said := rec
	var err error
	if said.Key, err = d.codecs.plain(rec.Key); err == nil {
		err = d.value(&said)
	}
	if f, is := errors.AsType[fault](err); is {
		return nil, refuse(rec, string(f))
	}
	if err != nil {
		return nil, err
	}
	return d.events.Decode(said)
}

// value reads a value that is framed. What a record says beside the payload counts as headers do.
func (d *outbox) value(rec *Record) (err error) {
	fields, _, _, err := d.codecs.read(rec.Value)
	if _, wraps := fields["payload"]; !wraps || err != nil {
		if err == nil {
			rec.Value, err = d.codecs.plain(rec.Value)
		}
		return err
	}
	cells, once := fields.cells(outboxColumns)
	if !once {
		return fault(reasonTwice)
	}
	if rec.Value = nil; cells[0].kind != absent {
		rec.Value = cells[0].text
	}
	rec.Headers = slices.Clip(rec.Headers)
	for i, name := range outboxColumns[1:] {
		if c := cells[i+1]; c.kind != absent {
			rec.Headers = append(rec.Headers, store.Header{Key: name, Value: c.text})
		}
	}
	return nil
}

// outboxID is the aggregate's id, which a JSON converter quotes, and wraps with
// schemas.enable.
func outboxID(c *changes, key []byte) string {
	if v, err := c.nodes(key); err == nil {
		if text := payload(v).text(); text != nil {
			return string(text)
		}
	}
	return string(key)
}

func readOutbox(c *changes, rec Record, v node, each func(part string, s said) error) error {
	h := headersOf(rec, outboxColumns[1:]...)
	s := nothing
	if len(rec.Key) > 0 {
		id := outboxID(c, rec.Key)
		var ok bool
		if s.key, _, ok = named(id); !ok {
			typ := rec.Topic[strings.LastIndexByte(rec.Topic, '.')+1:]
			if s.key, _, ok = named(typ + "/" + id); !ok {
				return fault(reasonNoNamed)
			}
		}
	}
	body, reason := unwrap(v, h)
	if reason != "" {
		return reason
	}
	s.version, s.lastUpdated, s.body = h["version"], instant(h["lastUpdated"]), body.embedded()
	if h["eventType"] == "" && actionOf(h[outboxType]) != unknownAction {
		h["eventType"] = h[outboxType]
	}
	switch does := actionOf(h["eventType"]); {
	case does == deletes:
		s.delete = true
	case does == unknownAction && h["eventType"] != "":
		return fault(reasonAction)
	case body.value == nil && h["eventType"] == "":
		return nil // a tombstone: what is deleted is told by an event
	}
	return each("", s)
}

// outboxSays are what is told of an event beside its resource: in headers, or in the message
// beside it, as table.fields.additional.placement wants it.
var outboxSays = []string{"eventType", "version", "lastUpdated"}

// outboxType is the column that says what was done, under its own name: what the router writes of type:header or
// type:envelope, without a name behind it. It counts where eventType is missing, if it is a word that is known:
// somebody else's type may say anything.
const outboxType = "type"

// outboxColumns are the event, and all that may stand beside it or in headers.
var outboxColumns = append([]string{"payload"}, append(outboxSays, outboxType)...)

// unwrap is the resource of an event: what schemas.enable wraps, and what stands beside other
// columns of the table; those are added to what headers say.
func unwrap(v node, says map[string]string) (body node, reason fault) {
	if v = payload(v); v.none() {
		return node{}, ""
	}
	var at [2]node
	once := v.read([]string{"resourceType", "payload"}, at[:])
	if !v.isObject() || at[0].value != nil {
		return v, ""
	}
	beside := make([]node, len(outboxSays))
	if !once || !v.read(outboxSays, beside) {
		return node{}, reasonTwice
	}
	told := false
	for i, name := range outboxSays {
		if text := beside[i].text(); text != nil {
			says[name], told = string(text), true
		}
	}
	if at[1].value == nil && !told {
		return v, "" // whatever it is
	}
	if text := v.member(outboxType).text(); text != nil {
		says[outboxType] = string(text)
	}
	return at[1], ""
}

// headersOf are some of a record's headers as text; of several of one name the last counts.
func headersOf(rec Record, names ...string) map[string]string {
	found := map[string]string{}
	for _, h := range rec.Headers {
		if slices.Contains(names, h.Key) {
			found[h.Key] = string(h.Value)
		}
	}
	return found
}

// newCloudEvents is CloudEvents 1.0 with a resource as data: structured (all of it is the
// value) or binary (attributes are headers that begin with ce_, the data is the value). The
// type says what was done, the subject to which resource, if the data does not.
func newCloudEvents(o Options) Decoder { return newEvents(o, 2, readCloudEvent) }

var (
	cloudMembers = []string{"specversion", "type", "subject", "time", "data", "data_base64"}
	azureMembers = []string{"resourceType", "resourceFhirId", "resourceVersionId"}
)

func readCloudEvent(c *changes, rec Record, v node, each func(part string, s said) error) error {
	h := headersOf(rec, "ce_specversion", "ce_type", "ce_subject", "ce_time")
	typ, subject, at, data := h["ce_type"], h["ce_subject"], h["ce_time"], v
	if h["ce_specversion"] == "" {
		var m [6]node
		switch once := v.read(cloudMembers, m[:]); {
		case v.value == nil:
			return nil
		case !once:
			return fault(reasonTwice)
		case m[0].value == nil:
			return fault(reasonNoEvent)
		case m[4].value != nil && m[5].value != nil:
			return fault(reasonTwoData)
		}
		typ, subject, at, data = string(m[1].text()), string(m[2].text()), string(m[3].text()), m[4]
		if m[5].value != nil {
			decoded, ok := base64Text(m[5].text())
			if !ok {
				return fault(reasonBase64)
			}
			var err error
			if data, err = c.nodes(decoded); err != nil {
				return fault("data_base64 " + err.Error())
			}
		}
	}
	s := nothing
	switch actionOf(typ) {
	case deletes:
		s.delete = true
	case unknownAction:
		return fault(reasonAction)
	}
	if key, versionID, ok := named(subject); ok {
		s.key, s.version = key, versionID
	}
	s.time, s.body = instant(at), data.embedded()
	if azure := data.member("resourceFhirId"); azure.value != nil { // tells ids alone
		var m [3]node
		data.read(azureMembers, m[:])
		key, err := fhir.ParseKey(string(m[0].text()) + "/" + string(m[1].text()))
		if err != nil {
			return fault(reasonNoNamed)
		}
		s.key, s.version, s.body = key, string(m[2].text()), nil
	}
	return each("", s)
}
