package search

import (
	"strings"
	"testing"

	"tidemark/store/fhir"
)

func match(t *testing.T, query, body string) bool {
	t.Helper()
	q, err := Parse(query, Env{Bases: []string{"http://here/fhir"}, Now: 1767225600000}) // 2026-01-01
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	var s fhir.Scanner
	r, err := s.Scan([]byte(body))
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return New(q).Matcher().Match(r.Body)
}

// TestMatch names what a search must find (+) and must not (-) in one resource.
func TestMatch(t *testing.T) {
	for _, c := range []struct{ name, body, queries string }{
		{"token", `{"resourceType":"Observation","id":"a","status":"final","code":{"coding":[{"system":"http://loinc.org","code":"1-8"},{"system":"urn:x","code":"Y","display":"Blood gäs"}],"text":"Blood"},"category":[{"coding":[{"code":"none"}]}]}`, `
			+code=1-8 +code=http://loinc.org|1-8 -code=|1-8 +code=http://loinc.org| -code=urn:other|1-8 +code=y +code=urn:x|y
			-code=1 +code=9,1-8 -code=9&code=1-8 +code:not=9 -code:not=1-8 -code:not=9,1-8 +code:missing=false -code:missing=true
			+method:missing=true -method:missing=false +method:not=a +category=none +category=|none -category=x|none +code:text=bLOOD +code:text=blood%20gas -code:text=lood
			+status=final +status=http://hl7.org/fhir/observation-status|final -status=http://x|final -status=|final +status=FINAL
			+_id=a -_id=A +_id=b,a +combo-code=1-8 -component-code=1-8`},
		{"identifier and telecom", `{"resourceType":"Patient","id":"p","active":true,"deceasedBoolean":false,"gender":"male","identifier":[{"system":"urn:mrn","value":"7,8|9"},{"value":"plain","type":{"text":"Driver"}}],"telecom":[{"system":"phone","value":"555"},{"system":"email","value":"a@b"}],"generalPractitioner":[{"reference":"Practitioner/1"}]}`, `
			+identifier=7\,8\|9 +identifier=urn:mrn|7\,8\|9 -identifier=7 -identifier=9 +identifier=|plain -identifier=|7\,8\|9 +identifier:text=driv
			+phone=555 -email=555 +telecom=555 +telecom=phone|555 -telecom=email|555 +email=A@B +active=true -active=false -deceased=true +deceased:not=true
			+gender=male +gender:not=female +general-practitioner=1 +general-practitioner=Practitioner/1 -general-practitioner=Organization/1
			+general-practitioner:Practitioner=1 -general-practitioner:Organization=1 +general-practitioner=http://here/fhir/Practitioner/1 -general-practitioner=http://there/fhir/Practitioner/1`},
		{"text", `{"resourceType":"Patient","id":"p","name":[{"family":"Müller-Lüdenscheidt","given":["Ann\u0061","Léa"],"text":"x"}],"address":[{"line":["1 Main St"],"city":"Ulm"}],"birthDate":"1970-05","deceasedDateTime":"2020-02-03T04:05:06+01:00"}`, `
			+family=muller +family=MÜLLER -family=luden +family:contains=lude +family:exact=Müller-Lüdenscheidt -family:exact=müller-Lüdenscheidt +given=anna +given=lea +name=anna -name=bob +name=mull
			+address=1%20main +address=ulm -address=main +address-city=u +deceased=true
			+birthdate=1970 +birthdate=1970-05 -birthdate=1970-05-01 +birthdate=gt1970-05-01 +birthdate=lt1970-05-31 +birthdate=ge1970-05 -birthdate=sa1970-05-01 +birthdate=sa1970-04 +birthdate=eb1970-06 -birthdate=eb1970-05-30 +birthdate=ne1970-05-01 -birthdate=ne1970
			+death-date=2020-02-03 +death-date=2020-02-03T03:05 +death-date=2020-02-03T04:05:06%2B01:00 -death-date=2020-02-03T04:05 +death-date=2020-02-03T03:05:06Z +death-date=ap2020-06-01 -death-date=ap2023-06-01`},
		{"periods", `{"resourceType":"Encounter","id":"e","status":"finished","class":{"code":"AMB"},"period":{"start":"2025-03-01T10:00:00Z"},"subject":{"reference":"http://here/fhir/Patient/1/_history/2","identifier":{"system":"s","value":"v"}}}`, `
			+date=gt2030 +date=ge2025 -date=lt2025-03-01 +date=lt2025-03-02 -date=2025 +date=ne2025 -date=eb2099 +date=sa2024 +class=amb
			+patient=1 +subject=Patient/1 +subject:Patient=1 -subject:Group=1 +subject:identifier=s|v -subject:identifier=x|v +patient=Patient/1 -patient=2`},
		{"numbers", `{"resourceType":"Observation","id":"a","status":"final","code":{},"valueQuantity":{"value":5.35,"unit":"mg","system":"http://unitsofmeasure.org","code":"mg/dL"},"effectiveTiming":{"event":["2026-01-05","2026-01-09"]},"component":[{"code":{},"valueQuantity":{"value":90,"comparator":"<"}}]}`, `
			+value-quantity=5.4 -value-quantity=5.3 +value-quantity=5.35 -value-quantity=5.36 +value-quantity=gt5.3 -value-quantity=gt5.35 +value-quantity=ge5.35 +value-quantity=le5.35 -value-quantity=lt5.35 +value-quantity=ap5.5 -value-quantity=ap6
			+value-quantity=5.35|http://unitsofmeasure.org|mg/dL -value-quantity=5.35|http://unitsofmeasure.org|mg -value-quantity=5.35|http://x|mg/dL +value-quantity=5.35||mg +value-quantity=5.35||mg/dL -value-quantity=5.35||kg -value-quantity=ne5.35 +value-quantity=5.35||
			+component-value-quantity=lt90 -component-value-quantity=gt90 -component-value-quantity=90 +component-value-quantity=gt10
			+date=2026-01 -date=2026-01-05 +date=gt2026-01-08 +date=sa2026-01-04 -date=sa2026-01-05`},
		{"meta", `{"id":"a","meta":{"lastUpdated":"2026-01-01T00:00:00.5Z","tag":[{"system":"s","code":"t"}],"profile":["http://p|1.0"],"source":"urn:src#1"},"resourceType":"Basic","code":{"coding":[null,{"code":"\u0041"}]}}`, `
			+_lastUpdated=2026 -_lastUpdated=gt2026-01-01T00:00:00Z +_lastUpdated=gt2026-01-01T00:00:00.500Z -_lastUpdated=gt2026-01-01T00:00:00.600Z +_lastUpdated=ge2026-01-01T00:00:00Z +_tag=s|t +_profile=http://p +_profile=http://p|1.0 -_profile=http://p|2 -_profile=http +_source=urn:src%231 -_source=urn:src +code=a`},
		{"claims", `{"resourceType":"ExplanationOfBenefit","id":"x","billablePeriod":{"start":"2025-01-01","end":"2025-01-31"},"item":[{"servicedDate":"2025-06-01"},{"servicedPeriod":{"start":"2024-01-01","end":"2024-01-02"}}],"type":{"coding":[{"code":"pharmacy"}]}}`, `
			+service-date=2025-01 +service-date=2025-06-01 +service-date=eb2024-02 -service-date=gt2025-06-01 +service-start-date=2024-01-01 -service-start-date=2024-01-02 +type=pharmacy +type=pharmacy&service-date=ge2025-06-01 +billable-period-start=2025-01-01`},
		{"numbers that are long, round or below zero", `{"resourceType":"Observation","id":"a","status":"final","code":{},"valueQuantity":{"value":1234567890.123456789},"component":[{"code":{},"valueQuantity":{"value":-0.05}},{"code":{},"valueQuantity":{"value":100}},{"code":{},"valueQuantity":{"value":98765432109876543210}}]}`, `
			+value-quantity=1234567890.123456789 +value-quantity=1234567890.1235 -value-quantity=1234567890.1236 +value-quantity=1234567890.12346 -value-quantity=ne1234567890.123456789 +value-quantity=1.234567890123456789e9 +value-quantity=1e9 -value-quantity=2e9
			+component-value-quantity=-0.05 +component-value-quantity=-0.050 +component-value-quantity=-5e-2 -component-value-quantity=-0.04 -component-value-quantity=-0.1 -component-value-quantity=0.05 +component-value-quantity=lt-0.04 -component-value-quantity=lt-0.05 +component-value-quantity=ap-0.052
			+component-value-quantity=100.00 +component-value-quantity=1e2 +component-value-quantity=1.0e2 +component-value-quantity=1E%2B2 -component-value-quantity=99 -component-value-quantity=101 -component-value-quantity=0.99e2
			+component-value-quantity=98765432109876543210 +component-value-quantity=ne100 +component-value-quantity=0 +component-value-quantity=0.0 -component-value-quantity=0.00 -value-quantity=1e-99999999999999999999`},
		{"edges of rounding", `{"resourceType":"RiskAssessment","id":"a","prediction":[{"probabilityDecimal":5.45}]}`, `
			-probability=5.4 +probability=5.5 +probability=5.45 +probability=ne5.4 -probability=ne5.5 +probability=5 -probability=6 +probability=ge5.45 -probability=gt5.45 +probability=gt5.4499999 +probability=sa5.4 -probability=eb5.45`},
		{"money", `{"resourceType":"Invoice","id":"a","totalNet":{"value":40.22,"currency":"EUR"}}`, `
			+totalnet=40.22 +totalnet=40.22|urn:iso:std:iso:4217|EUR +totalnet=40.22||EUR -totalnet=40.22||USD -totalnet=40.22|http://unitsofmeasure.org|EUR +totalnet=gt40|urn:iso:std:iso:4217|`},
		{"ranges", `{"resourceType":"Condition","id":"a","onsetRange":{"low":{"value":10,"unit":"a"},"high":{"value":12,"unit":"a"}},"abatementRange":{"low":{"value":3}}}`, `
			-onset-age=11 +onset-age=gt11 +onset-age=lt11||a -onset-age=lt11||mo +onset-age=ap11 -onset-age=sa10 +onset-age=sa9 +onset-age=eb13 +abatement-age=gt99 -abatement-age=lt3 +onset-age=1e1 -onset-age=ne1e1`},
		{"references in other forms", `{"resourceType":"Observation","id":"a","contained":[{"resourceType":"Patient","id":"c","status":"final","subject":{"reference":"Patient/9"}}],"subject":{"reference":"Patient?identifier=http://sys/x|Device/1"},"specimen":{"reference":"#c"},"device":{"type":"Device","identifier":{"value":"5"}},"encounter":{"reference":"urn:uuid:0"},"focus":[{"reference":"http://there/fhir/Device/1/_history/1"},{"reference":"Device/7/_history/3"}]}`, `
			+patient:missing=false -patient=9 -patient=1 +device:missing=false -device=5 +device:identifier=5 -specimen=c +encounter=urn:uuid:0 -encounter=0 -status:missing=false -status=final -_id=c
			+focus=http://there/fhir/Device/1 -focus=Device/1 +focus:Device=http://there/fhir/Device/1 -focus:Group=http://there/fhir/Device/1 +focus=7 +focus=Device/7 -focus=Device/8`},
		{"canonicals", `{"resourceType":"QuestionnaireResponse","id":"a","questionnaire":"http://here/fhir/Questionnaire/q|2","status":"completed"}`, `
			+questionnaire=http://here/fhir/Questionnaire/q|2 +questionnaire=http://here/fhir/Questionnaire/q -questionnaire=http://here/fhir/Questionnaire/q|1 -questionnaire=http://here/fhir/Questionnaire -questionnaire=q`},
		{"escapes", `{"resourceType":"Patient","id":"a","identifier":[{"system":"urn:a|b","value":"1$2\\3"},{"system":"urn:only"},{"value":"x&y,z+1%"}],"name":[{"family":"O'Neil, Jr"},null,{"family":null,"given":[null,"\u0041\ud83d\ude00"],"_given":[{"extension":[{"url":"u","valueString":"hidden"}]},null]}],"\u0067ender":"female","telecom":[{"system":"phone","value":"+49 30"}],"_birthDate":{"extension":[{"url":"u","valueDate":"2001-01-01"}]}}`, `
			+identifier=urn:a\|b|1\$2\\3 +identifier=urn:a%5C%7Cb%7C1%5C$2%5C%5C3 -identifier=1\$2 +identifier=1$2\\3 +identifier=urn:only| +identifier=x%26y\,z+1%25 +identifier=x%26y%5C%2Cz%2B1%25 -identifier=x%26y%2Cz -identifier=x
			+family=o'neil\,%20jr +family=O'Neil%2CJr +family:exact=O'Neil\,%20Jr +given=a +given=a%F0%9F%98%80 -given=hidden -name=hidden +gender=female +phone=%2B49%2030 +phone=+49%2030 -phone=%2049%2030 -birthdate=2001 +birthdate:missing=true -birthdate:missing=false -birthdate=ne2001`},
		{"folding", `{"resourceType":"Patient","id":"a","name":[{"family":"Großmann","given":["ΟΔΥΣΣΕΥΣ","İpek"],"suffix":["ﬁl"]}],"address":[{"city":"Ålesund","line":["Cafe\u0301 1"]}]}`, `
			+family=grossmann +family=GROSSMANN +family=gros +family=großm +given=Οδυσσευς +given=ipek +name=fil +address-city=alesund +address=café +address=cafe%201 +address=CAFÉ%201 +address:contains=fe%201 -address:contains=cafe1 +family:contains=SSM -family:exact=Grossmann`},
		{"nobody is dead", `{"resourceType":"Patient","id":"a"}`, `+deceased=false -deceased=true -deceased:not=false +deceased:not=true +deceased:missing=true`},
		{"somebody is", `{"resourceType":"Patient","id":"a","deceasedDateTime":"2020"}`, `-deceased=false +deceased=true +deceased:not=false +death-date=2020`},
		{"twice", `{"resourceType":"Patient","id":"a","gender":"male","gender":"female","name":[{"family":"a","family":"b"}],"photo":[],"link":{}}`, `+gender=male +gender=female +family=a +family=b +link:missing=true`},
		{"periods that are none", `{"resourceType":"Encounter","id":"e","period":{"start":"soon","end":"2020"},"location":[{"location":{"reference":"Location/1"},"period":{"end":"2020-06"}},{"period":{}}]}`, `
			-date=lt2030 -date=gt1000 +location-period=lt1000 -location-period=gt2020-06 +location-period=le2020-06 -location-period=2020 +location-period=ne2020 +location-period=eb2020-07 -location-period=sa1000`},
		{"times and zones", `{"resourceType":"Observation","id":"a","effectiveDateTime":"2020-01-01T23:59:59.9999-14:00","meta":{"lastUpdated":"2020-02-29T12:00:00.000Z"}}`, `
			+date=2020-01-02 -date=2020-01-01 +date=2020-01-01T23:59-14:00 +date=2020-01-02T13:59:59.999Z -date=2020-01-02T14:00 +date=lt2020-01-02T14:00 +date=sa2020-01-01
			+_lastUpdated=2020-02-29 +_lastUpdated=ge2020-02-29T12:00:00Z +_lastUpdated=le2020-02-29T12:00:00.000+00:00 -_lastUpdated=gt2020-02-29T12:00 +_lastUpdated=2020-02-29T12:00%2B00:00 +_lastUpdated=2020-02-29T13:00:00%2B01:00 -_lastUpdated=ne2020`},
	} {
		_, rest, _ := strings.Cut(c.body, `"resourceType":"`)
		typ, _, _ := strings.Cut(rest, `"`)
		for q := range strings.FieldsSeq(c.queries) {
			want := q[0] == '+'
			if got := match(t, typ+"?"+q[1:], c.body); got != want {
				t.Errorf("%s: %s: got %t", c.name, q, got)
			}
		}
	}
}

