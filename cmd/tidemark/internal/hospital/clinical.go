package hospital

// fill writes the elements of a resource's type.
func (p *page) fill(r *resource) {
	switch r.kind {
	case organization:
		p.organization(r)
	case location:
		p.location(r)
	case practitioner:
		p.practitioner(r)
	case person:
		p.patient(r)
	case coverage:
		p.coverage(r)
	case encounter:
		p.encounter(r)
	case vital:
		p.vital(r)
	case lab:
		p.lab(r)
	case report:
		p.report(r)
	case condition:
		p.condition(r)
	case medication:
		p.medication(r)
	case claim:
		p.claim(r)
	case benefit:
		p.benefit(r)
	case group:
		p.group(r)
	case provenance:
		p.provenance(r)
	}
}

const (
	observationCategory = "http://terminology.hl7.org/CodeSystem/observation-category"
	participationType   = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
	interpretation      = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
)

func (p *page) encounter(r *resource) {
	v := r.visit
	status, end := "in-progress", int64(0)
	if r.state == done {
		status, end = "finished", max(r.changed, v.start+minute)
	}
	p.add(`,"status":"`, status, `","class":`)
	p.coding(actCode, classes[v.class])
	p.concepts("type", snomed, reasons[v.class])
	if r.edits > 0 {
		p.concept("priority", "http://terminology.hl7.org/CodeSystem/v3-ActPriority", urgency[r.edits%3])
	}
	p.ref("subject", person, r.who.serial)
	p.add(`,"participant":[{"type":[{"coding":[`)
	p.coding(participationType, code{"PPRF", "primary performer"})
	p.add(`]}]`)
	p.ref("individual", practitioner, v.doctor)
	p.add(`}],"period":`)
	p.period(v.start, end)
	p.concepts("reasonCode", snomed, problems[v.problem].code)
	if v.class == inpatient && r.state == done {
		p.add(`,"hospitalization":{"dischargeDisposition":{"coding":[`)
		p.coding("http://terminology.hl7.org/CodeSystem/discharge-disposition", code{"home", "Home"})
		p.add(`]}}`)
	}
	p.add(`,"location":[{"location":{"reference":"Location/`)
	p.id(location, v.place)
	p.add(`"}}]`)
	p.ref("serviceProvider", organization, 1)
}

var urgency = [3]code{{"R", "routine"}, {"UR", "urgent"}, {"EL", "elective"}}

// observation writes what vitals and laboratory results share.
func (p *page) observation(r *resource, category, c code) {
	status := "final"
	switch {
	case r.state == begun:
		status = "preliminary"
	case r.edits > 0:
		status = "amended"
	}
	p.add(`,"status":"`, status, `","category":[{"coding":[`)
	p.coding(observationCategory, category)
	p.add(`]}]`)
	p.concept("code", loinc, c)
	p.ref("subject", person, r.who.serial)
	p.ref("encounter", encounter, r.visit.serial)
	p.add(`,"effectiveDateTime":"`)
	p.instant(r.born)
	p.add(`"`)
}

func (p *page) vital(r *resource) {
	a := &vitals[r.item]
	p.observation(r, code{code: "vital-signs"}, a.code)
	x := r.chance()
	switch {
	case a.pressure:
		p.add(`,"component":[{"code":{"coding":[`)
		p.coding(loinc, code{"8480-6", "Systolic blood pressure"})
		p.add(`]}`)
		p.quantity(&analyte{unit: "mmHg", ucum: "mm[Hg]"}, 100+60*x)
		p.add(`},{"code":{"coding":[`)
		p.coding(loinc, code{"8462-4", "Diastolic blood pressure"})
		p.add(`]}`)
		p.quantity(&analyte{unit: "mmHg", ucum: "mm[Hg]"}, 60+35*x)
		p.add(`}]`)
	case a.pain:
		p.quantity(&analyte{unit: "{score}", ucum: "{score}"}, 10*x*x*x)
	default:
		p.quantity(a, a.least+(a.most-a.least)*x)
	}
}

// lab writes a result; one in nine lies outside of the reference range.
func (p *page) lab(r *resource) {
	a := &tests[r.other].results[r.item]
	p.observation(r, code{code: "laboratory"}, a.code)
	p.add(`,"issued":"`)
	p.instant(r.changed)
	p.add(`","performer":[`)
	p.target(organization, 1)
	p.add(`]`)
	x := r.chance()*1.12 - 0.06
	p.quantity(a, a.least+(a.most-a.least)*x)
	switch {
	case x < 0:
		p.concepts("interpretation", interpretation, code{"L", "Low"})
	case x > 1:
		p.concepts("interpretation", interpretation, code{"H", "High"})
	}
	p.add(`,"referenceRange":[{"low":{"value":`)
	p.decimal(a.least, a.decimals)
	p.add(`,"unit":"`, a.unit, `"},"high":{"value":`)
	p.decimal(a.most, a.decimals)
	p.add(`,"unit":"`, a.unit, `"}}]`)
}

func (p *page) quantity(a *analyte, x float64) {
	p.add(`,"valueQuantity":`)
	p.value(a, x)
}

func (p *page) value(a *analyte, x float64) {
	p.add(`{"value":`)
	p.decimal(x, a.decimals)
	p.add(`,"unit":"`, a.unit, `","system":"`, ucum, `","code":"`, a.ucum, `"}`)
}

// chance is a number in [0, 1) that stays with a resource until it is edited.
func (r *resource) chance() float64 {
	return float64(mix(r.salt+uint64(r.edits))>>11) / (1 << 53)
}

