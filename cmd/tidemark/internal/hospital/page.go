package hospital

import (
	"slices"
	"strconv"
	"time"
)

// A page is a JSON document being written, by appending: that is what makes
// the hospital fast. Every name and string that is not made here from a number
// is a constant of this package without anything to escape.
type page struct {
	b    []byte
	seed uint64 // of the ids
}

// body writes the newest version of a resource. Bodies lie one after another in
// large chunks, which live as long as somebody keeps a body of theirs.
func (h *Hospital) body(r *resource) []byte {
	const (
		chunk = 1 << 20
		large = 64 << 10 // more than a body takes
	)
	if cap(h.chunk)-len(h.chunk) < large {
		h.chunk = make([]byte, 0, chunk)
	}
	p := page{b: h.chunk[len(h.chunk):], seed: h.opts.Seed}
	p.open(r)
	p.fill(r)
	p.add("}")
	if n := len(p.b); len(h.chunk)+n <= cap(h.chunk) {
		h.chunk = h.chunk[:len(h.chunk)+n]
	}
	return slices.Clip(p.b)
}

// record addresses a record for a resource.
func (h *Hospital) record(r *resource, now int64) Record {
	key := make([]byte, 0, 56)
	key = append(key, r.kind.typeName()...)
	key = append(key, '/')
	key = appendID(key, h.opts.Seed, r.kind, r.serial)
	return Record{Key: key, Headers: headers(r.kind), Timestamp: time.UnixMilli(now).UTC(), Partition: h.partition(key)}
}

// partition is FNV-1a of the key.
func (h *Hospital) partition(key []byte) int32 {
	sum := uint32(2166136261)
	for _, c := range key {
		sum = (sum ^ uint32(c)) * 16777619
	}
	return int32(sum % uint32(h.opts.Partitions))
}

func headers(k kind) []Header {
	switch k {
	case claim, benefit, coverage:
		return fromBilling
	case lab, report:
		return fromLaboratory
	}
	return fromWard
}

var (
	fromBilling    = []Header{{Key: "source", Value: []byte("billing")}}
	fromLaboratory = []Header{{Key: "source", Value: []byte("laboratory")}}
	fromWard       = []Header{{Key: "source", Value: []byte("ward")}}
)

// open writes what all resources begin with. A source without meta says in an
// extension when it was edited, so no two of its versions are alike.
func (p *page) open(r *resource) {
	p.add(`{"resourceType":"`, r.kind.typeName(), `","id":"`)
	p.id(r.kind, r.serial)
	switch r.bare {
	case full:
		p.add(`","meta":{"versionId":"`)
		p.number(r.version)
		p.add(`","lastUpdated":"`)
		p.instant(r.changed)
		p.add(`"}`)
		return
	case noMeta:
		p.add(`"`)
	case onlyMeta:
		p.add(`","meta":{"source":"urn:ebbandflood:legacy"}`)
	}
	p.add(`,"extension":[{"url":"https://ebbandflood.example/fhir/StructureDefinition/edited","valueInstant":"`)
	p.instant(r.changed)
	p.add(`"}]`)
}

func (p *page) add(parts ...string) {
	for _, s := range parts {
		p.b = append(p.b, s...)
	}
}

func (p *page) number(n int64) { p.b = strconv.AppendInt(p.b, n, 10) }

func (p *page) decimal(f float64, decimals int) {
	p.b = strconv.AppendFloat(p.b, f, 'f', decimals, 64)
}

func (p *page) cents(n int64) { p.decimal(float64(n)/100, 2) }

func (p *page) money(name string, cents int64) {
	p.add(`,"`, name, `":{"value":`)
	p.cents(cents)
	p.add(`,"currency":"USD"}`)
}

func (p *page) instant(ms int64) {
	p.b = time.UnixMilli(ms).UTC().AppendFormat(p.b, "2006-01-02T15:04:05.000Z")
}

func (p *page) date(ms int64) { p.b = time.UnixMilli(ms).UTC().AppendFormat(p.b, time.DateOnly) }

func (p *page) period(from, to int64) {
	p.add(`{"start":"`)
	p.instant(from)
	if to != 0 {
		p.add(`","end":"`)
		p.instant(to)
	}
	p.add(`"}`)
}

func (p *page) coding(system string, c code) {
	p.add(`{"system":"`, system, `","code":"`, c.code, `"`)
	if c.display != "" {
		p.add(`,"display":"`, c.display, `"`)
	}
	p.add(`}`)
}

// concept writes ,"name":{CodeableConcept}.
func (p *page) concept(name, system string, c code) {
	p.add(`,"`, name, `":{"coding":[`)
	p.coding(system, c)
	p.add(`]}`)
}

// concepts writes ,"name":[{CodeableConcept}].
func (p *page) concepts(name, system string, c code) {
	p.add(`,"`, name, `":[{"coding":[`)
	p.coding(system, c)
	p.add(`]}]`)
}

// ref writes a Reference to a resource of the hospital.
func (p *page) ref(name string, k kind, serial uint64) {
	p.add(`,"`, name, `":`)
	p.target(k, serial)
}

func (p *page) target(k kind, serial uint64) {
	p.add(`{"reference":"`, k.typeName(), `/`)
	p.id(k, serial)
	p.add(`"}`)
}

func (p *page) id(k kind, serial uint64) { p.b = appendID(p.b, p.seed, k, serial) }
