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
		all, err = d.add(all, rec, s, part)
		return err
	})
	if f, is := errors.AsType[fault](err); is {
		return nil, refuse(rec, string(f))
	}
	return inOrder(all, false), err
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
	p := v.member("payload")
	switch {
	case !p.isObject():
		return fault(reasonNoEvent)
	case !p.read(hapiMembers, at[:]):
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
	list := v.at("message", "changes")
	release := v.at("headers", "fhir-release").text()
	switch {
	case v.value == nil:
		return nil
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
// value a resource, as JSON or as a string of it; the header eventType says what was done.
// Both may be framed, as strings in Avro.
func newOutbox(o Options) Decoder {
	return &outbox{events: newEvents(o, 1, readOutbox), codecs: codecs{schemas: o.Schemas}}
}

type outbox struct {
	events Decoder
	codecs codecs
}

// Decode implements Decoder.
func (d *outbox) Decode(rec Record) ([]store.Change, error) {
	said := rec
	for _, part := range []*[]byte{&said.Key, &said.Value} {
		text, err := d.codecs.plain(*part)
		if f, is := errors.AsType[fault](err); is {
			return nil, refuse(rec, string(f))
		}
		if err != nil {
			return nil, err
		}
		*part = text
	}
	return d.events.Decode(said)
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
	h := headersOf(rec, "eventType", "version", "lastUpdated")
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
	s.version, s.lastUpdated = h["version"], instant(h["lastUpdated"])
	if payload := v.member("payload"); payload.value != nil && v.member("resourceType").value == nil {
		v = payload // schemas.enable
	}
	s.body = v.embedded()
	switch does := actionOf(h["eventType"]); {
	case does == deletes:
		s.delete = true
	case does == unknownAction && h["eventType"] != "":
		return fault(reasonAction)
	case v.value == nil && h["eventType"] == "":
		return nil // a tombstone: what is deleted is told by an event
	}
	return each("", s)
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
	if s.delete && s.key == (fhir.Key{}) {
		s.key, _, _ = named(string(data.member("resourceType").text()) + "/" + string(data.member("id").text()))
	}
	return each("", s)
}
