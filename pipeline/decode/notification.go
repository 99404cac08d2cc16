package decode

import (
	"fmt"
	"net/http"

	"tidemark/store"
	"tidemark/store/fhir"
)

// Why a notification is refused.
const (
	reasonNoNotice  = "value is not the notification of a Subscription: a Bundle whose first entry is its status"
	reasonEmptyNews = "notification tells of events, and has no resources (content is empty): have the Subscription send them whole, for the source is never asked"
	reasonIDOnly    = "notification without its resource (content is id-only): have the Subscription send it whole, for the source is never asked"
	reasonUntold    = "notification of a change whose resource it does not hold: have the Subscription send it whole, for the source is never asked"
	reasonEventType = "notification of an unknown type"
)

// notification are those of topic-based Subscriptions: of the backport to R4 (the status is
// a Parameters), of R4B and R5 (a SubscriptionStatus), and Aidbox's (an
// AidboxSubscriptionStatus). Handshakes and heartbeats say nothing of resources. What was
// only read to go along with an event (request GET) is no change; what an event is about is
// one, however it came into the Bundle, and what is not there is missing.
type notification struct{ changes }

func newNotification(o Options) Decoder {
	d := &notification{}
	d.prepare(o, entryDepth)
	return d
}

// Decode implements Decoder.
func (d *notification) Decode(rec Record) ([]store.Change, error) {
	b, err := d.bundle(rec)
	switch {
	case err != nil || b == nil:
		return nil, err
	case b.resourceType != "Bundle" || !b.notice():
		return nil, refuse(rec, reasonNoNotice)
	}
	return d.events(rec, b)
}

func (d *notification) events(rec Record, b *bundleValue) ([]store.Change, error) {
	var all []store.Change
	var st status
	n := 0
	err := b.entry.each(func(v node) (err error) {
		part := fmt.Sprintf("entry %d: ", n)
		if n++; n == 1 {
			var reason string
			if st, reason = readStatus(v.member("resource")); reason != "" {
				return refuse(rec, reason)
			}
			return nil
		}
		e, reason := readEntry(v)
		if reason != "" {
			return refuse(rec, part+reason)
		}
		s, changes, reason := st.says(&e)
		switch {
		case reason != "":
			return refuse(rec, part+reason)
		case !changes:
			return nil
		}
		delete(st.untold, s.key)
		all, err = d.add(all, rec, s, part)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case n == 0:
		return nil, refuse(rec, reasonNoNotice)
	case st.tells && n == 1:
		return nil, refuse(rec, reasonEmptyNews)
	case st.tells && len(st.untold) > 0:
		return nil, refuse(rec, reasonUntold)
	}
	return inOrder(all, false), nil
}

// A status is what the first entry says.
type status struct {
	tells  bool // of events
	focus  map[fhir.Key]fhir.Instant
	untold map[fhir.Key]bool // those of focus that no entry has told of yet
}

// isStatus tells whether a resource is the status of a Subscription.
func isStatus(resource node) bool {
	switch string(resource.member("resourceType").text()) {
	case "SubscriptionStatus", "AidboxSubscriptionStatus":
		return true
	case "Parameters":
		return parameter(resource, "subscription").value != nil
	}
	return false
}

// parameter is the first of a name in Parameters, the zero node if there is none.
func parameter(parameters node, name string) (found node) {
	_ = parameters.member("parameter").each(func(p node) error {
		if found.value == nil && string(p.member("name").text()) == name {
			found = p
		}
		return nil
	})
	return found
}

func readStatus(r node) (st status, reason string) {
	st.focus, st.untold = map[fhir.Key]fhir.Instant{}, map[fhir.Key]bool{}
	note := func(reference, timestamp node) {
		if key, _, ok := named(reference.text()); ok {
			st.focus[key], st.untold[key] = instant(timestamp.text()), true
		}
	}
	kind := r.member("type")
	if string(r.member("resourceType").text()) == "Parameters" {
		kind = parameter(r, "type").member("valueCode")
		_ = r.member("parameter").each(func(p node) error {
			if string(p.member("name").text()) != "notification-event" {
				return nil
			}
			var focus, timestamp node
			_ = p.member("part").each(func(part node) error {
				switch string(part.member("name").text()) {
				case "focus":
					focus = part.at("valueReference", "reference")
				case "timestamp":
					timestamp = part.member("valueInstant")
				}
				return nil
			})
			note(focus, timestamp)
			return nil
		})
	} else {
		_ = r.member("notificationEvent").each(func(event node) error {
			note(event.at("focus", "reference"), event.member("timestamp"))
			return nil
		})
	}
	switch string(kind.text()) {
	case "event-notification", "query-event": // the second is what $events answers with
		st.tells = true
	case "handshake", "heartbeat", "query-status":
	default:
		return st, reasonEventType
	}
	return st, ""
}

// says is what an entry behind the status tells: what the events are about, and what was
// changed by a request. What has no request at all and is about no event goes along with
// one that is.
func (st *status) says(e *entry) (s said, changes bool, reason string) {
	s = nothing
	if !st.tells {
		return s, false, ""
	}
	key, _, known := named(e.fullURL.text())
	if !known {
		key, _, known = named(string(e.typ) + "/" + string(e.id))
	}
	at, focused := st.focus[key]
	switch string(e.method) {
	case http.MethodGet, http.MethodHead:
		if !focused {
			return s, false, ""
		}
	case http.MethodDelete:
		s.delete = true
		if !known {
			if key, _, reason = e.key(); reason != "" {
				return s, false, reason
			}
			at, focused = st.focus[key]
		}
	case http.MethodPut, http.MethodPost, http.MethodPatch:
	case "":
		if known && !focused && len(st.focus) > 0 {
			return s, false, ""
		}
	default:
		return s, false, reasonMethod
	}
	asked, _, names := named(e.url)
	switch {
	case names && known && asked != key:
		return s, false, reasonOther
	case !s.delete && e.resource.value == nil:
		return s, false, reasonIDOnly
	case known || s.delete:
		s.key = key
	}
	s.body, s.lacks = e.resource.value, len(e.id) == 0
	s.version, s.lastUpdated = etag(e.etag), instant(e.modified)
	if focused {
		s.time = at
	}
	return s, true, ""
}
