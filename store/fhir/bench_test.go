package fhir

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
)

// BenchmarkScan is about the documents that mostly come: an Observation of
// 1.8 KB. SetBytes makes it say MB/s.
func BenchmarkScan(b *testing.B) {
	compact := observation(b)
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, compact, "", "  "); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		doc  []byte
	}{
		{"observation", compact},
		{"late-type", lateType(b, compact)},
		{"pretty", pretty.Bytes()},
		{"questionnaire-16k", questionnaire(16 << 10)},
		{"group-1000", group(1000)},
	} {
		b.Run(c.name, func(b *testing.B) {
			var s Scanner
			b.SetBytes(int64(len(c.doc)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Scan(c.doc); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkInject(b *testing.B) {
	var s Scanner
	res, err := s.Scan(observation(b))
	if err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, len(res.Body)+res.Meta.Len("1234567"))
	b.SetBytes(int64(len(res.Body)))
	for b.Loop() {
		dst = res.Meta.Inject(dst[:0], res.Body, "1234567", 1767323045123)
	}
}

// observation is a blood pressure with components and a narrative.
func observation(tb testing.TB) []byte {
	tb.Helper()
	component := func(code, name string, value float64) string {
		return fmt.Sprintf(`{"code":{"coding":[{"system":"http://loinc.org","code":%q,"display":%q}],"text":%q},`+
			`"valueQuantity":{"value":%.2f,"unit":"mm[Hg]","system":"http://unitsofmeasure.org","code":"mm[Hg]"}}`, code, name, name, value)
	}
	return []byte(`{"resourceType":"Observation","id":"b7a1c9de-50f3-4d0b-9d7c-30c5a4f2a001",` +
		`"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\"><p><b>Blood pressure</b></p><p>taken while sitting, left arm, large cuff</p></div>"},` +
		`"identifier":[{"use":"official","system":"urn:oid:2.16.840.1.113883.3.4.5","value":"6323-2211"}],"status":"final",` +
		`"category":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/observation-category","code":"vital-signs","display":"Vital Signs"}]}],` +
		`"code":{"coding":[{"system":"http://loinc.org","code":"85354-9","display":"Blood pressure panel with all children optional"}],"text":"Blood pressure"},` +
		`"subject":{"reference":"Patient/0c2f4a51-93b6-4e7a-8d0f-1b7ad92c4405","display":"A. Canary"},` +
		`"encounter":{"reference":"Encounter/77e0c1c2-8a2f-4df5-9a6f-5f1f0b7b1a23"},` +
		`"effectiveDateTime":"2026-01-02T03:04:05+01:00","issued":"2026-01-02T03:05:00.250+01:00",` +
		`"performer":[{"reference":"Practitioner/5d1b9f0c-2f5e-4b62-9b1c-7a1f7a7d2b10"},{"reference":"Organization/90b8f1de-9c02-4cf0-8a0c-90ab04cd1f00"}],` +
		`"interpretation":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation","code":"N","display":"normal"}]}],` +
		`"bodySite":{"coding":[{"system":"http://snomed.info/sct","code":"368209003","display":"Right arm"}]},"component":[` +
		component("8480-6", "Systolic blood pressure", 121) + "," + component("8462-4", "Diastolic blood pressure", 79.5) + `]}`)
}

// lateType moves resourceType to the end, as sorted or stored JSON has it.
func lateType(tb testing.TB, doc []byte) []byte {
	tb.Helper()
	head := []byte(`{"resourceType":"Observation",`)
	if !bytes.HasPrefix(doc, head) {
		tb.Fatal("the document does not begin with its type")
	}
	moved := append([]byte{'{'}, doc[len(head):len(doc)-1]...)
	return append(moved, `,"resourceType":"Observation"}`...)
}

func questionnaire(size int) []byte {
	doc := []byte(`{"resourceType":"QuestionnaireResponse","id":"q-1","status":"completed","subject":{"reference":"Patient/p-1"},"item":[{"linkId":"0"}`)
	for i := 1; len(doc) < size; i++ {
		doc = fmt.Appendf(doc, `,{"linkId":"%d.1","text":"How often did you feel short of breath in the last %d weeks?","answer":[{"valueCoding":{"system":"http://loinc.org","code":"LA6569-%d","display":"Several days"}}]}`, i, i, i%10)
	}
	return append(doc, "]}"...)
}

func group(members int) []byte {
	doc := []byte(`{"resourceType":"Group","id":"g-1","type":"person","actual":true,"member":[`)
	for i := range members {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = fmt.Appendf(doc, `{"entity":{"reference":"Patient/p-%d"},"period":{"start":"2024-01-%02d"}}`, i, i%28+1)
	}
	return append(doc, "]}"...)
}