func TestSeveral(t *testing.T) {
	env := Env{}
	parse := func(s string) *Query {
		q, err := Parse(s, env)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	m := New(parse("Patient?gender=male&active=true"), parse("Patient?gender:not=male")).Matcher()
	for body, want := range map[string]bool{
		`{"resourceType":"Patient","id":"1","gender":"male"}`:               false,
		`{"resourceType":"Patient","id":"2","gender":"male","active":true}`: true,
		`{"resourceType":"Patient","id":"3","gender":"female"}`:             true,
		`{"resourceType":"Patient","id":"4"}`:                               true,
	} {
		if got := m.Match([]byte(body)); got != want {
			t.Errorf("%s: %t", body, got)
		}
	}
}

func TestFaults(t *testing.T) {
	for query, want := range map[string]string{
		"Patient":                         "not of the form",
		"Patients?a=b":                    "not a resource type",
		"Patient?":                        "no parameter follows",
		"Patient?nope=1":                  "not a search parameter of Patient",
		"Patient?_sort=a":                 "cannot be part of a filter",
		"Patient?_has:Observation:code=1": "_has is not supported",
		"Patient?organization.name=x":     "chained",
		"Patient?organization:Organization.name=x":  "not supported",
		"Patient?gender:in=x":                       `":in" of the search parameter gender is not supported`,
		"Patient?gender:above=x":                    "not supported",
		"Patient?birthdate=01/02/2020":              "right is a date",
		"Patient?birthdate=gt2020-13":               "right is a date",
		"Patient?gender=":                           "has no value",
		"Patient?gender=male,":                      "an empty value",
		"Patient?gender=a|b|c":                      "more than one |",
		"Patient?gender=|":                          "alone",
		"Patient?gender:missing=maybe":              "right is true or false",
		"Patient?phonetic=a":                        "not supported",
		"Patient?general-practitioner=a/b/c/d":      "not a reference",
		"Observation?code-value-quantity=a$1":       "(composite) is not supported",
		"Observation?value-quantity=abc":            "right is number",
		"Observation?value-quantity=0x1p2":          "right is number",
		"Observation?value-quantity=1|mg":           "has 2 parts",
		"Patient?name=%zz":                          "broken percent-escape",
		"Observation?date=2026-01-31T08:00.5Z":      "right is a date",
		"Observation?date=ge2026-01-31T08:00 01:00": "+ of an offset is written %2B",
		"Observation?date=2026-01-31T08Z":           "right is a date",
		"Observation?date=2026-02-30":               "right is a date",
		"Patient?name=%CC%81":                       "accents alone",
		"Patient?gender:text=%CC%81":                "accents alone",
		"Patient?deceased=true,false":               "false in a list",
		"RiskAssessment?probability=1e400":          "right is a number",
		"RiskAssessment?probability=1_0":            "right is a number",
		"RiskAssessment?probability=ne":             "right is a number",
		"RiskAssessment?probability=inf":            "right is a number",
		"Patient?gender:missing=true,false":         "right is true or false",
		"Patient?birthdate=1.3.1970":                `"1.3.1970" is not a value`,
		"Location?near=1":                           "(special) is not supported",
	} {
		_, err := Parse(query, Env{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", query, err, want)
		}
	}
}
