package hospital

import "fmt"

func (p *page) organization(r *resource) {
	house := &houses[r.serial-1]
	p.add(`,"identifier":[{"system":"https://ebbandflood.example/organizations","value":"ORG-`)
	p.number(int64(r.serial))
	p.add(`"}],"active":true`)
	p.concepts("type", "http://terminology.hl7.org/CodeSystem/organization-type", code{house.kind, house.display})
	p.add(`,"name":"`, house.name, `","telecom":[{"system":"phone","value":"+1-555-010`)
	p.number(int64(r.serial))
	p.add(`","use":"work"}]`)
	p.address(mix(r.serial), 0, "work")
}

func (p *page) location(r *resource) {
	p.add(`,"status":"active","name":"`, wards[r.serial-1], `","mode":"instance"`)
	p.ref("managingOrganization", organization, 1)
}

func (p *page) practitioner(r *resource) {
	p.add(`,"identifier":[{"system":"https://ebbandflood.example/staff","value":"S-`)
	p.padded(r.serial, 5)
	p.add(`"}],"active":true`)
	p.name(r.salt, r.salt&1 == 0, true)
	p.add(`,"gender":"`, gender(r.salt&1 == 0), `"`)
}

// patient writes a patient who moves, and gets another telephone, with each
// edit.
func (p *page) patient(r *resource) {
	who := r.who
	p.add(`,"identifier":[{"use":"usual","type":{"coding":[`)
	p.coding("http://terminology.hl7.org/CodeSystem/v2-0203", code{"MR", "Medical record number"})
	p.add(`]},"system":"https://ebbandflood.example/mrn","value":"MRN-`)
	p.padded(who.serial, 8)
	p.add(`","assigner":{"reference":"Organization/`)
	p.id(organization, 1)
	p.add(`"}}],"active":true`)
	p.name(who.salt, who.female, false)
	phone := mix(who.salt + uint64(r.edits))
	p.add(`,"telecom":[{"system":"phone","value":"+1-555-01`)
	p.padded(phone%100, 2)
	p.add(`","use":"mobile"},{"system":"email","value":"patient`)
	p.number(int64(who.serial))
	p.add(`@mail.example","use":"home"}],"gender":"`, gender(who.female), `","birthDate":"`)
	p.date(who.born)
	p.add(`"`)
	p.address(phone, r.edits, "home")
	p.concept("maritalStatus", "http://terminology.hl7.org/CodeSystem/v3-MaritalStatus", marital[who.salt>>8%uint64(len(marital))])
	p.add(`,"communication":[{"language":{"coding":[`)
	p.coding("urn:ietf:bcp:47", code{"en-US", "English (United States)"})
	p.add(`]},"preferred":true}],"generalPractitioner":[`)
	p.target(practitioner, who.doctor)
	p.add(`]`)
	p.ref("managingOrganization", organization, 1)
}

var marital = []code{{"M", "Married"}, {"S", "Never Married"}, {"D", "Divorced"}, {"W", "Widowed"}}

func gender(female bool) string {
	if female {
		return "female"
	}
	return "male"
}

func (p *page) name(salt uint64, female, doctor bool) {
	given := men
	if female {
		given = women
	}
	p.add(`,"name":[{"use":"official","family":"`, families[salt>>16%uint64(len(families))], `","given":["`)
	p.add(given[salt>>24%uint64(len(given))], `","`, given[salt>>32%uint64(len(given))], `"]`)
	if doctor {
		p.add(`,"prefix":["Dr."]`)
	}
	p.add(`}]`)
}

func (p *page) address(salt uint64, moves int64, use string) {
	p.add(`,"address":[{"use":"`, use, `","line":["`)
	p.number(int64(1 + salt>>8%180))
	p.add(` `, streets[salt>>16%uint64(len(streets))], `"],"city":"`, towns[(salt>>24+uint64(moves))%uint64(len(towns))])
	p.add(`","state":"MA","postalCode":"0`)
	p.padded(1000+salt>>32%1800, 4)
	p.add(`","country":"US"}]`)
}

func (p *page) padded(n uint64, digits int) { p.b = fmt.Appendf(p.b, "%0*d", digits, n) }

// coverage is renewed every year, and each renewal is an edit.
func (p *page) coverage(r *resource) {
	who := r.who
	p.add(`,"identifier":[{"system":"https://ebbandflood.example/policies","value":"POL-`)
	p.padded(r.salt%1e9, 9)
	p.add(`"}],"status":"active"`)
	p.concept("type", actCode, code{"EHCPOL", "extended healthcare"})
	p.ref("policyHolder", person, who.serial)
	p.ref("subscriber", person, who.serial)
	p.add(`,"subscriberId":"M`)
	p.padded(who.serial, 8)
	p.add(`"`)
	p.ref("beneficiary", person, who.serial)
	p.concept("relationship", "http://terminology.hl7.org/CodeSystem/subscriber-relationship", code{"self", "Self"})
	p.add(`,"period":`)
	p.period(r.born+r.edits*365*day, r.born+(r.edits+1)*365*day)
	p.add(`,"payor":[`)
	p.target(organization, who.payer)
	p.add(`],"class":[{"type":{"coding":[`)
	p.coding("http://terminology.hl7.org/CodeSystem/coverage-class", code{"plan", "Plan"})
	p.add(`]},"value":"`, houses[who.payer-1].name, ` standard"}]`)
}
