package elements

import (
	"strings"
	"testing"

	"tidemark/store/fhir"
)

// A canonical, too, may refer into contained (FHIR R4, "canonical").
func TestReviewCanonicalIntoContained(t *testing.T) {
	for elem, body := range map[string]string{
		"QuestionnaireResponse.questionnaire":     `{"resourceType":"QuestionnaireResponse","id":"a","contained":[{"resourceType":"Questionnaire","id":"q","status":"active"}],"questionnaire":"#q","status":"completed"}`,
		"MedicationRequest.instantiatesCanonical": `{"resourceType":"MedicationRequest","id":"a","contained":[{"resourceType":"PlanDefinition","id":"q","status":"active"}],"instantiatesCanonical":["#q"],"status":"active","intent":"order","medicationCodeableConcept":{"text":"x"},"subject":{"reference":"Patient/a"}}`,
	} {
		var s fhir.Scanner
		r, err := s.Scan([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		p, faults := Parse([]string{elem})
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		got := string(p.Append(nil, r.Body, r.Key.Type))
		if strings.Contains(got, `"#q"`) && !strings.Contains(got, `"contained"`) {
			t.Errorf("%s leads nowhere: %s", elem, got)
		}
	}
}
