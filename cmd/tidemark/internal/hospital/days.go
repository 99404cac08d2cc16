package hospital

const (
	second = int64(1000)
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
)

// kind is a resource type, Observation split into what the ward measures and
// what the laboratory finds.
type kind uint8

const (
	organization kind = iota
	location
	practitioner
	person // Patient
	coverage
	encounter
	vital
	lab
	report
	condition
	medication
	claim
	benefit // ExplanationOfBenefit
	group
	provenance
	kinds
)

func (k kind) typeName() string {
	return [kinds]string{
		"Organization", "Location", "Practitioner", "Patient", "Coverage", "Encounter", "Observation", "Observation",
		"DiagnosticReport", "Condition", "MedicationRequest", "Claim", "ExplanationOfBenefit", "Group", "Provenance",
	}[k]
}

// deletable kinds are those that nothing refers to: deleting them leaves no
// reference without a target.
func (k kind) deletable() bool {
	return k == vital || k == medication || k == benefit || k == provenance
}

// editable kinds have something that people correct.
func (k kind) editable() bool {
	return k != organization && k != location && k != practitioner && k != coverage && k != group && k != provenance
}

// A resource is what must be remembered to write its next version: bodies are
// made from it alone.
type resource struct {
	kind    kind
	state   state
	bare    bare
	deleted bool
	item    uint16 // which vital, test, panel of tests, problem, drug
	serial  uint64 // with the kind it gives the id
	salt    uint64 // what is random about it
	version int64
	edits   int64
	born    int64 // its clinical time
	changed int64 // its lastUpdated
	who     *patient
	visit   *visit
	panel   *panel
	other   uint64 // serial of what it refers to, by kind
}

// state is a step of a resource's life; what it means depends on the kind.
type state uint8

const (
	begun    state = iota // preliminary, in-progress, active
	done                  // final, finished, completed, resolved, cancelled
	withdraw              // stopped
)

// bare tells what of meta.versionId and meta.lastUpdated the source writes.
type bare uint8

const (
	full     bare = iota
	noMeta        // no meta at all
	onlyMeta      // a meta without the two
)

type patient struct {
	serial     uint64
	salt       uint64
	female     bool
	born       int64 // ms since the epoch
	registered int64 // 0: not yet
	doctor     uint64
	payer      uint64
	cover      uint64
	problems   []known // chronic ones
}

// known is a problem of a patient with the Condition that records it.
type known struct {
	problem   uint16
	condition uint64
}

type visit struct {
	serial  uint64 // of the Encounter
	start   int64
	class   uint8
	problem uint16
	doctor  uint64
	place   uint64
	found   uint64    // serial of the Condition
	first   [5]uint64 // serial of the first result of each panel, 0 if not ordered
	cents   int64
}

// A panel is a Group: patients whom somebody watches.
type panel struct {
	res     *resource
	title   int
	members []member
}

type member struct {
	who      uint64
	since    int64
	until    int64 // 0: still in
	inactive bool
}

// change returns the next record; false if a plan led to none.
func (h *Hospital) change(now int64, live bool) (Record, bool) {
	if len(h.queue) > 0 {
		rec := h.queue[0]
		h.queue = h.queue[1:]
		return rec, true
	}
	if rec, ok := h.mishap(now, live); ok {
		return rec, true
	}
	e := h.calendar.pop()
	switch e.what {
	case toVisit:
		h.receive(e.who, e.due, h.clinical(e.due, now, live))
	case toMeet:
		h.calendar.add(event{due: e.due + h.between(15*day, 60*day), what: toMeet, of: e.of})
		return h.meet(e.of, now)
	case toCreate:
		return h.appear(e, now, live)
	case toStep:
		return h.advance(e, now, live)
	}
	return Record{}, false
}

// clinical is when something happens at the bedside: as planned during the
// history, now in fast motion.
func (h *Hospital) clinical(due, now int64, live bool) int64 {
	if live {
		return now
	}
	return due
}