func (p *page) report(r *resource) {
	t := &tests[r.item]
	status := "final"
	if r.edits > 0 {
		status = "corrected"
	}
	p.add(`,"status":"`, status, `","category":[{"coding":[`)
	p.coding("http://terminology.hl7.org/CodeSystem/v2-0074", code{"LAB", "Laboratory"})
	p.add(`]}]`)
	p.concept("code", loinc, t.code)
	p.ref("subject", person, r.who.serial)
	p.ref("encounter", encounter, r.visit.serial)
	p.add(`,"effectiveDateTime":"`)
	p.instant(r.visit.start)
	p.add(`","issued":"`)
	p.instant(r.changed)
	p.add(`","performer":[`)
	p.target(organization, 1)
	p.add(`],"result":[`)
	p.results(r.visit, int(r.item))
	p.add(`]`)
}

// results writes references to the results of a panel, separated by commas.
func (p *page) results(v *visit, panel int) {
	for j := range tests[panel].results {
		if j > 0 {
			p.add(`,`)
		}
		p.target(lab, v.first[panel]+uint64(j))
	}
}

func (p *page) condition(r *resource) {
	c := &problems[r.item]
	status := code{"active", "Active"}
	if r.state == done {
		status = code{"resolved", "Resolved"}
	}
	p.concept("clinicalStatus", "http://terminology.hl7.org/CodeSystem/condition-clinical", status)
	verified := code{"confirmed", "Confirmed"}
	if r.edits%2 == 1 {
		verified = code{"provisional", "Provisional"}
	}
	p.concept("verificationStatus", "http://terminology.hl7.org/CodeSystem/condition-ver-status", verified)
	p.concepts("category", "http://terminology.hl7.org/CodeSystem/condition-category", code{"encounter-diagnosis", "Encounter Diagnosis"})
	p.add(`,"code":{"coding":[`)
	p.coding(snomed, c.code)
	p.add(`,`)
	p.coding(icd10, c.icd)
	p.add(`],"text":"`, c.display, `"}`)
	p.ref("subject", person, r.who.serial)
	p.ref("encounter", encounter, r.visit.serial)
	p.add(`,"onsetDateTime":"`)
	p.date(r.visit.start - int64(r.salt%9)*day)
	if r.state == done {
		p.add(`","abatementDateTime":"`)
		p.date(max(r.changed, r.visit.start))
	}
	p.add(`","recordedDate":"`)
	p.instant(r.born)
	p.add(`"`)
	p.ref("recorder", practitioner, r.visit.doctor)
}

func (p *page) medication(r *resource) {
	d := &drugs[r.item]
	p.add(`,"status":"`, [...]string{"active", "completed", "stopped"}[r.state], `","intent":"order"`)
	p.concept("medicationCodeableConcept", rxnorm, d.code)
	p.ref("subject", person, r.who.serial)
	p.ref("encounter", encounter, r.visit.serial)
	p.add(`,"authoredOn":"`)
	p.instant(r.born)
	p.add(`"`)
	p.ref("requester", practitioner, r.visit.doctor)
	if r.other != 0 {
		p.add(`,"reasonReference":[`)
		p.target(condition, r.other)
		p.add(`]`)
	}
	p.add(`,"dosageInstruction":[{"sequence":1,"text":"`, d.dose, `"}],"dispenseRequest":{"numberOfRepeatsAllowed":`)
	p.number(int64(mix(r.salt+uint64(r.edits)) % 6))
	p.add(`,"quantity":{"value":30,"unit":"doses"}`)
	p.add(`,"expectedSupplyDuration":{"value":30,"unit":"days","system":"`, ucum, `","code":"d"}}`)
}

func (p *page) provenance(r *resource) {
	v := r.visit
	p.add(`,"target":[`)
	p.target(encounter, v.serial)
	for i, first := range v.first {
		if first != 0 {
			p.add(`,`)
			p.results(v, i)
		}
	}
	p.add(`],"recorded":"`)
	p.instant(r.changed)
	p.add(`"`)
	p.concept("activity", "http://terminology.hl7.org/CodeSystem/v3-DataOperation", code{"CREATE", "create"})
	p.add(`,"agent":[{"type":{"coding":[`)
	p.coding("http://terminology.hl7.org/CodeSystem/provenance-participant-type", code{"author", "Author"})
	p.add(`]}`)
	p.ref("who", practitioner, v.doctor)
	p.ref("onBehalfOf", organization, 1)
	p.add(`}]`)
}

func (p *page) group(r *resource) {
	g := r.panel
	p.add(`,"identifier":[{"system":"https://ebbandflood.example/panels","value":"P`)
	p.number(int64(g.title) + 1)
	p.add(`"}],"active":true,"type":"person","actual":true,"name":"`, titles[g.title%len(titles)], ` `)
	p.number(int64(g.title)/int64(len(titles)) + 1)
	p.add(`"`)
	p.ref("managingEntity", practitioner, r.other)
	if len(g.members) == 0 {
		return
	}
	p.add(`,"quantity":`)
	p.number(int64(len(g.members)))
	p.add(`,"member":[`)
	for i, m := range g.members {
		if i > 0 {
			p.add(`,`)
		}
		p.add(`{"entity":{"reference":"Patient/`)
		p.id(person, m.who)
		p.add(`"},"period":`)
		p.period(m.since, m.until)
		if m.inactive {
			p.add(`,"inactive":true`)
		}
		p.add(`}`)
	}
	p.add(`]`)
}
