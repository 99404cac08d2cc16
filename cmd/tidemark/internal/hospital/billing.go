package hospital

const (
	adjudication = "http://terminology.hl7.org/CodeSystem/adjudication"
	claimType    = "http://terminology.hl7.org/CodeSystem/claim-type"
)

// bill writes what Claim and ExplanationOfBenefit share.
func (p *page) bill(r *resource, status string) {
	kind := code{"professional", "Professional"}
	if r.visit.class != ambulatory {
		kind = code{"institutional", "Institutional"}
	}
	p.add(`,"status":"`, status, `"`)
	p.concept("type", claimType, kind)
	p.add(`,"use":"claim"`)
	p.ref("patient", person, r.who.serial)
	p.add(`,"billablePeriod":`)
	p.period(r.visit.start, r.visit.start+hour)
	p.add(`,"created":"`)
	p.instant(r.born)
	p.add(`"`)
	p.ref("insurer", organization, r.who.payer)
	p.ref("provider", organization, 1)
}

func (p *page) diagnosis(r *resource) {
	p.add(`,"careTeam":[{"sequence":1`)
	p.ref("provider", practitioner, r.visit.doctor)
	p.add(`,"role":{"coding":[`)
	p.coding("http://terminology.hl7.org/CodeSystem/claimcareteamrole", code{"primary", "Primary provider"})
	p.add(`]}}],"diagnosis":[{"sequence":1`)
	p.concept("diagnosisCodeableConcept", icd10, problems[r.visit.problem].icd)
	p.add(`}]`)
}

func (p *page) insurance(r *resource, sequence bool) {
	p.add(`,"insurance":[{`)
	if sequence {
		p.add(`"sequence":1,`)
	}
	p.add(`"focal":true`)
	p.ref("coverage", coverage, r.who.cover)
	p.add(`}]`)
}

// items yields what is billed: the visit, and each panel of tests.
func (v *visit) items(yield func(system string, c code, cents int64)) {
	yield(snomed, reasons[v.class], v.cents)
	for i, first := range v.first {
		if first != 0 {
			yield(loinc, tests[i].code, priceOf(i))
		}
	}
}

func priceOf(panel int) int64 { return 1_200 + int64(len(tests[panel].results))*350 }

// total is what a bill amounts to; each correction finds another dollar.
func (r *resource) total() (cents int64) {
	r.visit.items(func(_ string, _ code, c int64) { cents += c })
	return cents + r.edits*100
}

func (p *page) claim(r *resource) {
	p.bill(r, "active")
	p.concept("priority", "http://terminology.hl7.org/CodeSystem/processpriority", code{"normal", "Normal"})
	p.diagnosis(r)
	p.insurance(r, true)
	p.add(`,"item":[`)
	n := int64(0)
	r.visit.items(func(system string, c code, cents int64) {
		p.item(r, &n, system, c)
		p.money("unitPrice", cents)
		p.money("net", cents)
		p.add(`,"encounter":[`)
		p.target(encounter, r.visit.serial)
		p.add(`]}`)
	})
	p.add(`]`)
	p.money("total", r.total())
}

// item begins an item of a bill.
func (p *page) item(r *resource, n *int64, system string, c code) {
	if *n++; *n > 1 {
		p.add(`,`)
	}
	p.add(`{"sequence":`)
	p.number(*n)
	p.add(`,"diagnosisSequence":[1]`)
	p.concept("productOrService", system, c)
	p.add(`,"servicedDate":"`)
	p.date(r.visit.start)
	p.add(`","quantity":{"value":1}`)
}

// benefit writes the payer's answer: it pays four fifths of what is left after
// a copayment.
func (p *page) benefit(r *resource) {
	p.bill(r, [...]string{"active", "cancelled", "cancelled"}[r.state])
	p.ref("claim", claim, r.other)
	p.add(`,"outcome":"complete","disposition":"Settled according to plan"`)
	p.diagnosis(r)
	p.insurance(r, false)
	p.add(`,"item":[`)
	n, paid := int64(0), int64(0)
	r.visit.items(func(system string, c code, cents int64) {
		p.item(r, &n, system, c)
		copay := min(cents, 2_000)
		pays := (cents - copay) * 4 / 5
		paid += pays
		p.money("net", cents)
		p.add(`,"encounter":[`)
		p.target(encounter, r.visit.serial)
		p.add(`],"adjudication":[`)
		p.adjudicated(code{code: "submitted"}, cents)
		p.add(`,`)
		p.adjudicated(code{code: "copay"}, copay)
		p.add(`,`)
		p.adjudicated(code{code: "benefit"}, pays)
		p.add(`]}`)
	})
	p.add(`],"total":[`)
	p.adjudicated(code{code: "submitted"}, r.total())
	p.add(`,`)
	p.adjudicated(code{code: "benefit"}, paid)
	p.add(`],"payment":{"type":{"coding":[`)
	p.coding("http://terminology.hl7.org/CodeSystem/ex-paymenttype", code{"complete", "Complete"})
	p.add(`]},"date":"`)
	p.date(r.born + 3*day)
	p.add(`"`)
	p.money("amount", paid)
	p.add(`}`)
}

func (p *page) adjudicated(c code, cents int64) {
	p.add(`{"category":{"coding":[`)
	p.coding(adjudication, c)
	p.add(`]}`)
	p.money("amount", cents)
	p.add(`}`)
}
