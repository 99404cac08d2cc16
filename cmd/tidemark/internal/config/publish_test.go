package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPublish(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"a directory", "publish: {types: [Organization, Practitioner, Slot], public: true, every: 1d, grace: 1d}", nil},
		{"withheld", "publish: {types: [Organization, Patient]}\nwithhold: {security: [R]}", nil},
		{"who opts out is in none", "publish: {types: [Organization]}\nwithhold: {groups: [opt-out]}", nil},
		{"who opts out", "publish: {types: [Organization, Schedule, Patient]}\nwithhold: {groups: [opt-out]}", []string{
			"tidemark.yaml:1: publish.types: Schedule, Patient can be about a patient, and what is published is not narrowed by withhold.groups: take it out",
		}},
		{"not for everybody", "publish: {types: [Patient, Observation]}", nil},
		{"no type", "publish: {types: [Organisation]}", []string{`tidemark.yaml:1: publish.types: not resource types of FHIR R4: "Organisation" (did you mean Organization?)`}},
		{"patients for everybody", "publish: {types: [Organization, Schedule, Patient], public: true}", []string{
			"tidemark.yaml:1: publish.types: Schedule, Patient can be about a patient and so is never public: take it out, or set publish.public: false",
		}},
		{"times", "publish:\n  every: 0.5s\n  snapshot_every: 0.1s\n  grace: 0.2s\n", []string{
			"tidemark.yaml:2: publish.every: 500ms is too little: at least 1s",
			"tidemark.yaml:3: publish.snapshot_every: 100ms is shorter than publish.every, 500ms",
			"tidemark.yaml:4: publish.grace: 200ms is shorter than publish.every, 500ms: pages would go before anybody comes for them",
		}},
	} {
		if d := cmp.Diff(c.want, faults(t, Source{File: write(t, c.text)})); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}