func (h *Hospital) appear(e event, now int64, live bool) (Record, bool) {
	r := e.res
	at := h.moment(r, now, live)
	r.born = at
	if r.kind == person {
		r.who.registered = at
	}
	h.open.put(r)
	h.plan(r, e.due)
	return h.write(r, Create, at, now), true
}

// advance takes the next step of a resource, if it is still there. Two changes
// in one millisecond would look alike to those who have no version.
func (h *Hospital) advance(e event, now int64, live bool) (Record, bool) {
	r := e.res
	if r.deleted {
		return Record{}, false
	}
	if r.changed >= now {
		e.due += hour
		h.calendar.add(e)
		return Record{}, false
	}
	h.step(r, e.due)
	return h.write(r, Update, h.moment(r, now, live), now), true
}

// moment is the lastUpdated of the next version: mostly now, seconds ago for
// one that comes late.
func (h *Hospital) moment(r *resource, now int64, live bool) int64 {
	if !live || r.bare != full || h.rng.Float64() >= h.habits.Late {
		return now
	}
	return max(r.changed+1, now-h.between(3*second, 9*second))
}

// lateness is the delay from which a record counts as late.
const lateness = 1500

// plan puts the later steps of a new resource into the calendar.
func (h *Hospital) plan(r *resource, due int64) {
	in := func(least, most int64) {
		h.calendar.add(event{due: due + h.between(least, most), what: toStep, res: r})
	}
	switch {
	case r.kind == encounter && r.visit.class == inpatient:
		in(day, 6*day)
	case r.kind == encounter:
		in(20*minute, 50*minute)
	case r.kind == lab && r.state == begun:
		in(2*hour, 30*hour)
	case r.kind == medication && h.chance(0.4):
		in(7*day, 120*day)
	case r.kind == condition && !problems[r.item].chronic && h.chance(0.7):
		in(7*day, 60*day)
	case r.kind == benefit && h.chance(0.02):
		in(20*day, 40*day)
	case r.kind == coverage:
		in(365*day, 365*day)
	case r.kind == person:
		in(30*day, 700*day)
	}
}

// step changes a resource as its kind does in the course of time.
func (h *Hospital) step(r *resource, due int64) {
	switch r.kind {
	case coverage, person:
		r.edits++
		h.plan(r, due)
	case medication:
		r.state = done
		if h.chance(0.25) {
			r.state = withdraw
		}
	case benefit: // cancelled, and replaced by another one
		r.state = done
		again := *r
		again.serial = h.serial(benefit)
		again.salt = h.rng.Uint64()
		again.state, again.version, again.edits, again.changed = begun, 0, 0, 0
		h.calendar.add(event{due: due + minute, what: toCreate, res: &again})
	default:
		r.state = done
	}
}

// write makes the record of a resource's next version.
func (h *Hospital) write(r *resource, op Op, at, now int64) Record {
	r.version++
	r.changed = at
	rec := h.record(r, now)
	rec.Value = h.body(r)
	rec.Op = op
	rec.Late = now-at >= lateness
	h.recent.put(sent{rec: rec, of: r, version: r.version})
	return rec
}

// between returns a random number from least to most.
func (h *Hospital) between(least, most int64) int64 {
	return least + h.rng.Int64N(most-least+1)
}

func (h *Hospital) chance(p float64) bool { return h.rng.Float64() < p }

func (h *Hospital) serial(k kind) uint64 {
	h.serials[k]++
	return h.serials[k]
}

func (h *Hospital) make(k kind, who *patient, v *visit) *resource {
	r := &resource{kind: k, serial: h.serial(k), salt: h.rng.Uint64(), who: who, visit: v}
	r.bare = h.bareness(r.salt)
	return r
}

func (h *Hospital) bareness(salt uint64) bare {
	if float64(mix(salt)>>11)/(1<<53) >= h.opts.Bare {
		return full
	}
	return noMeta + bare(salt&1)
}

// mix is splitmix64's finaliser: it turns a counter into something random.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
