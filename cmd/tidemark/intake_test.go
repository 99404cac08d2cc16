package main

import (
	"slices"
	"testing"

	"tidemark/cmd/tidemark/internal/config"
)

// TestOwnBases: references under our base and under those of the sources lead to
// resources here, in what comes in and in searches.
func TestOwnBases(t *testing.T) {
	c := config.Default()
	c.HTTP.PublicURL, c.Resources.OwnBases = "https://here/fhir", []string{"http://hapi:8080/fhir"}
	topics, err := intakeTopics(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := topics[0].Decode.OwnBases, []string{"https://here/fhir", "http://hapi:8080/fhir"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
