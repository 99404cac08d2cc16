package elements

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// BenchmarkAppend is about documents as they mostly come: an Observation of 1.4 KB
// and one of 20 KB whose members are nested deep. SetBytes makes it say MB/s of the
// NDJSON that is read.
func BenchmarkAppend(b *testing.B) {
	long := strings.Repeat(`,{"linkId":"1.1","text":"How often did you feel short of breath?","answer":[{"valueCoding":{"system":"http://loinc.org","code":"LA6569-1"}}]}`, 140)
	for _, c := range []struct{ name, typ, values, doc string }{
		{"observation/id", "Observation", "id", observation},
		{"observation/value", "Observation", "id,Observation.subject,Observation.value,Observation.effective", observation},
		{"observation/most", "Observation", "category,component,performer,subject,interpretation,bodySite,identifier", observation},
		{"questionnaire/id", "QuestionnaireResponse", "id", `{"resourceType":"QuestionnaireResponse","id":"q","meta":{"versionId":"1"},"status":"completed","item":[{}` + long + `]}`},
		{"contained/id", "Patient", "id", `{"resourceType":"Patient","id":"p","meta":{"versionId":"1"},"contained":[{}` + long + `],"active":true}`},
	} {
		b.Run(c.name, func(b *testing.B) {
			p, typ, doc := parse(b, c.values), typeOf(b, c.typ), []byte(c.doc)
			dst := make([]byte, 0, 2*len(doc))
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				dst = p.Append(dst[:0], doc, typ)
			}
		})
	}
}

// BenchmarkSynthea is about files of synthetic patients, one after another line.
func BenchmarkSynthea(b *testing.B) {
	for _, name := range []string{"Patient", "Observation", "Encounter", "ExplanationOfBenefit"} {
		b.Run(name, func(b *testing.B) {
			doc, err := io.ReadAll(open(b, syntheaFiles(b, name)[0]))
			if err != nil {
				b.Fatal(err)
			}
			lines := slices.Collect(bytes.Lines(doc))
			p, typ := parse(b, "id,Patient.birthDate,Observation.value,subject,provider"), typeOf(b, name)
			var dst []byte
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				for _, line := range lines {
					dst = p.Append(dst[:0], line, typ)
				}
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		parse(b, "id,Patient.name,Patient.birthDate,Observation.value,Observation.code,effective")
	}
}

// observation is a blood pressure with components and a narrative.
var observation = `{"resourceType":"Observation","id":"b7a1c9de-50f3-4d0b-9d7c-30c5a4f2a001","meta":{"versionId":"1","lastUpdated":"2026-01-02T03:04:05.123Z","profile":["http://hl7.org/fhir/StructureDefinition/bp"]},` +
	`"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\"><p><b>Blood pressure</b></p><p>taken while sitting, left arm, large cuff</p></div>"},` +
	`"identifier":[{"use":"official","system":"urn:oid:2.16.840.1.113883.3.4.5","value":"6323-2211"}],"status":"final",` +
	`"category":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/observation-category","code":"vital-signs","display":"Vital Signs"}]}],` +
	`"code":{"coding":[{"system":"http://loinc.org","code":"85354-9","display":"Blood pressure panel with all children optional"}],"text":"Blood pressure"},` +
	`"subject":{"reference":"Patient/0c2f4a51-93b6-4e7a-8d0f-1b7ad92c4405"},"effectiveDateTime":"2026-01-02T03:04:05+01:00","issued":"2026-01-02T03:05:00.250+01:00",` +
	`"performer":[{"reference":"Practitioner/5d1b9f0c-2f5e-4b62-9b1c-7a1f7a7d2b10"},{"reference":"Organization/90b8f1de-9c02-4cf0-8a0c-90ab04cd1f00"}],` +
	`"component":[` + component("8480-6", 121) + "," + component("8462-4", 79.5) + `]}`

func component(code string, value float64) string {
	return fmt.Sprintf(`{"code":{"coding":[{"system":"http://loinc.org","code":%q}]},"valueQuantity":{"value":%.2f,"unit":"mm[Hg]","system":"http://unitsofmeasure.org","code":"mm[Hg]"}}`, code, value)
}
