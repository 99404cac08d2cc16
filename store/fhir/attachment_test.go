package fhir

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// attachments are all elements of R4 4.0.1 whose type is or may be Attachment
// (profiles-resources, profiles-types).
const attachments = `BodyStructure.image Claim.supportingInfo.valueAttachment ClaimResponse.form Communication.payload.contentAttachment
	CommunicationRequest.payload.contentAttachment Consent.sourceAttachment Contract.friendly.contentAttachment
	Contract.legal.contentAttachment Contract.legallyBindingAttachment Contract.rule.contentAttachment Contract.term.offer.answer.valueAttachment
	DiagnosticReport.presentedForm DocumentReference.content.attachment ExplanationOfBenefit.form ExplanationOfBenefit.supportingInfo.valueAttachment
	HealthcareService.photo Library.content Library.relatedArtifact.document Media.content Parameters.parameter.valueAttachment Patient.photo
	Patient.extension.valueAttachment Person.photo Practitioner.photo Questionnaire.item.initial.valueAttachment
	QuestionnaireResponse.item.answer.valueAttachment RelatedPerson.photo StructureMap.group.rule.source.defaultValueAttachment
	SubstanceNucleicAcid.subunit.sequenceAttachment SubstancePolymer.repeat.repeatUnit.structuralRepresentation.attachment
	SubstanceProtein.subunit.sequenceAttachment SubstanceSpecification.structure.representation.attachment Task.input.valueAttachment
	Task.output.valueAttachment`

func TestAttachments(t *testing.T) {
	for path := range strings.FieldsSeq(attachments) {
		steps := strings.Split(path, ".")
		doc := `[{"contentType":"a/b","url":"Binary\/b-1"},{"url":"https://files.example/x"}]`
		for _, name := range slices.Backward(steps[1:]) {
			doc = fmt.Sprintf(`{%q:%s}`, name, doc)
		}
		for _, doc := range []string{
			fmt.Sprintf(`{"resourceType":%q,"id":"r",%s`, steps[0], doc[1:]),
			fmt.Sprintf(`{%s,"resourceType":%q,"id":"r"}`, doc[1:len(doc)-1], steps[0]),
		} {
			res, err := new(Scanner).Scan([]byte(doc))
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			want := []Key{{Binary, "b-1"}, {Binary, "https://files.example"}}
			if diff := cmp.Diff(want, res.References); diff != "" {
				t.Errorf("%s: %s", doc, diff)
			}
		}
	}
}

func TestAttachedTo(t *testing.T) {
	for url, want := range map[string]string{
		"":                                      "",
		"#pdf":                                  "",
		"data:text/plain;base64,YQ==":           "",
		"Binary/b":                              "b",
		"Binary/b/_history/2":                   "b",
		ownBase + "/Binary/b":                   "b",
		"Binary/b/c":                            "/ elsewhere",
		"Binary":                                "/ elsewhere",
		"DocumentReference/b":                   "/ elsewhere",
		"/files/a.pdf":                          "/ elsewhere",
		"a.pdf?at=12:30":                        "/ elsewhere",
		"urn:uuid:1":                            "urn: elsewhere",
		"HTTPS://me:secret@Files.example:8/a?b": "https://files.example:8 elsewhere",
		"https://files.example?secret":          "https://files.example elsewhere",
		ownBase + "/DocumentReference/1":        "http://own.example elsewhere",
		"https://" + strings.Repeat("x", 300):   "https://" + strings.Repeat("x", maxOrigin-8) + " elsewhere",
	} {
		key, ok := AttachedTo([]byte(url), []string{ownBase})
		got := key.ID
		if key.Elsewhere() && ok {
			got += " elsewhere"
		}
		if got != want || ok != (want != "") || ok && key.Type != Binary {
			t.Errorf("%q leads to %q, %t; want %q", url, got, ok, want)
		}
	}
}

// TestNotAttached: a url means something only where an Attachment stands.
func TestNotAttached(t *testing.T) {
	res, err := new(Scanner).Scan([]byte(`{"resourceType":"Library","id":"l","url":"Binary/a","extension":[{"url":"Binary/b"}],"content":[{"extension":[{"url":"Binary/c"}],"url":7}],` +
		`"relatedArtifact":[{"url":"Binary/d","document":{"data":"","title":"Binary/e"}}],"photo":"Binary/f"}`))
	if err != nil || len(res.References) > 0 {
		t.Errorf("%v, %v", res.References, err)
	}
}

func TestBinaryOfAPatient(t *testing.T) {
	res, err := new(Scanner).Scan([]byte(`{"resourceType":"Binary","id":"b","securityContext":{"reference":"Patient/p"}}`))
	if err != nil || !slices.Equal(res.Patients, []string{"p"}) {
		t.Errorf("lies with %v, %v", res.Patients, err)
	}
	if b, _ := ParseType("Binary"); InPatientCompartment(b) {
		t.Error("exports of Patients would hold Binary files")
	}
}
